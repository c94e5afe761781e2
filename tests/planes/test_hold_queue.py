"""Clients are held in their order, within a bound; how long, and how fast they go, the daemon decides."""

from __future__ import annotations

import socket
from itertools import pairwise
from typing import Any, cast

import pytest

from turnout.planes.hold_queue import (
    PACE_S,
    SHORTAGE_S,
    TICK_S,
    TRY_FIRST_S,
    TRY_MOST_S,
    HoldQueue,
    Limit,
    Obstacle,
    Pace,
    Patience,
    PendingClient,
)
from turnout.planes.plane import Counters, Upstream

HOLD_S = 70.0
UPSTREAM = Upstream("a", "127.0.0.1", 1)


class FakeSocket:
    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


def client(since: float = 0.0, reserved: FakeSocket | None = None) -> PendingClient:
    sock = cast("socket.socket", cast("Any", FakeSocket()))
    return PendingClient(sock, 5, since, cast("socket.socket | None", cast("Any", reserved)))


# -- the queue -------------------------------------------------------------------------------------------------------


@pytest.fixture
def counters() -> Counters:
    return Counters()


@pytest.fixture
def queue(counters: Counters) -> HoldQueue:
    return HoldQueue(3, counters)


def filled(queue: HoldQueue) -> list[PendingClient]:
    clients = [client(since) for since in (1.0, 2.0, 3.0)]
    assert all(map(queue.enter, clients))
    return clients


def test_the_client_that_waits_longest_goes_first(queue: HoldQueue) -> None:
    clients = filled(queue)
    assert [queue.next() for _ in range(4)] == [*clients, None]


def test_a_full_queue_takes_no_client_and_counts_none(queue: HoldQueue, counters: Counters) -> None:
    filled(queue)
    assert not queue.enter(client())
    assert (len(queue), counters.held_now, counters.held_total) == (3, 3, 3)


def test_a_client_that_was_released_too_early_has_its_place_back_in_a_full_queue(
    queue: HoldQueue, counters: Counters
) -> None:
    first, *_ = filled(queue)
    assert queue.next() is first
    late = client(4.0)
    assert queue.enter(late)
    queue.return_to_front(first)
    assert queue.next() is first
    assert (counters.held_now, counters.held_total) == (3, 4), "it was counted twice"


def test_a_client_that_has_gone_is_passed_over(queue: HoldQueue, counters: Counters) -> None:
    first, second, third = filled(queue)
    first.gone = third.gone = True
    assert queue.next() is second
    assert queue.next() is None
    assert counters.held_now == 0


def test_only_the_late_ones_are_taken_out_and_the_others_keep_their_order(queue: HoldQueue, counters: Counters) -> None:
    first, second, third = filled(queue)
    second.gone = True
    assert queue.leave_late(11.5, Limit(10.0)) == [first]
    assert (len(queue), counters.held_now) == (1, 1)
    assert queue.next() is third


def test_the_wait_counts_from_the_refusal_or_the_arrival_and_never_beyond_the_whole(queue: HoldQueue) -> None:
    first, second, third = filled(queue)
    assert queue.leave_late(12.0, Limit(10.0, since=2.5)) == []
    assert queue.leave_late(12.6, Limit(10.0, since=2.5)) == [first, second]
    assert queue.leave_late(13.5, Limit(10.0, since=9.0, in_all_s=10.0)) == [third]


def test_without_a_limit_no_client_is_late(queue: HoldQueue) -> None:
    filled(queue)
    assert queue.leave_late(1e9, None) == []
    assert len(queue) == 3


def test_a_descriptor_that_was_reserved_is_closed_once() -> None:
    reserved = FakeSocket()
    pending = client(reserved=reserved)
    pending.close_reserved()
    pending.close_reserved()
    assert (reserved.closed, pending.reserved) == (1, None)


# -- how long --------------------------------------------------------------------------------------------------------


def limit(patience: Patience, *, has_upstream: bool = True) -> Limit | None:
    return patience.limit(has_upstream=has_upstream, hold_timeout_s=HOLD_S)


@pytest.fixture
def patience() -> Patience:
    found = Patience()
    found.refused_s = 0.25
    return found


def test_while_nobody_serves_it_counts_from_a_clients_arrival(patience: Patience) -> None:
    assert limit(patience, has_upstream=False) == Limit(0.25)


def test_nobody_is_late_for_a_daemon_that_was_not_tried_or_that_takes_connections(patience: Patience) -> None:
    assert limit(patience) is None
    patience.met(Obstacle.REFUSES, 5.0)
    patience.taken(6.0)
    assert limit(patience) is None


def test_with_a_daemon_that_refuses_it_counts_from_its_first_refusal(patience: Patience) -> None:
    """And nobody waits longer than hold.timeout in all, which counts from a client's arrival."""
    patience.met(Obstacle.REFUSES, 5.0)
    patience.met(Obstacle.REFUSES, 9.0)
    assert limit(patience) == Limit(0.25, 5.0, HOLD_S)
    patience.obstacle = None
    patience.met(Obstacle.REFUSES, 11.0)
    assert limit(patience) == Limit(0.25, 11.0, HOLD_S), "another target has its own patience"


def test_a_full_queue_is_no_refusal_and_each_connection_that_is_taken_extends_it(patience: Patience) -> None:
    patience.met(Obstacle.FULL, 5.0)
    assert limit(patience) == Limit(HOLD_S, 5.0)
    patience.taken(20.0)
    patience.met(Obstacle.FULL, 21.0)
    assert limit(patience) == Limit(HOLD_S, 21.0)
    patience.met(Obstacle.REFUSES, 80.0)
    assert limit(patience) == Limit(0.25, 80.0, HOLD_S), "its queue was full, and then it died"


def test_a_shortage_of_ours_is_waited_out(patience: Patience) -> None:
    patience.met(Obstacle.SHORT, 5.0)
    assert limit(patience) == Limit(SHORTAGE_S, 5.0)


def test_a_connect_without_an_answer_is_a_refusal_unless_others_were_taken_meanwhile(patience: Patience) -> None:
    patience.taken(1.0)
    patience.unanswered(2.0)
    assert limit(patience) == Limit(0.25, 2.0, HOLD_S)
    patience.taken(3.0)
    patience.unanswered(2.5)
    assert limit(patience) == Limit(HOLD_S, 3.0)


@pytest.mark.parametrize(
    ("has_upstream", "met", "over"),
    [(False, None, True), (True, None, False), (True, Obstacle.REFUSES, True), (True, Obstacle.FULL, False)],
)
def test_without_patience_only_a_daemon_that_takes_connections_is_waited_for(
    *, has_upstream: bool, met: Obstacle | None, over: bool
) -> None:
    patience = Patience()
    if met:
        patience.met(met, 1.0)
    assert patience.is_over(has_upstream=has_upstream) is over


def test_while_no_daemon_is_there_no_queue_is_looked_at_often() -> None:
    """A small queue is looked at every two milliseconds; what waits through a pause is not."""
    pace = Pace(lambda _target: 3, 64)
    pace.may_go(UPSTREAM, 1.0)
    assert pace.pause_s == PACE_S
    pace.forget()
    assert pace.pause_s == TICK_S


# -- how fast --------------------------------------------------------------------------------------------------------


def test_as_many_go_as_the_accept_queue_has_room_for() -> None:
    pace = Pace(lambda _upstream: 3, 64)
    assert pace.may_go(UPSTREAM, 1.0) == 3
    for _ in range(3):
        pace.went()
    assert pace.may_go(UPSTREAM, 1.0 + PACE_S / 2) == 0, "the room was not counted down"
    assert pace.may_go(UPSTREAM, 1.0 + PACE_S) == 3


def test_a_queue_of_unknown_size_holds_nothing_back_but_the_ticks_number() -> None:
    pace = Pace(lambda _upstream: None, 64)
    assert (pace.may_go(UPSTREAM, 1.0), pace.may_go(UPSTREAM, 1.0, 5)) == (64, 5)
    assert not pace.full


def test_a_queue_that_stays_full_is_looked_at_less_and_less_often() -> None:
    asked: list[float] = []
    now = 1.0

    def room(_: Upstream) -> int:
        asked.append(now)
        return 0

    pace = Pace(room, 64)
    for _ in range(100):
        assert pace.may_go(UPSTREAM, now) == 0
        now += PACE_S
    assert pace.full
    pauses = [after - before for before, after in pairwise(asked)]
    assert pauses[0] == pytest.approx(2 * PACE_S)
    assert max(pauses) == pytest.approx(TICK_S)
    assert pace.is_full(UPSTREAM)


def test_after_a_refusal_the_next_try_comes_later_each_time_until_one_succeeds() -> None:
    pace = Pace(lambda _upstream: None, 64)
    now, pauses = 1.0, []
    for _ in range(6):
        pace.failed(now)
        began = now
        while not pace.may_go(UPSTREAM, now):
            now += 0.001
        pauses.append(now - began)
    assert pauses[:3] == pytest.approx([TRY_FIRST_S, 2 * TRY_FIRST_S, 4 * TRY_FIRST_S], abs=0.002)
    assert pauses[-1] == pytest.approx(TRY_MOST_S, abs=0.002)
    pace.went()
    pace.failed(now)
    assert pace.may_go(UPSTREAM, now + TRY_FIRST_S) > 0


def test_a_queue_that_a_connect_found_full_is_looked_at_after_a_pause() -> None:
    pace = Pace(lambda _upstream: 10, 64)
    assert pace.may_go(UPSTREAM, 1.0) == 10
    pace.filled(1.0)
    assert pace.may_go(UPSTREAM, 1.0) == 0
    assert pace.may_go(UPSTREAM, 1.0 + PACE_S) == 10
