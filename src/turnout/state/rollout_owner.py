"""Whether anybody carries a rollout that is under way."""

from __future__ import annotations

from turnout.core.model import Cause, Deployment
from turnout.state.home import ServiceHome
from turnout.state.lifecycle_lock import is_free
from turnout.system.process import out_of_sight, provably_dead


def is_abandoned(block: Deployment, home: ServiceHome, *, locked: bool = False) -> bool:
    """Whether a rollout is under way whose owner is shown to be dead; what cannot be shown is not.

    A pid of another pid namespace says nothing: a container that was killed in the middle of a rollout has left one.
    But a verb has the lifecycle lock as long as it carries a rollout, and the kernel lets go of it with the verb.

    Args:
        block: the deployment.
        home: its service's.
        locked: whether the caller has the lifecycle lock itself.
    """
    if not block.in_flight:
        return False
    if provably_dead(block.owner):
        return True
    return block.owner_holds_lock and out_of_sight(block.owner) and (locked or is_free(home.root))


def abandoned(block: Deployment) -> str:
    """Why a rollout whose owner is provably dead is aborted; a rollback is named as such."""
    return "a rollback failed: its owner died" if block.cause is Cause.ROLLBACK else "its owner died"
