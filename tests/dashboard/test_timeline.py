"""The last rollouts, from what the journal says."""

from __future__ import annotations

from typing import Any

import pytest

from turnout.cli.journal_text import sentence, verdict
from turnout.dashboard.frame import RolloutView
from turnout.dashboard.timeline import ROLLOUTS, STEPS, rollouts
from turnout.state.journal import JournalEvent


def event(kind: str, generation: int, ts: float = 0.0, **evidence: Any) -> JournalEvent:
    return JournalEvent(ts, kind, generation, 1, evidence)


def told(*events: JournalEvent, newest: int = 0, observed: bool = False) -> list[RolloutView]:
    return rollouts(
        events, versions={1: "v1", 2: "v2"}, newest=newest, observed=observed, sentence=sentence, verdict=verdict
    )


STAYED = [event("begin", 1, 10, cause="start"), event("switch", 1, 11, active="a"), event("finish", 1, 12)]


@pytest.mark.parametrize(
    ("events", "result", "ended_ts"),
    [
        ([event("begin", 1, 5)], "under way", None),
        ([event("begin", 1, 5), event("probe", 1, 6, ok=False)], "under way", None),
        ([event("begin", 1, 5), event("switch", 1, 6)], "serving", 6),
        (STAYED, "serving", 12),
        ([*STAYED, event("died", 1, 20)], "serving", 12),
        ([*STAYED[:2], event("rollback", 1, 15, evidence="refused")], "put back", 15),
        ([event("begin", 1), event("abort", 1, 7, reason="no")], "given up", 7),
        ([event("begin_deploy", 1), event("switch_active", 1, 2), event("finish_deploy", 1, 3)], "serving", 3),
    ],
)
def test_how_a_rollout_went_is_read_from_its_last_word(
    events: list[JournalEvent], result: str, ended_ts: float | None
) -> None:
    (one,) = told(*events, newest=1)
    assert (one.result, one.ended_ts) == (result, ended_ts)


def test_only_one_serves_and_it_is_not_one_that_was_put_back() -> None:
    second = [event("begin", 2, 20, cause="deploy"), event("switch", 2, 21), event("rollback", 2, 22)]
    third = [event("begin", 3, 30), event("switch", 3, 31), event("finish", 3, 32)]
    assert [one.result for one in told(*STAYED, *second, newest=2)] == ["put back", "serving"]
    assert [one.result for one in told(*STAYED, *second, *third, newest=3)] == ["serving", "put back", "replaced"]


def test_the_one_whose_window_is_open_is_observed() -> None:
    second = [event("begin", 2, 20, cause="deploy"), event("switch", 2, 21)]
    assert [one.result for one in told(*STAYED, *second, newest=2, observed=True)] == ["observed", "replaced"]


def test_each_is_told_as_the_command_line_tells_it() -> None:
    (one,) = told(*STAYED, newest=1)
    assert (one.generation, one.cause, one.version, one.began_ts) == (1, "start", "v1", 10)
    assert one.text == verdict(1, STAYED)
    assert [step.text for step in one.steps] == [sentence(each) for each in STAYED]


def test_a_long_journal_is_told_within_bounds() -> None:
    many = [event("switch", number, number) for number in range(1, 50) for _ in range(STEPS + 5)]
    seen = told(*many, newest=49)
    assert [one.generation for one in seen] == list(range(49, 49 - ROLLOUTS, -1))
    assert {len(one.steps) for one in seen} == {STEPS}


def test_what_belongs_to_no_rollout_is_none() -> None:
    assert told(event("repair", 0, what="x")) == []
