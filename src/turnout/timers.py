"""What a single-threaded loop has to do later. Standard library only: the keeper's."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable


class Timers:
    """Actions and when they are due, on the monotonic clock."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0  # two of one moment are run in the order in which they were set

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        """Run ``action`` once, ``delay_s`` seconds from now or a little later."""
        self._count += 1
        heapq.heappush(self._due, (time.monotonic() + delay_s, self._count, action))

    def run(self) -> None:
        """Run what is due; what an action sets for now comes with the next call."""
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            heapq.heappop(self._due)[2]()

    def next_s(self) -> float | None:
        """Seconds until the next is due, None where there is none."""
        return max(0.0, self._due[0][0] - time.monotonic()) if self._due else None
