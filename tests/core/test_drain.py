"""Which connections of an old daemon are cut, and when."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from turnout.core.drain import Decision, DrainPolicy, Remaining, decide
from turnout.core.model import DrainCause

POLICY = DrainPolicy(grace_s=30, deadline_s=150)  # spread over 60 s
QUIET = Remaining(1, idle_s=5, answered=True, half_sent=False)


def at(now: float, *remaining: Remaining, cause: DrainCause = DrainCause.REPLACED, most: int | None = None) -> Decision:
    many = len(remaining) if most is None else most
    return decide(POLICY, cause, since=0, now=now, remaining=remaining, most=many, healthy=True)


def quiet(count: int) -> tuple[Remaining, ...]:
    return tuple(Remaining(number, 5.0 + number, answered=True, half_sent=False) for number in range(count))


def test_nothing_is_cut_in_the_grace_and_each_is_told_how_long_it_lasts() -> None:
    decision = at(10, QUIET)
    assert (decision.stop, decision.cut) == (False, ())
    assert decision.why == {1: "grace for 20 s more"}


def test_after_it_a_quiet_connection_is_cut() -> None:
    assert at(31, QUIET).cut == (1,)


def test_one_that_is_busy_or_waits_for_an_answer_or_is_half_sent_is_not() -> None:
    busy = Remaining(1, idle_s=0.2, answered=True, half_sent=False)
    asked = Remaining(2, idle_s=50, answered=False, half_sent=False)
    stuck = Remaining(3, idle_s=50, answered=True, half_sent=True)
    decision = at(100, busy, asked, stuck)
    assert decision.cut == ()
    assert decision.why == {
        1: "busy 0.2 s ago",
        2: "its client may be waiting for an answer",
        3: "bytes of it are under way",
    }


def test_not_all_are_cut_in_one_instant_but_spread_over_time_longest_idle_first() -> None:
    many = quiet(100)
    first = at(30.5, *many)
    assert first.cut == (99,)
    assert first.why[0] == "quiet; its turn comes, not all are cut at once"
    assert len(at(60, *many).cut or ()) == 50
    assert len(at(60, *many[:60], most=100).cut or ()) == 10, "those that left by themselves count"
    assert len(at(91, *many).cut or ()) == 100


def test_at_the_deadline_everything_is_cut_and_the_daemon_stopped() -> None:
    assert at(150, Remaining(1, 0.0, answered=False, half_sent=True)) == Decision(stop=True, cut=None)


def test_without_a_deadline_nothing_is_cut_until_somebody_hastens_it() -> None:
    policy = DrainPolicy(grace_s=30, deadline_s=None)

    def decided(cause: DrainCause) -> Decision:
        return decide(policy, cause, since=0, now=1e6, remaining=[QUIET], most=1, healthy=True)

    assert decided(DrainCause.REPLACED).cut == ()
    assert decided(DrainCause.HASTENED).cut == (1,)


def test_in_haste_there_is_no_grace_and_no_spreading_but_the_busy_still_get_their_answer() -> None:
    busy = Remaining(200, idle_s=9, answered=False, half_sent=False)
    decision = at(0.1, *quiet(100), busy, cause=DrainCause.HASTENED)
    assert len(decision.cut or ()) == 100
    assert list(decision.why) == [200]


def test_without_connections_it_is_stopped_and_uncountable_ones_wait_for_the_deadline() -> None:
    assert at(1).stop
    for now, stop in ((149, False), (150, True)):
        decision = decide(POLICY, DrainCause.REPLACED, since=0, now=now, remaining=None, most=0, healthy=True)
        assert decision.stop is stop


remaining = st.lists(
    st.builds(Remaining, st.integers(0, 500), st.floats(0, 100), st.booleans(), st.booleans()),
    max_size=40,
    unique_by=lambda one: one.id,
)


@given(remaining, st.floats(0, 200), st.sampled_from(DrainCause), st.integers(0, 50))
def test_every_connection_is_either_cut_or_told_why_not(
    here: list[Remaining], now: float, cause: DrainCause, gone: int
) -> None:
    decision = at(now, *here, cause=cause, most=len(here) + gone)
    if decision.stop:
        return
    cut = set(decision.cut or ())
    assert cut | set(decision.why) == {one.id for one in here}
    assert not cut & set(decision.why)
    assert all(one.answered and not one.half_sent and one.idle_s >= POLICY.quiet_s for one in here if one.id in cut)


def test_one_whose_successor_waits_for_its_end_gets_no_grace_and_few_seconds() -> None:
    assert at(0.1, QUIET, cause=DrainCause.RETIRED).cut == (1,)
    asked = Remaining(2, idle_s=50, answered=False, half_sent=False)
    assert not at(4.9, asked, cause=DrainCause.RETIRED).stop
    assert at(5.0, asked, cause=DrainCause.RETIRED) == Decision(stop=True, cut=None)
    assert at(0.1, cause=DrainCause.RETIRED) == Decision(stop=True)
