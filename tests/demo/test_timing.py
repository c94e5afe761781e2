"""How connections are timed; the connections are fakes."""

from __future__ import annotations

import itertools

import pytest

from support import eventually
from turnout.demo import timing
from turnout.demo.timing import SLICE, Clients, in_turn, latency


def test_percentiles_are_of_the_sorted_times_in_microseconds() -> None:
    found = latency([0.001 * number for number in reversed(range(100))])
    assert (round(found.p50_us), round(found.p99_us), found.count) == (50_000, 99_000, 100)
    assert latency([0.5]).p99_us == 500_000


def test_both_ways_are_timed_in_turns_of_one_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "MOST", 2 * SLICE)
    calls: list[str] = []
    direct, through = in_turn(lambda: calls.append("direct"), lambda: calls.append("through"))
    assert (direct.count, through.count) == (2 * SLICE, 2 * SLICE)
    assert [kind for kind, _ in itertools.groupby(calls)] == ["direct", "through", "direct", "through"]


def test_a_connection_that_fails_is_counted_by_its_error_and_not_timed() -> None:
    turns = itertools.count()

    def connect() -> None:
        if next(turns) % 2:
            raise ConnectionResetError(104, "reset")

    clients = Clients(connect)
    clients.start()
    try:
        eventually(lambda: len(clients.took_s) >= 2 and sum(clients.errors.values()) >= 2)
    finally:
        clients.stop()
    assert list(clients.errors) == ["ConnectionResetError: [Errno 104] reset"]


def test_clients_that_were_never_started_can_be_stopped() -> None:
    Clients(lambda: None).stop()
