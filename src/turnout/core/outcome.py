"""What an event answers: whether it was applied, why not, and the registry as it now stands."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from turnout.core.model import Deployment, Snapshot, State
from turnout.errors import ConflictError


class Reason(StrEnum):
    """Why an event was applied or refused."""

    APPLIED = "applied"
    ALREADY = "already"
    STALE_GENERATION = "stale_generation"
    WRONG_STATE = "wrong_state"
    WRONG_CANDIDATE = "wrong_candidate"
    UNKNOWN_DAEMON = "unknown_daemon"
    ACTIVE_CHANGED = "active_changed"
    GENERATION_CHANGED = "generation_changed"
    IN_PROGRESS = "in_progress"
    RESTORE_UNAVAILABLE = "restore_unavailable"
    NOT_ACTIVE = "not_active"
    CANDIDATE_IS_ACTIVE = "candidate_is_active"
    STILL_NAMED = "still_named"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an event. ``durable`` False: written, but the last sync to disk failed."""

    applied: bool
    reason: Reason
    snapshot: Snapshot
    detail: str = ""
    durable: bool = True

    @property
    def deployment(self) -> Deployment:
        return self.snapshot.deployment

    @property
    def ok(self) -> bool:
        """Whether the wish holds now, since the event was applied, or had taken effect before."""
        return self.applied or self.reason is Reason.ALREADY


def apply(snap: Snapshot, block: Deployment) -> Outcome:
    """The event happened: ``snap`` with ``block``, one revision later."""
    raised = replace(block, revision=block.revision + 1)
    return Outcome(applied=True, reason=Reason.APPLIED, snapshot=replace(snap, deployment=raised))


def refuse(snap: Snapshot, reason: Reason, detail: str = "") -> Outcome:
    return Outcome(applied=False, reason=reason, snapshot=snap, detail=detail)


def already(snap: Snapshot) -> Outcome:
    return refuse(snap, Reason.ALREADY)


def explain(outcome: Outcome) -> str:
    """One sentence for people."""
    block = outcome.deployment
    observed = block.state is State.SWITCHED
    phase = "still observed (--supersede ends that)" if observed else f"{block.state} (pid {block.owner.pid})"
    text = {
        Reason.APPLIED: "done",
        Reason.ALREADY: "it is so already",
        Reason.STALE_GENERATION: f"the deployment has moved on to generation {block.generation}",
        Reason.WRONG_STATE: f"not possible while the deployment is {block.state}",
        Reason.WRONG_CANDIDATE: "that daemon is not the one of this rollout",
        Reason.UNKNOWN_DAEMON: "the registry does not know that daemon",
        Reason.ACTIVE_CHANGED: f"the active daemon is {block.active_boot_id or 'none'} by now",
        Reason.GENERATION_CHANGED: f"the deployment stands at generation {block.generation}",
        Reason.IN_PROGRESS: f"the rollout of generation {block.generation} is {phase}",
        Reason.RESTORE_UNAVAILABLE: "there is no previous daemon to go back to",
        Reason.NOT_ACTIVE: "that daemon is not active",
        Reason.CANDIDATE_IS_ACTIVE: "the candidate is the active daemon itself",
        Reason.STILL_NAMED: "the deployment still names that daemon",
    }[outcome.reason]
    return f"{text}: {outcome.detail}" if outcome.detail else text


def must_hold(outcome: Outcome) -> None:
    """Raises ConflictError: the event was refused; the message says why."""
    if not outcome.ok:
        raise ConflictError(explain(outcome), hint="turnout status")
