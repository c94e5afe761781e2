"""The state machine: the table, and every way in which an event can be refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from turnout.core.deployment import (
    TRANSITIONS,
    Event,
    abort_deploy,
    begin_deploy,
    deactivate,
    fail_window,
    finish_deploy,
    mark_candidate_healthy,
    record_health_failure,
    record_health_success,
    retire_active,
    rollback_active,
    set_desired,
    switch_active,
)
from turnout.core.membership import beat, forget_daemon, register_daemon
from turnout.core.model import Cause, Daemon, Desired, DrainCause, Identity, Snapshot, State, Workspace
from turnout.core.outcome import Outcome, Reason, explain

OWNER = Identity(4711)


def must(outcome: Outcome) -> Snapshot:
    assert outcome.applied, outcome
    return outcome.snapshot


def refused(outcome: Outcome, snap: Snapshot, reason: Reason) -> None:
    """Refused for that reason, and nothing is another than before."""
    assert not outcome.applied
    assert outcome.reason is reason
    assert outcome.snapshot is snap
    assert explain(outcome)


def begun(snap: Snapshot = Snapshot(), boot: str = "a", cause: Cause = Cause.DEPLOY) -> Snapshot:  # noqa: B008  # frozen
    snap = must(begin_deploy(snap, boot, owner=OWNER, cause=cause))
    return must(register_daemon(snap, Daemon(boot, port=len(snap.daemons) + 1)))


def ready(snap: Snapshot = Snapshot(), boot: str = "a") -> Snapshot:  # noqa: B008
    snap = begun(snap, boot)
    return must(mark_candidate_healthy(snap, snap.deployment.generation, boot))


def serving(boot: str = "a", snap: Snapshot = Snapshot()) -> Snapshot:  # noqa: B008
    snap = ready(snap, boot)
    return must(switch_active(snap, snap.deployment.generation, boot, now=1.0))


def window() -> Snapshot:
    """b has just taken over from a, with one workspace."""
    snap = serving()
    return serving("b", replace(snap, workspaces={"/w": Workspace("/w", "a"), "/x": Workspace("/x", "else")}))


STATES = {
    State.IDLE: serving,
    State.STARTING: lambda: begun(serving(), "b"),
    State.ROLLING_BACK: lambda: begun(serving(), "b", Cause.ROLLBACK),
    State.READY: lambda: ready(serving(), "b"),
    State.SWITCHED: window,
}


def fire(event: Event, snap: Snapshot) -> Outcome:
    """The event with arguments that fit the block, so that only the state can be in its way."""
    block = snap.deployment
    generation, candidate = block.generation, block.candidate_boot_id or "nobody"
    return {
        Event.BEGIN: lambda: begin_deploy(snap, "fresh", owner=OWNER),
        Event.RETIRE: lambda: retire_active(snap, generation, block.active_boot_id),
        Event.MARK: lambda: mark_candidate_healthy(snap, generation, candidate),
        Event.SWITCH: lambda: switch_active(snap, generation, candidate, now=2.0),
        Event.FAILURE: lambda: record_health_failure(snap, generation, block.active_boot_id, reason="x", threshold=3),
        Event.SUCCESS: lambda: record_health_success(snap, generation, block.active_boot_id),
        Event.ROLLBACK: lambda: rollback_active(snap, generation, block.old_boot_id, reason="x"),
        Event.FINISH: lambda: finish_deploy(snap, generation),
        Event.FAIL_WINDOW: lambda: fail_window(snap, generation, block.active_boot_id, reason="x"),
        Event.ABORT: lambda: abort_deploy(snap, generation, reason="x"),
        Event.DEACTIVATE: lambda: deactivate(snap, generation, block.active_boot_id, reason="x"),
    }[event]()


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("event", list(Event))
def test_each_event_happens_in_the_states_of_the_table_and_in_no_other(event: Event, state: State) -> None:
    snap = STATES[state]()
    assert snap.deployment.state is state
    outcome = fire(event, snap)
    if state in TRANSITIONS[event]:
        assert outcome.ok, outcome
        assert outcome.applied or event is Event.SUCCESS
    else:
        assert not outcome.applied
        assert outcome.snapshot is snap


@pytest.mark.parametrize("event", [event for event in Event if event is not Event.BEGIN])
@pytest.mark.parametrize("off", [-1, 1])
def test_a_stale_generation_changes_nothing(event: Event, off: int) -> None:
    for make in STATES.values():
        snap = make()
        block = replace(snap.deployment, generation=snap.deployment.generation + off)
        outcome = fire(event, replace(snap, deployment=block))
        attempts: dict[Event, Callable[[Snapshot], Outcome]] = {
            Event.RETIRE: lambda s: retire_active(s, s.deployment.generation - off, "a"),
            Event.MARK: lambda s: mark_candidate_healthy(s, s.deployment.generation - off, "b"),
            Event.SWITCH: lambda s: switch_active(s, s.deployment.generation - off, "b", now=0),
            Event.FAILURE: lambda s: record_health_failure(
                s, s.deployment.generation - off, "b", reason="", threshold=3
            ),
            Event.SUCCESS: lambda s: record_health_success(s, s.deployment.generation - off, "b"),
            Event.ROLLBACK: lambda s: rollback_active(s, s.deployment.generation - off, "a", reason=""),
            Event.FINISH: lambda s: finish_deploy(s, s.deployment.generation - off),
            Event.FAIL_WINDOW: lambda s: fail_window(s, s.deployment.generation - off, "b", reason="x"),
            Event.ABORT: lambda s: abort_deploy(s, s.deployment.generation - off, reason=""),
            Event.DEACTIVATE: lambda s: deactivate(s, s.deployment.generation - off, "b", reason=""),
        }
        refused(attempts[event](snap), snap, Reason.STALE_GENERATION)
        assert outcome.snapshot.deployment.generation == block.generation


def test_every_applied_event_raises_the_revision_by_one() -> None:
    snap = Snapshot()
    steps: tuple[Callable[[Snapshot], Outcome], ...] = (
        lambda s: begin_deploy(s, "a", owner=OWNER),
        lambda s: register_daemon(s, Daemon("a", port=1)),
        lambda s: mark_candidate_healthy(s, 1, "a"),
        lambda s: switch_active(s, 1, "a", now=0),
        lambda s: set_desired(s, Desired.STOPPED),
        lambda s: deactivate(s, 1, "a", reason="stop"),
        lambda s: forget_daemon(s, "a"),
    )
    for number, step in enumerate(steps, start=1):
        snap = must(step(snap))
        assert snap.deployment.revision == number


def test_switching_twice_is_already_and_never_makes_old_the_active_one() -> None:
    snap = window()
    outcome = switch_active(snap, 2, "b", now=9.0)
    refused(outcome, snap, Reason.ALREADY)
    assert outcome.ok
    assert snap.deployment.old_boot_id == "a"
    assert snap.deployment.active_boot_id == "b"


def test_switching_before_the_candidate_is_healthy_is_refused() -> None:
    snap = begun(serving(), "b")
    refused(switch_active(snap, 2, "b", now=0), snap, Reason.WRONG_STATE)


def test_the_first_daemon_needs_no_window() -> None:
    assert serving().deployment.state is State.IDLE


def test_a_refresh_switches_and_finishes_in_one_write() -> None:
    snap = ready(serving(), "b")
    done = must(switch_active(snap, 2, "b", now=0, window=False))
    assert done.deployment.state is State.IDLE
    assert done.deployment.revision == snap.deployment.revision + 1
    assert done.daemons["a"].drain_cause is DrainCause.REPLACED


def test_a_candidate_that_is_unknown_is_never_marked_or_switched_to() -> None:
    snap = must(begin_deploy(serving(), "ghost", owner=OWNER))
    refused(mark_candidate_healthy(snap, 2, "ghost"), snap, Reason.UNKNOWN_DAEMON)
    snap = ready(serving(), "b")
    gone = replace(snap, daemons={"a": snap.daemons["a"]})
    refused(switch_active(gone, 2, "b", now=0), gone, Reason.UNKNOWN_DAEMON)


def test_the_active_daemon_is_no_candidate() -> None:
    snap = serving()
    refused(begin_deploy(snap, "a", owner=OWNER), snap, Reason.CANDIDATE_IS_ACTIVE)


def test_expectations_that_no_longer_hold_are_said_and_not_passed_over() -> None:
    snap = serving()
    refused(begin_deploy(snap, "b", owner=OWNER, expected_active_boot_id="z"), snap, Reason.ACTIVE_CHANGED)
    refused(begin_deploy(snap, "b", owner=OWNER, expected_generation=7), snap, Reason.GENERATION_CHANGED)
    assert begin_deploy(snap, "b", owner=OWNER, expected_active_boot_id="a", expected_generation=1).applied


def test_a_begin_during_another_rollout_names_it() -> None:
    for state in (State.STARTING, State.ROLLING_BACK, State.READY, State.SWITCHED):
        snap = STATES[state]()
        outcome = begin_deploy(snap, "c", owner=OWNER)
        refused(outcome, snap, Reason.IN_PROGRESS)
        assert "2" in explain(outcome)


def test_superseding_a_window_finishes_it_and_one_in_flight_aborts_it_in_one_write() -> None:
    snap = window()
    new = must(begin_deploy(snap, "c", owner=OWNER, supersede=True))
    assert new.deployment.generation == 3
    assert new.deployment.revision == snap.deployment.revision + 1
    assert new.deployment.active_boot_id == "b"
    assert new.daemons["a"].drain_cause is DrainCause.REPLACED
    flying = begun(serving(), "b")
    newer = must(begin_deploy(flying, "c", owner=OWNER, supersede=True))
    assert newer.daemons["b"].drain_cause is DrainCause.FAILED
    assert newer.deployment.active_boot_id == "a"


def test_three_failures_with_a_restore_are_a_rollback_in_one_write() -> None:
    snap = window()
    for streak in (1, 2):
        snap = must(record_health_failure(snap, 2, "b", reason="silent", threshold=3, restore="a"))
        assert snap.deployment.health_fail_streak == streak
        assert snap.deployment.state is State.SWITCHED
    back = must(record_health_failure(snap, 2, "b", reason="silent", threshold=3, restore="a"))
    assert back.deployment.revision == snap.deployment.revision + 1
    assert back.deployment.state is State.IDLE
    assert back.deployment.active_boot_id == "a"
    assert back.deployment.rollback_reason == "silent"
    assert back.daemons["b"].drain_cause is DrainCause.FAILED
    assert not back.daemons["a"].draining


def test_without_a_restore_the_streak_stays_at_the_threshold_and_what_is_active_stays() -> None:
    snap = window()
    for _ in range(3):
        snap = must(record_health_failure(snap, 2, "b", reason="", threshold=3))
    assert snap.deployment.health_fail_streak == 3
    refused(record_health_failure(snap, 2, "b", reason="", threshold=3), snap, Reason.ALREADY)
    assert (
        must(record_health_failure(snap, 2, "b", reason="", threshold=3, restore="a")).deployment.active_boot_id == "a"
    )


def test_a_failed_window_with_nothing_to_restore_keeps_the_active_daemon_and_says_why() -> None:
    snap = window()
    failed = must(fail_window(snap, 2, "b", reason="both are dead"))
    block = failed.deployment
    assert (block.state, block.active_boot_id, block.old_boot_id) == (State.IDLE, "b", "")
    assert block.rollback_reason == "both are dead"
    assert failed.daemons["a"].draining
    refused(finish_deploy(failed, 2), failed, Reason.WRONG_STATE)
    refused(fail_window(snap, 2, "a", reason=""), snap, Reason.NOT_ACTIVE)


def test_a_success_sets_the_count_to_zero() -> None:
    snap = window()
    for _ in range(5):
        for _ in range(2):
            snap = must(record_health_failure(snap, 2, "b", reason="", threshold=3, restore="a"))
        snap = must(record_health_success(snap, 2, "b"))
        assert snap.deployment.health_fail_streak == 0
    assert snap.deployment.active_boot_id == "b"


def test_a_failure_of_the_old_daemon_counts_for_nobody() -> None:
    snap = window()
    refused(record_health_failure(snap, 2, "a", reason="", threshold=3), snap, Reason.NOT_ACTIVE)


@pytest.mark.parametrize("restore", ["", "b", "unknown", "c"])
def test_a_restore_that_is_empty_active_unknown_or_not_the_previous_one_is_refused(restore: str) -> None:
    snap = window()
    snap = must(register_daemon(snap, Daemon("c", port=9)))
    refused(rollback_active(snap, 2, restore, reason="x"), snap, Reason.RESTORE_UNAVAILABLE)


def test_rolling_back_twice_is_already() -> None:
    back = must(rollback_active(window(), 2, "a", reason="x"))
    refused(rollback_active(back, 2, "a", reason="x"), back, Reason.ALREADY)


def test_a_rollback_returns_exactly_the_workspaces_that_the_switch_moved() -> None:
    snap = window()
    assert {w.boot_id for w in snap.workspaces.values()} == {"b", "else"}
    remapped = {**snap.workspaces, "/new": Workspace("/new", "b")}
    back = must(rollback_active(replace(snap, workspaces=remapped), 2, "a", reason="x"))
    assert {root: w.boot_id for root, w in back.workspaces.items()} == {"/w": "a", "/x": "else", "/new": "b"}


def test_a_workspace_that_a_client_mapped_elsewhere_meanwhile_stays_there() -> None:
    snap = window()
    moved_on = replace(snap, workspaces={**snap.workspaces, "/w": Workspace("/w", "mine")})
    assert must(rollback_active(moved_on, 2, "a", reason="x")).workspaces["/w"].boot_id == "mine"


def test_http_fields_move_with_the_workspace_and_return_with_it() -> None:
    snap = serving()
    snap = replace(
        snap, workspaces={"/w": Workspace("/w", "a", http_host="h", http_port=1, http_pid=2, extra={"k": 1})}
    )
    snap = begun(snap, "b")
    snap = must(register_daemon(snap, replace(snap.daemons["b"], http_host="n", http_port=3, http_pid=4)))
    snap = must(mark_candidate_healthy(snap, 2, "b"))
    snap = must(switch_active(snap, 2, "b", now=0))
    moved = snap.workspaces["/w"]
    assert (moved.http_host, moved.http_port, moved.http_pid, moved.extra) == ("n", 3, 4, {"k": 1})
    back = must(rollback_active(snap, 2, "a", reason="x")).workspaces["/w"]
    assert (back.boot_id, back.http_host, back.http_port, back.http_pid) == ("a", "h", 1, 2)


def test_aborting_leaves_the_active_daemon_and_marks_the_candidate() -> None:
    snap = must(abort_deploy(begun(serving(), "b"), 2, reason="no luck"))
    assert snap.deployment.active_boot_id == "a"
    assert snap.deployment.candidate_boot_id == ""
    assert snap.daemons["b"].drain_cause is DrainCause.FAILED
    assert not snap.daemons["a"].draining


def test_deactivating_in_a_window_takes_the_warm_daemon_along() -> None:
    snap = must(deactivate(window(), 2, "b", reason="stop"))
    assert snap.deployment.active_boot_id == ""
    assert {d.drain_cause for d in snap.daemons.values()} == {DrainCause.STOPPED}


def test_what_the_block_names_is_not_forgotten() -> None:
    snap = window()
    for boot in ("a", "b"):
        refused(forget_daemon(snap, boot), snap, Reason.STILL_NAMED)
    finished = must(finish_deploy(snap, 2))
    assert "a" not in must(forget_daemon(finished, "a")).daemons


def test_registering_keeps_the_keys_that_are_not_ours() -> None:
    snap = must(register_daemon(Snapshot(), Daemon("a", port=1, extra={"theirs": [1]})))
    snap = must(register_daemon(snap, Daemon("a", port=2)))
    assert snap.daemons["a"].extra == {"theirs": [1]}
    assert register_daemon(snap, Daemon("a", port=2)).reason is Reason.ALREADY


def test_what_a_cold_rollback_leaves_behind_is_never_gone_back_to() -> None:
    snap = window()
    block = snap.deployment
    failed = block.active_boot_id
    begun = begin_deploy(snap, "again", owner=Identity(1), supersede=True, cause=Cause.ROLLBACK).snapshot
    assert begun.deployment.state is State.ROLLING_BACK
    assert begun.daemons[block.old_boot_id].draining, "the one that is gone is drained"
    assert not begun.daemons[failed].draining, "what is active serves until the switch"
    ready = mark_candidate_healthy(
        register_daemon(begun, Daemon("again", port=9)).snapshot, block.generation + 1, "again"
    ).snapshot
    after = switch_active(ready, block.generation + 1, "again", now=1.0).snapshot
    assert (after.deployment.state, after.deployment.old_boot_id) == (State.IDLE, "")
    assert after.daemons[failed].drain_cause is DrainCause.FAILED
    assert after.daemons[failed].draining


def test_a_rollback_from_idle_is_refused() -> None:
    snap = serving()
    refused(rollback_active(snap, snap.deployment.generation, "a", reason="bad"), snap, Reason.WRONG_STATE)


def test_a_restore_that_is_draining_is_refused() -> None:
    snap = window()
    snap = replace(snap, daemons={**snap.daemons, "a": replace(snap.daemons["a"], draining=True)})
    refused(rollback_active(snap, snap.deployment.generation, "a", reason="bad"), snap, Reason.RESTORE_UNAVAILABLE)


def test_two_failures_before_the_switch_and_one_after_it_do_not_roll_back() -> None:
    snap = ready(serving(), "b")
    generation = snap.deployment.generation
    for boot in ("a", "b"):
        early = record_health_failure(snap, generation, boot, reason="bad", threshold=3, restore="a")
        refused(early, snap, Reason.WRONG_STATE)
    snap = must(switch_active(snap, generation, "b", now=1.0))
    once = must(record_health_failure(snap, generation, "b", reason="bad", threshold=3, restore="a"))
    assert (once.deployment.active_boot_id, once.deployment.health_fail_streak) == ("b", 1)


def test_a_failure_from_a_checker_that_is_one_generation_late_is_ignored() -> None:
    snap = window()
    late = record_health_failure(snap, snap.deployment.generation - 1, "b", reason="bad", threshold=1, restore="a")
    refused(late, snap, Reason.STALE_GENERATION)


def test_a_clock_that_jumps_back_leaves_the_events_as_they_are() -> None:
    """Wall-clock times are information: an earlier one is kept as it is, and nothing is decided by it."""
    snap = serving()
    snap = must(beat(snap, "a", now=500.0))
    snap = must(beat(snap, "a", now=100.0))
    assert snap.daemons["a"].last_seen_ts == 100.0
    snap = must(switch_active(ready(snap, "b"), snap.deployment.generation + 1, "b", now=-5.0))
    assert (snap.deployment.state, snap.deployment.switch_ts) == (State.SWITCHED, -5.0)
