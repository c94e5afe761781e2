"""Whether a process waits on a listener: every way in which the kernel can show it, or not show it."""

from __future__ import annotations

import pytest

from turnout.core.acceptors import Call, HolderView, Thread, Waited, all_waited_on, waited_on

LISTENER, OTHER = 11, 12
HOLDS = {3: LISTENER}


def threads(*found: Thread) -> tuple[Thread, ...]:
    return found


@pytest.mark.parametrize(
    ("process", "expected"),
    [
        pytest.param(HolderView(HOLDS, frozenset({LISTENER})), Waited.YES, id="an epoll set has it"),
        pytest.param(HolderView(HOLDS, frozenset({OTHER})), Waited.NO, id="an epoll set has another one"),
        pytest.param(
            HolderView(HOLDS, threads=threads(Thread(Call.ACCEPT, frozenset({3})))), Waited.YES, id="in accept"
        ),
        pytest.param(
            HolderView(HOLDS, threads=threads(Thread(Call.ACCEPT, frozenset({4})))), Waited.NO, id="in accept elsewhere"
        ),
        pytest.param(
            HolderView(HOLDS, threads=threads(Thread(Call.OTHER), Thread(Call.POLL, frozenset({1, 3})))),
            Waited.YES,
            id="its second thread is in poll",
        ),
        pytest.param(HolderView(HOLDS, threads=threads(Thread(Call.OTHER))), Waited.NO, id="asleep"),
        pytest.param(HolderView(HOLDS, threads=threads(Thread(Call.ACCEPT))), Waited.YES, id="accepts on its only one"),
        pytest.param(
            HolderView({3: LISTENER, 4: OTHER}, threads=threads(Thread(Call.ACCEPT))),
            Waited.UNKNOWN,
            id="accepts on one of two",
        ),
        pytest.param(HolderView(HOLDS, threads=threads(Thread(Call.POLL))), Waited.UNKNOWN, id="polls something"),
        pytest.param(HolderView(HOLDS, threads=threads(Thread(Call.HIDDEN))), Waited.UNKNOWN, id="a hidden thread"),
        pytest.param(HolderView(HOLDS, hidden=True), Waited.UNKNOWN, id="hidden descriptors"),
        pytest.param(HolderView(HOLDS, has_ring=True), Waited.UNKNOWN, id="a ring without an accept"),
        pytest.param(HolderView(HOLDS, has_ring=True, ring_accepts=True), Waited.YES, id="a ring with an accept"),
        pytest.param(
            HolderView({3: LISTENER, 4: OTHER}, has_ring=True, ring_accepts=True),
            Waited.UNKNOWN,
            id="a ring with an accept on one of two",
        ),
        pytest.param(HolderView({4: OTHER}, threads=threads(Thread(Call.OTHER))), Waited.UNKNOWN, id="no holder"),
    ],
)
def test_each_way_to_wait_is_told_from_none(process: HolderView, expected: Waited) -> None:
    assert waited_on(LISTENER, [process]) is expected


def test_one_worker_that_waits_is_enough() -> None:
    idle = HolderView(HOLDS, threads=threads(Thread(Call.OTHER)))
    waiting = HolderView({7: LISTENER}, threads=threads(Thread(Call.ACCEPT, frozenset({7}))))
    assert waited_on(LISTENER, [idle, waiting]) is Waited.YES
    assert waited_on(LISTENER, [idle, idle]) is Waited.NO


def test_a_process_that_hides_its_descriptors_may_be_a_worker_that_waits() -> None:
    assert waited_on(LISTENER, [HolderView(HOLDS), HolderView({}, hidden=True)]) is Waited.UNKNOWN


def test_an_epoll_set_counts_in_a_process_that_closed_its_own_descriptor_of_the_listener() -> None:
    assert waited_on(LISTENER, [HolderView(HOLDS), HolderView({}, frozenset({LISTENER}))]) is Waited.YES


def test_of_several_listeners_at_an_address_each_must_be_waited_on() -> None:
    both = HolderView({3: LISTENER, 4: OTHER}, frozenset({LISTENER}), threads(Thread(Call.OTHER)))
    assert all_waited_on([LISTENER], [both]) is Waited.YES
    assert all_waited_on([LISTENER, OTHER], [both]) is Waited.NO
    assert all_waited_on([], [both]) is Waited.UNKNOWN
