"""Pauses between attempts, and which reasons are the same."""

from __future__ import annotations

import pytest

from turnout.core.backoff import NOT_BEGUN_DELAYS_S, not_begun_delay_s, same_cause


def test_pauses_grow_and_the_longest_one_stays() -> None:
    pauses = [not_begun_delay_s(attempts) for attempts in range(1, len(NOT_BEGUN_DELAYS_S) + 3)]
    assert pauses == [*NOT_BEGUN_DELAYS_S, NOT_BEGUN_DELAYS_S[-1], NOT_BEGUN_DELAYS_S[-1]]
    assert pauses == sorted(pauses)


@pytest.mark.parametrize(
    ("reason", "other", "same"),
    [
        ("pid 4711 has ended after 0.3 s", "pid 4802 has ended after 12.5 s", True),
        ("d-20260101-a1b2c3: exit code 1", "d-20260101-ffe012: exit code 1", True),
        ("it does not listen on port 4001", "it closed the connection", False),
        ("exit code 1", "killed by SIGSEGV", False),
    ],
)
def test_reasons_are_compared_without_boot_ids_pids_and_times(reason: str, other: str, *, same: bool) -> None:
    assert same_cause(reason, other) is same
