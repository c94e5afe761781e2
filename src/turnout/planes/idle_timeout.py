"""The idle timeout: connections without a byte in either direction for so long are ended. Off unless it is asked for.

No clock is read for any event: now and then the bytes of every connection are compared with those of the last look.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, Generic, TypeVar

from turnout.planes.connection_table import PlaneConnection

LOOKS: Final = 8  # in one timeout: an idle connection is ended after 1 to 1 + 1/8 of it
LOOK_MOST_S: Final = 5.0
LOOK_LEAST_S: Final = 0.01
AT_ONCE: Final = 1000  # connections in one go; the next ones after a round of the loop

C = TypeVar("C", bound=PlaneConnection)


class IdleTimeout(Generic[C]):
    """Looks at every connection a few times in each timeout. Owns its timer; ``set(None)`` ends it.

    ``connections``: all there are at the moment. ``end``: called with each that is idle. ``clock``: monotonic seconds.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connections: Iterable[C],
        end: Callable[[C], None],
        *,
        clock: Callable[[], float],
    ) -> None:
        self._loop = loop
        self._connections = connections
        self._end = end
        self._clock = clock
        self._timeout_s: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._left: deque[C] = deque()
        self._last: dict[int, tuple[tuple[int, int], float]] = {}  # by number: bytes then, and since when
        self._next: dict[int, tuple[tuple[int, int], float]] = {}

    def set(self, timeout_s: float | None) -> None:
        """End what is idle for so many seconds, above 0; None: nothing."""
        if timeout_s == self._timeout_s:
            return
        self._timeout_s = timeout_s
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if timeout_s is None:
            self._left.clear()
            self._last, self._next = {}, {}
        else:
            self._timer = self._loop.call_later(0, self._look, timeout_s)

    def _look(self, timeout_s: float) -> None:
        if not self._left:
            self._left.extend(self._connections)
        try:
            self._look_at_some(self._clock(), timeout_s)
        finally:  # what fails for one connection must not end the looks at all others
            pause_s = 0.0
            if not self._left:
                self._last, self._next = self._next, {}
                pause_s = max(LOOK_LEAST_S, min(LOOK_MOST_S, timeout_s / LOOKS))
            self._timer = self._loop.call_later(pause_s, self._look, timeout_s)

    def _look_at_some(self, now: float, timeout_s: float) -> None:
        for _ in range(min(AT_ONCE, len(self._left))):
            connection = self._left.popleft()
            if connection.closed:
                continue
            moved = connection.moved()
            last = self._last.get(connection.id)
            if last is None or last[0] != moved:
                last = moved, now
            if now - last[1] >= timeout_s:
                self._end(connection)
            else:
                self._next[connection.id] = last
