"""Daemons that own their data: between the old one and the new one nothing is active, and the registry says so."""

from __future__ import annotations

from dataclasses import replace

import pytest

from turnout.core.deployment import (
    abort_deploy,
    begin_deploy,
    finish_deploy,
    mark_candidate_healthy,
    record_health_failure,
    retire_active,
    rollback_active,
    switch_active,
)
from turnout.core.membership import forget_daemon, hasten_drain, register_daemon
from turnout.core.model import Cause, Daemon, DrainCause, Identity, Snapshot, State, Workspace
from turnout.core.outcome import Outcome, Reason
from turnout.state.registry.decoder import loads
from turnout.state.registry.encoder import dumps

OWNER = Identity(4711)


def must(outcome: Outcome) -> Snapshot:
    assert outcome.applied, outcome
    return outcome.snapshot


def serving(boot: str = "a") -> Snapshot:
    snap = must(begin_deploy(Snapshot(), boot, owner=OWNER))
    snap = must(register_daemon(snap, Daemon(boot, port=1)))
    snap = must(mark_candidate_healthy(snap, 1, boot))
    snap = must(switch_active(snap, 1, boot, now=1.0))
    return replace(snap, workspaces={"/w": Workspace("/w", boot), "/x": Workspace("/x", "else")})


def retired(cause: Cause = Cause.DEPLOY) -> Snapshot:
    """a served, and makes room for b."""
    snap = must(begin_deploy(serving(), "b", owner=OWNER, cause=cause))
    return must(retire_active(snap, 2, "a"))


def switched(snap: Snapshot, boot: str = "b", *, window: bool = True) -> Snapshot:
    generation = snap.deployment.generation
    snap = must(register_daemon(snap, Daemon(boot, port=2)))
    snap = must(mark_candidate_healthy(snap, generation, boot))
    return must(switch_active(snap, generation, boot, now=2.0, window=window))


def test_what_makes_room_is_active_no_more_and_still_named() -> None:
    block = retired().deployment
    assert (block.active_boot_id, block.old_boot_id, block.candidate_boot_id) == ("", "a", "b")
    assert block.state is State.STARTING
    assert block.retired_boot_id == "a"
    daemon = retired().daemons["a"]
    assert (daemon.draining, daemon.drain_cause) == (True, DrainCause.RETIRED)
    assert forget_daemon(retired(), "a").reason is Reason.STILL_NAMED
    assert hasten_drain(retired(), "a").reason is Reason.STILL_NAMED


def test_retiring_twice_is_already_so_and_only_the_active_one_can_be_retired() -> None:
    snap = retired()
    assert retire_active(snap, 2, "a").reason is Reason.ALREADY
    assert retire_active(snap, 2, "b").reason is Reason.NOT_ACTIVE
    assert retire_active(snap, 2, "").reason is Reason.NOT_ACTIVE
    assert retire_active(snap, 1, "a").reason is Reason.STALE_GENERATION
    assert retire_active(serving(), 1, "a").reason is Reason.WRONG_STATE


@pytest.mark.parametrize("make", [retired, lambda: retired(Cause.ROLLBACK), lambda: switched(retired())])
def test_each_state_of_a_recreate_survives_the_file(make: object) -> None:
    assert callable(make)
    snap = make()
    found = loads(dumps(snap))
    assert found.snapshot == snap
    assert found.report == ()


def test_the_switch_moves_the_workspaces_of_the_retired_one_and_opens_a_window() -> None:
    snap = switched(retired())
    block = snap.deployment
    assert (block.state, block.active_boot_id, block.old_boot_id) == (State.SWITCHED, "b", "a")
    assert {root: workspace.boot_id for root, workspace in snap.workspaces.items()} == {"/w": "b", "/x": "else"}


def test_a_window_never_leads_back_to_a_daemon_that_was_retired() -> None:
    snap = switched(retired())
    assert rollback_active(snap, 2, "a", reason="x").reason is Reason.RESTORE_UNAVAILABLE
    for _ in range(5):
        outcome = record_health_failure(snap, 2, "b", reason="bad", threshold=3, restore="a")
        snap = outcome.snapshot
    assert snap.deployment.state is State.SWITCHED
    assert snap.deployment.active_boot_id == "b"
    assert snap.deployment.health_fail_streak == 3


def test_after_the_window_the_retired_one_can_be_forgotten() -> None:
    snap = must(finish_deploy(switched(retired()), 2))
    assert must(forget_daemon(snap, "a")).daemons.keys() == {"b"}


def test_a_refresh_has_no_window() -> None:
    block = switched(retired(), window=False).deployment
    assert (block.state, block.old_boot_id) == (State.IDLE, "")


def test_a_failed_start_hands_what_it_retired_to_the_rollout_that_brings_it_back() -> None:
    """One write: whoever is held must not be turned away in between."""
    snap = must(begin_deploy(retired(), "c", owner=OWNER, supersede=True, cause=Cause.ROLLBACK))
    block = snap.deployment
    assert (block.state, block.active_boot_id, block.old_boot_id) == (State.ROLLING_BACK, "", "a")
    assert (snap.daemons["a"].draining, block.candidate_boot_id) == (True, "c")
    snap = switched(snap, "c", window=False)
    assert snap.workspaces["/w"].boot_id == "c"
    assert snap.deployment.state is State.IDLE


def test_the_retired_daemon_itself_is_no_candidate() -> None:
    outcome = begin_deploy(retired(), "a", owner=OWNER, supersede=True)
    assert outcome.reason is Reason.WRONG_CANDIDATE


def test_an_abort_before_the_stop_lets_the_retired_one_serve_again() -> None:
    snap = must(abort_deploy(retired(), 2, reason="Ctrl-C", restore="a"))
    block = snap.deployment
    assert (block.state, block.active_boot_id, block.old_boot_id) == (State.IDLE, "a", "")
    assert (snap.daemons["a"].draining, snap.daemons["a"].drain_cause) == (False, DrainCause.NONE)
    assert snap.workspaces["/w"].boot_id == "a"


def test_an_abort_without_it_leaves_nothing_active_and_the_retired_one_on_its_way_out() -> None:
    snap = must(abort_deploy(retired(), 2, reason="its owner died"))
    assert (snap.deployment.active_boot_id, snap.deployment.old_boot_id) == ("", "")
    assert snap.daemons["a"].draining
    assert must(forget_daemon(snap, "a")).daemons == {}


def test_an_abort_restores_nothing_but_what_this_rollout_retired() -> None:
    snap = retired()
    assert abort_deploy(snap, 2, reason="x", restore="b").reason is Reason.RESTORE_UNAVAILABLE
    untouched = must(begin_deploy(serving(), "b", owner=OWNER))
    assert abort_deploy(untouched, 2, reason="x", restore="a").reason is Reason.RESTORE_UNAVAILABLE


def test_a_cold_rollback_away_from_a_failed_daemon_never_makes_it_the_one_to_go_back_to() -> None:
    snap = switched(retired())
    snap = must(begin_deploy(snap, "c", owner=OWNER, supersede=True, cause=Cause.ROLLBACK))
    snap = must(retire_active(snap, 3, "b"))
    assert snap.daemons["b"].drain_cause is DrainCause.FAILED
    interrupted = must(abort_deploy(snap, 3, reason="Ctrl-C", restore="b"))
    assert interrupted.daemons["b"].drain_cause is DrainCause.FAILED
    snap = switched(snap, "c")
    assert (snap.deployment.state, snap.deployment.old_boot_id) == (State.IDLE, "")
    assert snap.workspaces["/w"].boot_id == "c"
