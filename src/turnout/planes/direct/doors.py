"""Connections that reach one daemon of a group, whichever daemon is active: those of health checks and of the relay."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Collection, Generator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from turnout.core.slots import index_of
from turnout.reuseport.program import DOORS_MOST, Door

LOOP_WITHIN_S: Final = 5.0


class Doors:
    """The doors of one service's group: while a door is open, the kernel lets its connection name its member.

    Only the router that steers can open one. Owns nothing: a socket that is bound to the door's source address and
    port, without SO_REUSEADDR, must stay open as long as the door.
    """

    def __init__(self) -> None:
        self._open: set[Door] = set()
        self.renew: Callable[[], None] | None = None  # has the kernel know them; None: this router does not steer
        self.have_moved = False  # another router steers, and any connection reaches the active daemon

    @property
    def all(self) -> Collection[Door]:
        return self._open

    def open(self, index: int | None, host: str, port: int) -> None:
        """Let the connection from this address and port reach a member, before it is begun.

        Raises:
            OSError: this router does not steer the group; or too many are open, or the kernel refuses.
            ValueError: no connection from there names that member.
        """
        if self.renew is None or index is None:
            raise OSError(errno.EHOSTUNREACH, "this router does not steer the group")
        if len(self._open) >= DOORS_MOST:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        door = Door(index, host, port)
        self._open.add(door)
        try:
            self.renew()
        except OSError:
            self._open.discard(door)
            raise

    def close(self, index: int | None, host: str, port: int) -> None:
        """Let no other connection through there; before the socket is closed, or once it is connected."""
        door = None if index is None else Door(index, host, port)
        if door in self._open:
            self._open.discard(door)
            if self.renew:
                self.renew()


@dataclass(frozen=True, slots=True)
class ThreadDoor:
    """Opens a door for the connection of a thread, and shuts it once that is made: both in the loop's thread."""

    loop: asyncio.AbstractEventLoop
    doors: Doors

    @contextmanager
    def __call__(self, source: str, port: int) -> Generator[None]:
        """Raises OSError: it cannot be opened, or the loop does not come to it."""
        try:
            self._call(self.doors.open, source, port)
            yield
        finally:  # also where the loop was late: it opens the door then, and shuts it after that
            self._call(self.doors.close, source, port)

    def _call(self, action: Callable[[int | None, str, int], None], source: str, port: int) -> None:
        done: Future[None] = Future()

        def run() -> None:
            try:
                action(index_of(source), source, port)
                done.set_result(None)
            except OSError as error:
                done.set_exception(error)

        try:
            self.loop.call_soon_threadsafe(run)
            done.result(LOOP_WITHIN_S)
        except RuntimeError as error:  # the loop is closed
            raise ConnectionRefusedError(str(error)) from error
