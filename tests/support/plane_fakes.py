"""What a plane stands on, in memory: a loop that runs when the test says so, an epoll, connections."""

from __future__ import annotations

import asyncio
import errno
import heapq
import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from turnout.planes.plane import ConnectionInfo


@dataclass
class FakeTimer:
    act: Callable[..., None]
    args: tuple[Any, ...] = ()
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


class FakeLoop:
    """Timers by a clock of its own. ``readers`` and ``writers``: each descriptor's callback with its arguments."""

    def __init__(self) -> None:
        self.now = 100.0
        self.readers: dict[int, tuple[Callable[..., None], tuple[Any, ...]]] = {}
        self.writers: dict[int, tuple[Callable[..., None], tuple[Any, ...]]] = {}
        self._timers: list[tuple[float, int, FakeTimer]] = []
        self._numbers = itertools.count()

    @property
    def as_loop(self) -> asyncio.AbstractEventLoop:
        return cast("asyncio.AbstractEventLoop", cast("Any", self))

    def time(self) -> float:
        return self.now

    def call_later(self, delay_s: float, act: Callable[..., None], *args: Any) -> FakeTimer:
        timer = FakeTimer(act, args)
        heapq.heappush(self._timers, (self.now + delay_s, next(self._numbers), timer))
        return timer

    def call_soon(self, act: Callable[..., None], *args: Any) -> FakeTimer:
        return self.call_later(0.0, act, *args)

    def add_reader(self, fd: int, act: Callable[..., None], *args: Any) -> None:
        self.readers[fd] = act, args

    def remove_reader(self, fd: int) -> bool:
        return self.readers.pop(fd, None) is not None

    def add_writer(self, fd: int, act: Callable[..., None], *args: Any) -> None:
        self.writers[fd] = act, args

    def remove_writer(self, fd: int) -> bool:
        return self.writers.pop(fd, None) is not None

    def go_on(self, seconds: float) -> None:
        """Let that time pass, with what is due in it."""
        until = self.now + seconds
        while self._timers and self._timers[0][0] <= until:
            at, _, timer = heapq.heappop(self._timers)
            self.now = max(self.now, at)
            if not timer.cancelled:
                timer.act(*timer.args)
        self.now = until

    @property
    def pending(self) -> int:
        return sum(not timer.cancelled for _, _, timer in self._timers)


class FakeReadiness:
    """``watched``: what each descriptor is registered for."""

    def __init__(self) -> None:
        self.watched: dict[int, int] = {}
        self.fails = False

    def register(self, fd: int, eventmask: int = 0, /) -> None:
        if self.fails:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        assert fd not in self.watched
        self.watched[fd] = eventmask

    def modify(self, fd: int, eventmask: int, /) -> None:
        assert fd in self.watched
        self.watched[fd] = eventmask

    def unregister(self, fd: int, /) -> None:
        del self.watched[fd]


@dataclass(eq=False)
class FakeConnection:
    id: int
    boot_id: str
    bytes_in: int = 0
    bytes_out: int = 0
    closed: bool = False

    def moved(self) -> tuple[int, int]:
        return self.bytes_in, self.bytes_out

    def info(self, now: float, *, peers: bool) -> ConnectionInfo:
        raise AssertionError

    def end(self) -> None:
        raise AssertionError

    def reset(self) -> None:
        raise AssertionError
