"""Clients that wait for a daemon: first in first out, bounded in number, and in time by what keeps the daemon.

As soon as there is a daemon they are connected at the pace that its accept queue takes.
"""

from __future__ import annotations

import math
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, NamedTuple

from turnout.planes.plane import Counters, Upstream

SHORTAGE_S: Final = 10.0  # descriptors and ports come back as connections end
TICK_S: Final = 0.02
PACE_S: Final = 0.002  # between two looks at a queue that gets shorter; while it does not, up to TICK_S
TRY_FIRST_S: Final = 0.02  # after a connect that failed, until the next; twice as long after each, up to
TRY_MOST_S: Final = 0.25
UNKNOWN: Final = 1 << 16  # more than any accept queue has (listen(2))


@dataclass(slots=True, eq=False)
class PendingClient:
    """A client without a daemon yet: held, or being connected. Owns its socket, and the one towards its daemon.

    ``reserved``: an unconnected socket, the descriptor that its daemon's connection will need. ``watched``: the
    client's descriptor is registered.
    """

    sock: socket.socket
    fd: int
    since: float
    reserved: socket.socket | None
    daemon: socket.socket | None = None
    daemon_fd: int = -1
    upstream: Upstream | None = None
    tried_at: float = 0.0
    gone: bool = False
    watched: bool = False

    def close_reserved(self) -> None:
        """Give the descriptor back: the client needs no connection to a daemon any more, or one of another family."""
        if self.reserved is not None:
            self.reserved.close()
            self.reserved = None


class Obstacle(Enum):
    """Why the last connect to the upstream did not succeed."""

    REFUSES = auto()  # nothing listens there, its process has ended, or there is no answer at all
    FULL = auto()  # its accept queue takes no more for the moment
    SHORT = auto()  # no descriptor or no port was left here


class Limit(NamedTuple):
    """A client is late after ``wait_s`` seconds from ``since`` or its arrival on, or ``in_all_s`` after its arrival."""

    wait_s: float
    since: float = 0.0
    in_all_s: float = math.inf


class Patience:
    """The patience with one upstream. Times are those of the caller's clock, in seconds.

    While the daemon takes connections no client is late, however many wait: they are served in their order. When the
    daemon refuses, the wait counts from its first refusal, or from the client's arrival if that is later.

    ``refused_s``: how long a client waits while there is no upstream, or for an upstream that refuses.
    ``obstacle``: what the last connect met; None: it succeeded, or there was none yet.
    """

    __slots__ = ("_met_at", "_taken_at", "obstacle", "refused_s")

    def __init__(self) -> None:
        self.refused_s = 0.0
        self.obstacle: Obstacle | None = None
        self._met_at = 0.0
        self._taken_at = 0.0

    def taken(self, now: float) -> None:
        """The upstream took a connection."""
        self.obstacle = None
        self._taken_at = now

    def met(self, obstacle: Obstacle, now: float) -> None:
        """A connect to the upstream met this."""
        if self.obstacle is not obstacle:
            self.obstacle = obstacle
            self._met_at = now

    def unanswered(self, tried_at: float) -> None:
        """A connect that was tried then has no answer; a daemon that took others meanwhile is busy, no more."""
        self.met(Obstacle.FULL if self._taken_at > tried_at else Obstacle.REFUSES, tried_at)

    def is_over(self, *, has_upstream: bool) -> bool:
        """Whether a client that comes now is not to wait at all."""
        return self.refused_s <= 0 and (not has_upstream or self.obstacle is Obstacle.REFUSES)

    def limit(self, *, has_upstream: bool, hold_timeout_s: float) -> Limit | None:
        """The limit after which clients are late now; None: no client is late."""
        if not has_upstream:
            return Limit(self.refused_s)
        match self.obstacle:
            case None:
                return None
            case Obstacle.REFUSES:
                return Limit(self.refused_s, self._met_at, hold_timeout_s)
            case Obstacle.SHORT:
                return Limit(max(self.refused_s, SHORTAGE_S), max(self._met_at, self._taken_at))
            case Obstacle.FULL:
                return Limit(hold_timeout_s, max(self._met_at, self._taken_at))


class HoldQueue:
    """The held clients. Owns none of them: the caller that takes a client out decides what becomes of it.

    Args:
        max_waiting: maximum number of held clients, 0 or more.
        counters: ``held_now`` and ``held_total`` are kept here.
    """

    __slots__ = ("_counters", "_queue", "max_waiting")

    def __init__(self, max_waiting: int, counters: Counters) -> None:
        self.max_waiting = max_waiting
        self._counters = counters
        self._queue: deque[PendingClient] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def enter(self, client: PendingClient) -> bool:
        """Take the last place; False: the queue is full."""
        if len(self._queue) >= self.max_waiting:
            return False
        self._queue.append(client)
        self._counters.held_total += 1
        self._count()
        return True

    def return_to_front(self, client: PendingClient) -> None:
        """Give a client that was released too early its place back, also in a full queue."""
        self._queue.appendleft(client)
        self._count()

    def next(self) -> PendingClient | None:
        """The client that waits longest and is still there."""
        while self._queue:
            client = self._queue.popleft()
            if not client.gone:
                self._count()
                return client
        self._count()
        return None

    def leave_late(self, now: float, limit: Limit | None) -> list[PendingClient]:
        """Take out the clients that have waited longer than that, and drop those that have gone."""
        late: list[PendingClient] = []
        kept: deque[PendingClient] = deque()
        for client in self._queue:
            if client.gone:
                continue
            if limit is not None and (
                now - max(client.since, limit.since) > limit.wait_s or now - client.since > limit.in_all_s
            ):
                late.append(client)
            else:
                kept.append(client)
        self._queue = kept
        self._count()
        return late

    def _count(self) -> None:
        self._counters.held_now = len(self._queue)


class Pace:
    """How many held clients to connect: as many as the accept queue has room for, or one while the daemon refuses.

    The kernel drops a SYN to a full queue, and sends it again after 1, 3, 7 s: a daemon with a small backlog would get
    its clients in such steps, in no order. The room is looked at now and then and counted down in between.

    ``pause_s``: until the next release. ``full``: as the last look at the queue had it.

    Args:
        room: answers how many connections the queue takes; None: that is not known, and nothing is held back.
        per_tick: how many clients are released in one tick at most.
    """

    def __init__(self, room: Callable[[Upstream], int | None], per_tick: int) -> None:
        self._room_of = room
        self._per_tick = per_tick
        self._room = 0
        self.forget()

    def forget(self) -> None:
        """Another upstream, or none: look at its queue with the next release."""
        self._look_at = self._try_at = 0.0
        self.pause_s = TICK_S
        self.full = False
        self._pace_s = PACE_S
        self._try_s = TRY_FIRST_S

    def may_go(self, upstream: Upstream, now: float, limit: int | None = None) -> int:
        """How many may be released now, ``limit`` at most (None: a tick's number); sets ``pause_s``."""
        if now < self._try_at:
            self.full, self.pause_s = False, TICK_S
            return 0
        if now >= self._look_at:
            room = self._room_of(upstream)
            self._room = UNKNOWN if room is None else room
            self._pace_s = PACE_S if self._room else min(2 * self._pace_s, TICK_S)
            self._look_at = now + self._pace_s
        limit = self._per_tick if limit is None else limit
        self.pause_s = TICK_S if self._room > limit else self._pace_s
        self.full = not self._room
        return min(limit, self._room)

    def failed(self, now: float) -> None:
        """A connect failed: try again after a pause."""
        self._try_at = now + self._try_s
        self._try_s = min(2 * self._try_s, TRY_MOST_S)

    def filled(self, now: float) -> None:
        """The queue was found full by a connect: look at it again after a pause."""
        self._room = 0
        self._look_at = now + self._pace_s
        self.pause_s = self._pace_s

    def went(self) -> None:
        """A connection took a place in the queue."""
        self._room -= 1
        self._try_s = TRY_FIRST_S

    def is_full(self, upstream: Upstream) -> bool:
        """Whether the queue takes nothing at this moment, asked of the kernel."""
        return self._room_of(upstream) == 0
