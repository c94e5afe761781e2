"""The hold: clients that wait for a daemon, first in first out, bounded in number and in time."""

from __future__ import annotations

import socket
from collections import deque

from turnout.planes.plane import Counters, Target


class Waiting:
    """A client without a daemon yet: held, or being connected. Owns its socket and the daemon's until it is made."""

    __slots__ = ("client", "client_fd", "daemon", "daemon_fd", "gone", "listed", "since", "target", "tried_at")

    def __init__(self, client: socket.socket, now: float) -> None:
        self.client = client
        self.client_fd = client.fileno()
        self.since = now
        self.daemon: socket.socket | None = None
        self.daemon_fd = -1
        self.target: Target | None = None
        self.tried_at = now
        self.gone = False
        self.listed = False  # its descriptor is registered


class Hold:
    """The queue of those that wait. Owns none of them: whoever takes one out decides what becomes of it.

    Args:
        most: how many may wait at once, 0 or more.
        counters: ``held_now`` and ``held_total`` are kept here.
    """

    __slots__ = ("_counters", "_queue", "most")

    def __init__(self, most: int, counters: Counters) -> None:
        self.most = most
        self._counters = counters
        self._queue: deque[Waiting] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def enter(self, waiting: Waiting) -> bool:
        """Take the last place; False: it is full."""
        if len(self._queue) >= self.most:
            return False
        self._queue.append(waiting)
        self._counters.held_total += 1
        self._count()
        return True

    def return_to_front(self, waiting: Waiting) -> None:
        """One that was let go too early has its place back, also in a full hold."""
        self._queue.appendleft(waiting)
        self._count()

    def next(self) -> Waiting | None:
        """The one that waits longest and is still there."""
        while self._queue:
            waiting = self._queue.popleft()
            if not waiting.gone:
                self._count()
                return waiting
        self._count()
        return None

    def leave_late(self, now: float, patience_s: float) -> list[Waiting]:
        """Take out those that have waited longer than ``patience_s`` seconds, and drop those that have gone."""
        late = [waiting for waiting in self._queue if not waiting.gone and now - waiting.since > patience_s]
        if late or any(waiting.gone for waiting in self._queue):
            self._queue = deque(w for w in self._queue if not w.gone and now - w.since <= patience_s)
            self._count()
        return late

    def _count(self) -> None:
        self._counters.held_now = len(self._queue)
