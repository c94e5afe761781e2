"""The deployment state machine: one table of what may happen when, and a pure function for each event.

An event answers an :class:`Outcome`. One that is refused, or has taken effect already, answers the very snapshot that
it was given; one that is applied raises ``revision`` by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from turnout.core.model import Cause, Daemon, Desired, DrainCause, Identity, Snapshot, State
from turnout.core.outcome import Outcome, Reason, already, apply, refuse
from turnout.core.workspaces import moved, moved_back


class Event(StrEnum):
    """What can happen to a deployment."""

    BEGIN = "begin_deploy"
    RETIRE = "retire_active"
    MARK = "mark_candidate_healthy"
    SWITCH = "switch_active"
    FAILURE = "record_health_failure"
    SUCCESS = "record_health_success"
    ROLLBACK = "rollback_active"
    FINISH = "finish_deploy"
    FAIL_WINDOW = "fail_window"
    ABORT = "abort_deploy"
    DEACTIVATE = "deactivate"


TRANSITIONS: Final[Mapping[Event, frozenset[State]]] = MappingProxyType(
    {
        Event.BEGIN: frozenset({State.IDLE}),
        Event.RETIRE: frozenset({State.STARTING, State.ROLLING_BACK}),
        Event.MARK: frozenset({State.STARTING, State.ROLLING_BACK}),
        Event.SWITCH: frozenset({State.READY}),
        Event.FAILURE: frozenset({State.SWITCHED}),
        Event.SUCCESS: frozenset({State.SWITCHED}),
        Event.ROLLBACK: frozenset({State.SWITCHED}),
        Event.FINISH: frozenset({State.SWITCHED}),
        Event.FAIL_WINDOW: frozenset({State.SWITCHED}),
        Event.ABORT: frozenset({State.STARTING, State.ROLLING_BACK, State.READY}),
        Event.DEACTIVATE: frozenset({State.IDLE, State.SWITCHED}),
    }
)


def begin_deploy(
    snap: Snapshot,
    candidate: str,
    *,
    owner: Identity,
    holds_lock: bool = False,
    expected_active_boot_id: str | None = None,
    expected_generation: int | None = None,
    supersede: bool = False,
    cause: Cause = Cause.DEPLOY,
) -> Outcome:
    """Start a rollout: generation + 1. The candidate need not be known yet; ``owner`` carries it to its switch.

    ``holds_lock``: the owner has the service's lifecycle lock as long as that takes. One that supersedes a rollout
    under way inherits what that one retired: it is gone or on its way out all the same.
    """
    block = snap.deployment
    if expected_generation is not None and block.generation != expected_generation:
        return refuse(snap, Reason.GENERATION_CHANGED, f"expected {expected_generation}")
    if expected_active_boot_id is not None and block.active_boot_id != expected_active_boot_id:
        return refuse(snap, Reason.ACTIVE_CHANGED, f"expected {expected_active_boot_id or 'none'}")
    if candidate and candidate == block.active_boot_id:
        return refuse(snap, Reason.CANDIDATE_IS_ACTIVE)
    if not candidate:
        return refuse(snap, Reason.UNKNOWN_DAEMON, "no candidate was named")
    retired = block.retired_boot_id
    if candidate == retired:
        return refuse(snap, Reason.WRONG_CANDIDATE, "it was taken out of service")
    if block.state not in TRANSITIONS[Event.BEGIN]:
        if not supersede:
            return refuse(snap, Reason.IN_PROGRESS)
        if block.state is not State.SWITCHED:
            snap = _aborted(snap, "superseded")
        else:
            snap = _finished(snap)
            if cause is Cause.ROLLBACK and snap.active:  # it serves until the switch, and is never gone back to
                condemned = replace(snap.active, drain_cause=DrainCause.FAILED)
                snap = replace(snap, daemons={**snap.daemons, condemned.boot_id: condemned})
        block = snap.deployment
    begun = replace(
        block,
        generation=block.generation + 1,
        state=State.ROLLING_BACK if cause is Cause.ROLLBACK else State.STARTING,
        candidate_boot_id=candidate,
        old_boot_id=retired,
        health_fail_streak=0,
        rollback_reason="",
        cause=cause,
        owner=owner,
        owner_holds_lock=holds_lock,
        moves=(),
    )
    return apply(snap, begun)


def retire_active(snap: Snapshot, generation: int, boot: str) -> Outcome:
    """Take the active daemon out of service for a candidate that cannot run beside it, or since it is dead.

    Nothing is active from here to the switch, and new connections are held; what it still carries ends within seconds.
    """
    block = snap.deployment
    if block.generation != generation:
        return refuse(snap, Reason.STALE_GENERATION, f"{generation} is over")
    if boot and boot == block.retired_boot_id:
        return already(snap)
    if block.state not in TRANSITIONS[Event.RETIRE]:
        return refuse(snap, Reason.WRONG_STATE)
    if not boot or block.active_boot_id != boot:
        return refuse(snap, Reason.NOT_ACTIVE)
    daemon = snap.daemons.get(boot)
    if daemon is None:
        return refuse(snap, Reason.UNKNOWN_DAEMON)
    failed = daemon.drain_cause is DrainCause.FAILED  # a cold rollback away from it: it stays nothing to go back to
    cause = DrainCause.FAILED if failed else DrainCause.RETIRED
    retired = replace(snap, daemons=_draining(snap.daemons, {boot}, cause))
    return apply(retired, replace(block, active_boot_id="", old_boot_id=boot))


def mark_candidate_healthy(snap: Snapshot, generation: int, candidate: str) -> Outcome:
    """The candidate passed its probe."""
    block = snap.deployment
    if block.generation != generation:
        return refuse(snap, Reason.STALE_GENERATION, f"{generation} is over")
    if block.candidate_boot_id != candidate:
        return refuse(snap, Reason.WRONG_CANDIDATE)
    if block.state is State.READY:
        return already(snap)
    if block.state not in TRANSITIONS[Event.MARK]:
        return refuse(snap, Reason.WRONG_STATE)
    if candidate not in snap.daemons:
        return refuse(snap, Reason.UNKNOWN_DAEMON)
    return apply(snap, replace(block, state=State.READY))


def switch_active(snap: Snapshot, generation: int, candidate: str, *, now: float, window: bool = True) -> Outcome:
    """New connections go to the candidate from here on.

    Args:
        snap: the registry.
        generation: that of the rollout.
        candidate: its daemon.
        now: wall-clock seconds, for people.
        window: False where the old daemon drains at once (refresh). One that a cold rollback leaves behind does so
            anyway, with the haste that a failed daemon gets. A retired one is observed against like any other, and
            its workspaces move as well; only going back to it is a new rollout.
    """
    block = snap.deployment
    if block.generation != generation:
        return refuse(snap, Reason.STALE_GENERATION, f"{generation} is over")
    if block.active_boot_id == candidate and candidate and block.state not in TRANSITIONS[Event.SWITCH]:
        return already(snap)
    if block.state not in TRANSITIONS[Event.SWITCH]:
        return refuse(snap, Reason.WRONG_STATE)
    if block.candidate_boot_id != candidate:
        return refuse(snap, Reason.WRONG_CANDIDATE)
    fresh = snap.daemons.get(candidate)
    if fresh is None:
        return refuse(snap, Reason.UNKNOWN_DAEMON)
    previous = block.active_boot_id or block.retired_boot_id
    old = previous if previous in snap.daemons else ""
    workspaces, moves = moved(snap.workspaces, old, fresh)
    switched = replace(
        snap,
        daemons={**snap.daemons, candidate: replace(fresh, draining=False, drain_cause=DrainCause.NONE)},
        workspaces=workspaces,
        deployment=replace(
            block,
            state=State.SWITCHED if old else State.IDLE,
            active_boot_id=candidate,
            candidate_boot_id="",
            old_boot_id=old,
            switch_ts=now,
            health_fail_streak=0,
            owner=Identity(),
            owner_holds_lock=False,
            moves=moves if old else (),
        ),
    )
    if old and snap.daemons[old].drain_cause is DrainCause.FAILED:  # that one is nothing to go back to
        switched = _finished(switched, DrainCause.FAILED)
    elif old and not window:
        switched = _finished(switched, DrainCause.REPLACED)
    return apply(switched, switched.deployment)


def record_health_failure(
    snap: Snapshot, generation: int, boot: str, *, reason: str, threshold: int, restore: str | None = None
) -> Outcome:
    """One failed check of the active daemon in its window.

    The failure that reaches ``threshold`` rolls back in the same outcome if ``restore`` names the previous daemon, that
    the caller has seen running and probed a moment ago; without it the streak stays at the threshold.
    """
    refused = _check_window(snap, generation, boot, Event.FAILURE)
    if refused:
        return refused
    block = snap.deployment
    streak = min(block.health_fail_streak + 1, threshold)
    if streak >= threshold and restore:
        counted = replace(snap, deployment=replace(block, health_fail_streak=streak))
        outcome = rollback_active(counted, generation, restore, reason=reason)
        if outcome.applied:
            return outcome
    if streak == block.health_fail_streak:
        return already(snap)
    return apply(snap, replace(block, health_fail_streak=streak))


def record_health_success(snap: Snapshot, generation: int, boot: str) -> Outcome:
    """A check passed: what failed before it no longer counts."""
    refused = _check_window(snap, generation, boot, Event.SUCCESS)
    if refused:
        return refused
    if not snap.deployment.health_fail_streak:
        return already(snap)
    return apply(snap, replace(snap.deployment, health_fail_streak=0))


def rollback_active(snap: Snapshot, generation: int, restore: str, *, reason: str) -> Outcome:
    """Back to the previous daemon, which the caller has seen running and probed a moment ago."""
    block = snap.deployment
    if block.generation != generation:
        return refuse(snap, Reason.STALE_GENERATION, f"{generation} is over")
    if block.state not in TRANSITIONS[Event.ROLLBACK]:
        back_already = block.active_boot_id == restore and restore and block.rollback_reason
        return already(snap) if back_already else refuse(snap, Reason.WRONG_STATE)
    back = snap.daemons.get(restore)
    if not restore or restore == block.active_boot_id or restore != block.old_boot_id or back is None or back.draining:
        return refuse(snap, Reason.RESTORE_UNAVAILABLE)
    failed = block.active_boot_id
    daemons = _draining(snap.daemons, {failed}, DrainCause.FAILED)
    daemons[restore] = replace(back, drain_cause=DrainCause.NONE)
    restored = replace(
        block,
        state=State.IDLE,
        active_boot_id=restore,
        candidate_boot_id="",
        old_boot_id="",
        rollback_reason=reason or "rolled back",
        moves=(),
    )
    return apply(replace(snap, daemons=daemons, workspaces=moved_back(snap, failed)), restored)


def finish_deploy(snap: Snapshot, generation: int) -> Outcome:
    """The observe window is over: the previous daemon drains."""
    block = snap.deployment
    if block.generation != generation:
        return refuse(snap, Reason.STALE_GENERATION, f"{generation} is over")
    if block.state not in TRANSITIONS[Event.FINISH]:
        finished = block.state is State.IDLE and block.active_boot_id and not block.rollback_reason
        return already(snap) if finished else refuse(snap, Reason.WRONG_STATE)
    done = _finished(snap)
    return apply(done, done.deployment)


def fail_window(snap: Snapshot, generation: int, boot: str, *, reason: str) -> Outcome:
    """End the observe window of a daemon that failed it, where no previous daemon and no build can be restored.

    The failed daemon stays active, since nothing is better; ``rollback_reason`` says that it failed.
    """
    refused = _check_window(snap, generation, boot, Event.FAIL_WINDOW)
    if refused:
        return refused
    done = _finished(snap)
    return apply(done, replace(done.deployment, rollback_reason=reason or "it failed its checks"))


def abort_deploy(snap: Snapshot, generation: int, *, reason: str, restore: str = "") -> Outcome:
    """End a rollout before its switch; the active daemon was never touched.

    Args:
        snap: the registry.
        generation: that of the rollout.
        reason: why.
        restore: the daemon that this rollout retired, which the caller has seen running and has not stopped:
            it serves again. Without it nothing is active where one was retired.
    """
    block = snap.deployment
    if block.generation != generation:
        return refuse(snap, Reason.STALE_GENERATION, f"{generation} is over")
    if block.state not in TRANSITIONS[Event.ABORT]:
        return already(snap) if block.state is State.IDLE else refuse(snap, Reason.WRONG_STATE)
    if restore and (restore != block.retired_boot_id or restore not in snap.daemons):
        return refuse(snap, Reason.RESTORE_UNAVAILABLE)
    aborted = _aborted(snap, reason)
    if restore:
        back = snap.daemons[restore]
        cause = DrainCause.FAILED if back.drain_cause is DrainCause.FAILED else DrainCause.NONE
        daemons = {**aborted.daemons, restore: replace(back, draining=False, drain_cause=cause)}
        block = replace(aborted.deployment, active_boot_id=restore)
        aborted = replace(aborted, daemons=daemons, deployment=block)
    return apply(aborted, aborted.deployment)


def deactivate(
    snap: Snapshot, generation: int, boot: str, *, reason: str, cause: DrainCause = DrainCause.STOPPED
) -> Outcome:
    """Nothing is active any more: stop, detach, or the active daemon died. A warm previous one goes too."""
    block = snap.deployment
    if block.generation != generation:
        return refuse(snap, Reason.STALE_GENERATION, f"{generation} is over")
    if block.state not in TRANSITIONS[Event.DEACTIVATE]:
        return refuse(snap, Reason.WRONG_STATE)
    if block.active_boot_id != boot or not boot:
        return already(snap) if not block.active_boot_id else refuse(snap, Reason.NOT_ACTIVE)
    daemons = _draining(snap.daemons, {boot, block.old_boot_id}, cause)
    ended = replace(block, state=State.IDLE, active_boot_id="", old_boot_id="", rollback_reason=reason)
    return apply(replace(snap, daemons=daemons), replace(ended, health_fail_streak=0, moves=()))


def set_desired(snap: Snapshot, desired: Desired, *, reason: str = "") -> Outcome:
    """Keep what the operator wants of the service.

    Args:
        snap: the registry.
        desired: what the operator wants.
        reason: why no daemon is active, where none is and no rollout is under way; empty: the recorded reason stays.
    """
    block = snap.deployment
    if reason and block.state is State.IDLE and not block.active_boot_id:
        block = replace(block, rollback_reason=reason)
    block = replace(block, desired=desired)
    return already(snap) if block == snap.deployment else apply(snap, block)


def _check_window(snap: Snapshot, generation: int, boot: str, event: Event) -> Outcome | None:
    block = snap.deployment
    if block.generation != generation:
        return refuse(snap, Reason.STALE_GENERATION, f"{generation} is over")
    if block.state not in TRANSITIONS[event]:
        return refuse(snap, Reason.WRONG_STATE)
    if block.active_boot_id != boot:
        return refuse(snap, Reason.NOT_ACTIVE)
    return None


def _draining(daemons: Mapping[str, Daemon], which: set[str], cause: DrainCause) -> dict[str, Daemon]:
    return {
        boot_id: replace(daemon, draining=True, drain_cause=cause) if boot_id in which else daemon
        for boot_id, daemon in daemons.items()
    }


def _finished(snap: Snapshot, cause: DrainCause = DrainCause.REPLACED) -> Snapshot:
    """The window's end, without a revision of its own."""
    block = snap.deployment
    return replace(
        snap,
        daemons=_draining(snap.daemons, {block.old_boot_id}, cause),
        deployment=replace(block, state=State.IDLE, old_boot_id="", health_fail_streak=0, moves=()),
    )


def _aborted(snap: Snapshot, reason: str) -> Snapshot:
    """A rollout's end before its switch, without a revision of its own."""
    block = snap.deployment
    return replace(
        snap,
        daemons=_draining(snap.daemons, {block.candidate_boot_id}, DrainCause.FAILED),
        deployment=replace(
            block,
            state=State.IDLE,
            candidate_boot_id="",
            old_boot_id="",
            rollback_reason=reason,
            owner=Identity(),
            owner_holds_lock=False,
            moves=(),
        ),
    )


Change = Callable[[Snapshot], Outcome]
