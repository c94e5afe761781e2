"""Values by size class, as integers."""

from __future__ import annotations

import bisect
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.core.histogram import Histogram

BOUNDS = (0.1, 0.5, 1.0)


@pytest.mark.parametrize(
    ("value", "counts"),
    [(0.0, [1, 0, 0, 0]), (0.1, [1, 0, 0, 0]), (0.10001, [0, 1, 0, 0]), (1.0, [0, 0, 1, 0]), (7.0, [0, 0, 0, 1])],
)
def test_a_bound_belongs_to_its_own_class(value: float, counts: list[int]) -> None:
    found = Histogram(BOUNDS)
    found.add(value)
    assert found.counts == counts


@given(st.lists(st.floats(0, 10)))
def test_each_bound_counts_whatever_is_no_larger_and_the_last_one_all(values: list[float]) -> None:
    found = Histogram(BOUNDS)
    for value in values:
        found.add(value)
    ordered = sorted(values)
    assert found.cumulative() == [(bound, bisect.bisect_right(ordered, bound)) for bound in (*BOUNDS, math.inf)]
    assert found.total == pytest.approx(sum(values))


def test_a_copy_stands_still() -> None:
    found = Histogram(BOUNDS)
    found.add(0.2)
    copy = found.copy()
    found.add(0.2)
    assert (copy.counts, copy.total) == ([0, 1, 0, 0], 0.2)
    assert found.counts == [0, 2, 0, 0]
