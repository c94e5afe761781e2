"""The listeners of a front: registered while it may accept, and not for a moment while it cannot."""

from __future__ import annotations

import asyncio
import socket
from typing import Final

from turnout.planes.chooser import is_shared
from turnout.planes.plane import Counters
from turnout.planes.readiness import EIN, Readiness
from turnout.planes.tcp import listens, set_up

FD_PAUSE_S: Final = 0.05


class Listeners:
    """Owns a descriptor of its own for each of them.

    Args:
        loop: for a pause's end; only its thread may call.
        readiness: where they are registered.
        counters: the plane's.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, readiness: Readiness, counters: Counters) -> None:
        self.by_fd: dict[int, socket.socket] = {}
        self.shared = False  # one of them is, or may become, a member of a group
        self._loop = loop
        self._readiness = readiness
        self._counters = counters
        self._full = False
        self._no_resources = False

    def add(self, sock: socket.socket, *, user_timeout_ms: int) -> None:
        own = sock.dup()
        own.setblocking(False)
        set_up(own, user_timeout_ms=user_timeout_ms)
        self.shared = self.shared or is_shared(own)
        self.by_fd[own.fileno()] = own
        self._readiness.register(own.fileno(), self._events)

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
        """While the limit of connections is reached nobody is accepted, and who comes waits in the kernel's queue."""
        self._full = full
        self._watch()

    def pause(self) -> None:
        """No descriptors: a listener stays readable, so it is not watched for a moment instead of spinning."""
        self._counters.fd_exhausted += 1
        if self._no_resources:
            return
        self._no_resources = True
        self._watch()
        self._loop.call_later(FD_PAUSE_S, self._resume)

    def _resume(self) -> None:
        self._no_resources = False
        self._watch()

    @property
    def _events(self) -> int:
        return 0 if self._no_resources or self._full else EIN

    def _watch(self) -> None:
        for fd in self.by_fd:
            self._readiness.modify(fd, self._events)
