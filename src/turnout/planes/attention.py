"""What must not wait while the poller stays: it says when there is something more urgent in the loop.

A switch is a few turns of the loop (the kernel's hint, the file read in a thread, the plane pointed elsewhere), and
each of them would wait for as long as the poller stays.
"""

from __future__ import annotations

import contextlib
import select
from collections.abc import Generator


class Attention:
    """Shared by whoever has something urgent and the poller. Owns nothing: descriptors stay their owners'.

    ``urgent``: how much is under way for which the loop should be let to turn; only the loop's thread changes it.
    """

    def __init__(self) -> None:
        self.urgent = 0
        self.bells: set[int] = set()
        self._epoll: select.epoll | None = None

    def joined(self, epoll: select.epoll) -> None:
        """Register with a poller's epoll what rings now and from now on."""
        self._epoll = epoll
        for fd in self.bells:
            epoll.register(fd, select.EPOLLIN)

    def watch(self, fd: int) -> None:
        """While there is something to read at ``fd`` the poller does not stay; the loop reads it."""
        self.bells.add(fd)
        if self._epoll:
            self._epoll.register(fd, select.EPOLLIN)

    def forget(self, fd: int) -> None:
        """Before ``fd`` is closed."""
        self.bells.discard(fd)
        if self._epoll and not self._epoll.closed:
            self._epoll.unregister(fd)

    @contextlib.contextmanager
    def hurry(self) -> Generator[None]:
        """While the block runs the poller does not stay."""
        self.urgent += 1
        try:
            yield
        finally:
            self.urgent -= 1
