"""What must not wait while the poller stays: the poller asks here whether the loop has something more urgent to do.

A switch is a few turns of the loop (the kernel's hint, the file read in a thread, the plane's new upstream), and
each of them would wait for as long as the poller stays.
"""

from __future__ import annotations

import contextlib
import select
from collections.abc import Generator


class LoopPriority:
    """Shared by the poller and all that have something urgent. Owns nothing: descriptors stay their owners'.

    ``pending``: how much is under way for which the loop should be let to turn; only the loop's thread changes it.
    ``wakeup_fds``: the poller leaves when one of these descriptors is readable.
    """

    def __init__(self) -> None:
        self.pending = 0
        self.wakeup_fds: set[int] = set()
        self._epoll: select.epoll | None = None

    def joined(self, epoll: select.epoll) -> None:
        """Register the descriptors that are watched now and from now on with a poller's epoll."""
        self._epoll = epoll
        for fd in self.wakeup_fds:
            epoll.register(fd, select.EPOLLIN)

    def watch(self, fd: int) -> None:
        """While there is something to read at ``fd`` the poller does not stay; the loop reads it."""
        if self._epoll:
            self._epoll.register(fd, select.EPOLLIN)
        self.wakeup_fds.add(fd)

    def forget(self, fd: int) -> None:
        """Before ``fd`` is closed."""
        self.wakeup_fds.discard(fd)
        if self._epoll and not self._epoll.closed:
            self._epoll.unregister(fd)

    @contextlib.contextmanager
    def preempting(self) -> Generator[None]:
        """While the block runs the poller does not stay."""
        self.pending += 1
        try:
            yield
        finally:
            self.pending -= 1
