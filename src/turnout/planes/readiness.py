"""What tells a front that a descriptor is ready: an epoll, or the loop itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

EIN: Final = 0x1  # as EPOLLIN and EPOLLOUT, which not every system has
EOUT: Final = 0x4


class Readiness(Protocol):
    """Descriptors are registered here as with select.epoll; what is ready, the plane tells its front.

    A descriptor without events is one of which only its death is of interest.
    """

    def register(self, fd: int, eventmask: int = ..., /) -> None: ...
    def modify(self, fd: int, eventmask: int, /) -> None: ...
    def unregister(self, fd: int, /) -> None: ...


class LoopReadiness:
    """By the loop's readers and writers. Deaths are not told: a loop hears none of a descriptor without events.

    Args:
        loop: the loop.
        readable: called with the descriptor.
        writable: called with the descriptor.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, readable: Callable[[int], None], writable: Callable[[int], None]
    ) -> None:
        self._loop = loop
        self._readable = readable
        self._writable = writable
        self._registered: dict[int, int] = {}

    def register(self, fd: int, eventmask: int = EIN | EOUT, /) -> None:
        self.modify(fd, eventmask)

    def modify(self, fd: int, eventmask: int, /) -> None:
        before = self._registered.get(fd, 0)
        self._registered[fd] = eventmask
        if eventmask & EIN:
            self._loop.add_reader(fd, self._readable, fd)
        elif before & EIN:
            self._loop.remove_reader(fd)
        if eventmask & EOUT:
            self._loop.add_writer(fd, self._writable, fd)
        elif before & EOUT:
            self._loop.remove_writer(fd)

    def unregister(self, fd: int, /) -> None:
        self.modify(fd, 0)
        del self._registered[fd]
