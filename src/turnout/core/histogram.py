"""How often something took how long: integers by size class, as a Prometheus histogram wants them."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Sequence


class Histogram:
    """Counts values by upper bound. Adding one allocates nothing but the new sum.

    ``bounds``: the upper bounds of the classes, each inclusive, rising; one without a bound follows by itself.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def __repr__(self) -> str:
        return f"Histogram(count={sum(self.counts)}, total={self.total:g})"

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def copy(self) -> Histogram:
        """The values so far, for another thread."""
        copied = Histogram(self.bounds)
        copied.counts, copied.total = self.counts.copy(), self.total
        return copied

    def cumulative(self) -> list[tuple[float, int]]:
        """For each bound how many values were no larger; the last one, infinity, counts all of them."""
        return list(zip((*self.bounds, math.inf), itertools.accumulate(self.counts), strict=True))
