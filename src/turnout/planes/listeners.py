"""The listeners of an acceptor: registered while it may accept, and not for a moment while it cannot."""

from __future__ import annotations

import asyncio
import socket
from select import EPOLLIN
from typing import Final, Protocol

from turnout.planes.plane import Counters
from turnout.reuseport.program import is_shared
from turnout.system.net.tcp import listens, set_up

FD_PAUSE_S: Final = 0.05


class Readiness(Protocol):
    """Descriptors are registered here as with select.epoll; the plane tells its acceptor which of them are ready.

    Of a descriptor without events nothing but its death is of interest.
    """

    def register(self, fd: int, eventmask: int = ..., /) -> None: ...
    def modify(self, fd: int, eventmask: int, /) -> None: ...
    def unregister(self, fd: int, /) -> None: ...


class Listeners:
    """Owns a descriptor of its own for each listener. ``shared``: one of them is, or may become, a group's member."""

    def __init__(self, loop: asyncio.AbstractEventLoop, readiness: Readiness, counters: Counters) -> None:
        self.by_fd: dict[int, socket.socket] = {}
        self.shared = False
        self._loop = loop
        self._readiness = readiness
        self._counters = counters
        self._full = False
        self._no_resources = False

    def add(self, sock: socket.socket, *, user_timeout_ms: int) -> None:
        """Accept from a listening socket.

        Raises:
            OSError: no descriptor or no memory is left; then nothing was changed.
        """
        own = sock.dup()
        try:
            own.setblocking(False)
            set_up(own, user_timeout_ms=user_timeout_ms)
            self._readiness.register(own.fileno(), self._events)
        except OSError:
            own.close()
            raise
        self.shared = self.shared or is_shared(own)
        self.by_fd[own.fileno()] = own

    def at(self, address: tuple[str, int]) -> list[socket.socket]:
        return [sock for sock in self.by_fd.values() if sock.getsockname()[:2] == address]

    def remove(self, sock: socket.socket) -> None:
        self._readiness.unregister(sock.fileno())
        del self.by_fd[sock.fileno()]
        sock.close()

    def drop_shut(self) -> None:
        """Let go of those that the keeper has shut down: to epoll they are readable for ever."""
        for sock in list(self.by_fd.values()):
            if not listens(sock):
                self.remove(sock)

    def close(self) -> None:
        for sock in list(self.by_fd.values()):
            self.remove(sock)

    def set_full(self, full: bool) -> None:
        """While the limit of connections is reached nothing is accepted: clients wait in the kernel's queue."""
        self._full = full
        self._watch()

    def pause(self) -> None:
        """No descriptors: a listener stays readable, so it is not watched for a moment instead of spinning."""
        self._counters.fd_exhausted += 1
        if not self._no_resources:
            self._no_resources = True
            self._watch()
            self._loop.call_later(FD_PAUSE_S, self._resume)

    def _resume(self) -> None:
        self._no_resources = False
        self._watch()

    @property
    def _events(self) -> int:
        return 0 if self._no_resources or self._full else EPOLLIN

    def _watch(self) -> None:
        for fd in self.by_fd:
            self._readiness.modify(fd, self._events)
