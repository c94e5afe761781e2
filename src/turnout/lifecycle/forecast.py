"""The registry as a verb will find it, once the router and the verb have put right what is known to be wrong."""

from __future__ import annotations

from dataclasses import dataclass, field

from turnout.core.deployment import abort_deploy, rollback_active
from turnout.core.model import Daemon, Snapshot, State
from turnout.lifecycle.naming import daemon_name
from turnout.state.rollout_owner import abandoned, is_abandoned
from turnout.state.service import Service
from turnout.system.process import is_alive


@dataclass(frozen=True, slots=True)
class Forecast:
    """A registry, the ``steps`` that make it so, and the ``failed`` daemon that the router is about to replace."""

    snapshot: Snapshot
    steps: tuple[str, ...] = ()
    failed: Daemon | None = None
    basis: tuple[object, ...] = field(init=False)  # the facts that a plan depends on, for comparison with a later look

    def __post_init__(self) -> None:
        block, active = self.snapshot.deployment, self.snapshot.active
        named = (block.active_boot_id, block.candidate_boot_id, block.old_boot_id)
        lives = active is not None and is_alive(active.identity)
        object.__setattr__(self, "basis", (block.generation, block.state, block.desired, *named, lives))


def forecast_registry(service: Service, snapshot: Snapshot, *, locked: bool, router_acts: bool) -> Forecast:
    """The registry without the rollout of a dead owner, and after the router's next step.

    ``locked``: whether the caller has the lifecycle lock; ``router_acts``: a router runs, or is started before the verb
    looks again. In a window whose daemon has died it puts the previous daemon back.
    """
    block, active, old = snapshot.deployment, snapshot.active, snapshot.old
    if is_abandoned(block, service.home, locked=locked):
        step = f"abort generation {block.generation}, whose owner (pid {block.owner.pid}) died"
        return Forecast(abort_deploy(snapshot, block.generation, reason=abandoned(block)).snapshot, (step,))
    if not router_acts or block.state is not State.SWITCHED or not active or not old:
        return Forecast(snapshot)
    if is_alive(active.identity) or not is_alive(old.identity):
        return Forecast(snapshot)
    outcome = rollback_active(snapshot, block.generation, old.boot_id, reason="it has ended")
    step = f"let the router switch back to {daemon_name(old)}, since {daemon_name(active)} has ended"
    return Forecast(outcome.snapshot, (step,), failed=active)
