"""How often something took how long: integers by size class, as a Prometheus histogram wants them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


class Histogram:
    """Counts values by upper bound. Adding one allocates nothing but the new sum.

    Args:
        bounds: the upper bounds of the classes, each inclusive, rising; one without a bound follows by itself.
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
        """As it is now, for whoever looks at it in another thread."""
        other = Histogram(self.bounds)
        other.counts = self.counts.copy()
        other.total = self.total
        return other

    def cumulative(self) -> list[tuple[float, int]]:
        """For each bound how many values were no larger; the last one, infinity, counts all of them."""
        so_far = 0
        found: list[tuple[float, int]] = []
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            so_far += count
            found.append((bound, so_far))
        return found
