"""What a router counts of rollouts, from the snapshots that it meets."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from turnout.core.deployment import (
    abort_deploy,
    begin_deploy,
    deactivate,
    finish_deploy,
    mark_candidate_healthy,
    record_health_failure,
    retire_active,
    rollback_active,
    switch_active,
)
from turnout.core.membership import register_daemon
from turnout.core.model import Cause, Daemon, Identity, Snapshot
from turnout.core.outcome import Outcome
from turnout.router.rollout_metrics import RolloutTimes

OWNER = Identity(4711)


class Story:
    """One service from event to event, a second apart; each was written 0.02 s before the router met it."""

    def __init__(self) -> None:
        self.times = RolloutTimes()
        self.snapshot = Snapshot()
        self.now = 100.0
        self.see()

    def see(self) -> None:
        self.now += 1.0
        self.times.on_snapshot(self.snapshot, self.now, lambda: 0.02)

    def do(self, event: Callable[[Snapshot], Outcome], *, seen: bool = True) -> None:
        outcome = event(self.snapshot)
        assert outcome.applied, outcome
        self.snapshot = outcome.snapshot
        if seen:
            self.see()

    @property
    def generation(self) -> int:
        return self.snapshot.deployment.generation

    def begin(self, boot: str, cause: Cause = Cause.DEPLOY, *, seen: bool = True, supersede: bool = False) -> None:
        self.do(lambda snap: begin_deploy(snap, boot, owner=OWNER, cause=cause, supersede=supersede), seen=seen)

    def roll(self, boot: str, cause: Cause = Cause.DEPLOY, *, seen: bool = True) -> None:
        self.begin(boot, cause, seen=seen)
        self.finish_roll(boot, seen=seen)

    def finish_roll(self, boot: str, *, seen: bool = True) -> None:
        generation = self.generation
        self.do(lambda snap: register_daemon(snap, Daemon(boot, port=1)), seen=seen)
        self.do(lambda snap: mark_candidate_healthy(snap, generation, boot), seen=seen)
        self.do(lambda snap: switch_active(snap, generation, boot, now=1.0))

    @property
    def counts(self) -> tuple[int, int, int]:
        return self.times.switches, self.times.rollbacks, self.times.aborted


@pytest.fixture
def story() -> Story:
    story = Story()
    story.roll("a")
    return story


def test_a_rollout_is_timed_from_its_begin_and_a_switch_from_its_write(story: Story) -> None:
    assert story.counts == (1, 0, 0)
    assert story.times.rollout_s.total == pytest.approx(3.0), "begin, register, mark, switch"
    assert story.times.switch_s.total == pytest.approx(0.02)


def test_what_a_router_finds_at_its_start_is_not_counted(story: Story) -> None:
    fresh = RolloutTimes()
    fresh.on_snapshot(story.snapshot, 1.0, lambda: 7.0)
    fresh.on_snapshot(story.snapshot, 2.0, lambda: 7.0)
    assert (fresh.switches, fresh.switch_s.total) == (0, 0.0)


def test_a_failed_check_and_the_windows_end_are_no_switches(story: Story) -> None:
    story.roll("b")
    story.do(lambda snap: record_health_failure(snap, 2, "b", reason="", threshold=3))
    story.do(lambda snap: finish_deploy(snap, 2))
    assert story.counts == (2, 0, 0)


def test_going_back_is_a_rollback_warm_or_cold(story: Story) -> None:
    story.roll("b")
    story.do(lambda snap: rollback_active(snap, 2, "a", reason="bad"))
    assert story.counts == (3, 1, 0)
    story.roll("c", Cause.ROLLBACK)
    assert story.counts == (4, 2, 0)
    assert sum(story.times.rollout_s.counts) == 3, "a warm rollback has no begin"
    assert sum(story.times.switch_s.counts) == 4


def test_a_rollout_that_ends_before_its_switch_is_aborted_once(story: Story) -> None:
    story.begin("b")
    story.do(lambda snap: abort_deploy(snap, 2, reason="never healthy"))
    assert story.counts == (1, 0, 1)


def test_one_that_is_superseded_is_aborted_too(story: Story) -> None:
    story.begin("b")
    story.begin("c", supersede=True)
    story.finish_roll("c")
    assert story.counts == (2, 0, 1)
    assert story.times.rollout_s.total == pytest.approx(6.0), "each from its own begin"


def test_a_daemon_that_made_room_and_was_given_back_is_no_switch(story: Story) -> None:
    story.begin("b")
    story.do(lambda snap: retire_active(snap, 2, "a"))
    story.do(lambda snap: abort_deploy(snap, 2, reason="interrupted", restore="a"))
    assert story.counts == (1, 0, 1)


def test_a_recreate_is_one_switch(story: Story) -> None:
    story.begin("b")
    story.do(lambda snap: retire_active(snap, 2, "a"))
    story.finish_roll("b")
    assert story.counts == (2, 0, 0)


def test_steps_that_no_look_met_cost_the_rollouts_time_and_nothing_else(story: Story) -> None:
    before = story.times.rollout_s.total
    story.roll("b", seen=False)
    assert story.counts == (2, 0, 0)
    assert story.times.rollout_s.total == before


def test_a_stop_is_neither_and_the_next_start_is_a_switch(story: Story) -> None:
    story.do(lambda snap: deactivate(snap, 1, "a", reason="stopped"))
    assert story.counts == (1, 0, 0)
    story.roll("b", Cause.START)
    assert story.counts == (2, 0, 0)


def test_a_write_of_unknown_age_is_counted_without_a_time(story: Story) -> None:
    generation = story.generation
    outcome = begin_deploy(story.snapshot, "b", owner=OWNER)
    snap = register_daemon(outcome.snapshot, Daemon("b", port=1)).snapshot
    snap = mark_candidate_healthy(snap, generation + 1, "b").snapshot
    snap = switch_active(snap, generation + 1, "b", now=1.0).snapshot
    story.times.on_snapshot(snap, 200.0, lambda: None)
    assert story.counts == (2, 0, 0)
    assert sum(story.times.switch_s.counts) == 1
