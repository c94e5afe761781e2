"""A rollout's steps, from begin to switch, done by a verb under the lifecycle lock.

    begin ─ spawn ─ probe until healthy ─ mark ─ re-probe ─ switch ─ unlock ─ (the router observes)

This is blue-green; :mod:`turnout.recreate` has the steps in between for daemons that own their data. Until the switch
the active daemon is not touched; whatever fails before it leaves the candidate stopped and forgotten.
Dying here at any step is safe too: the block names the owner and the candidate before anything is started, so the next
verb aborts the rollout of a dead owner, and the router stops daemons that nothing names.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from turnout.admin import RouterClient
from turnout.candidate import Candidate
from turnout.core.deployment import (
    abort_deploy,
    begin_deploy,
    mark_candidate_healthy,
    retire_active,
    set_desired,
    switch_active,
)
from turnout.core.membership import forget_daemon, register_daemon
from turnout.core.model import Cause, Daemon, Desired, Snapshot, State
from turnout.core.outcome import Outcome, must_hold
from turnout.core.step import OnStep, Step
from turnout.daemon_naming import new_boot_id
from turnout.errors import CandidateError, NotRunningError, SpawnError, TimedOutError, TurnoutError
from turnout.ground import Ground
from turnout.service import Service
from turnout.system.builds import Build, Rollout
from turnout.system.probe import ProbeResult
from turnout.system.process import own_identity, provably_dead

APPLY_TIMEOUT_S: Final = 10.0

# Rollouts to another build: after their switch three failed checks lead back. The others run the same build again.
OBSERVED: Final = frozenset({Cause.DEPLOY, Cause.ATTACH, Cause.ROLLBACK})


@dataclass(frozen=True, slots=True)
class Switched:
    """A rollout that reached its switch: ``observed`` tells whether the router now watches it."""

    daemon: Daemon
    generation: int
    observed: bool


class RolloutRun:
    """One rollout of one service, made by whoever holds its lifecycle lock.

    Args:
        service: whose.
        ground: keeper and router; the caller's, who closes it.
        router: the line to the router.
        on_step: told each step.
        on_slow: told what takes so long that somebody waits for it.
    """

    def __init__(
        self,
        service: Service,
        ground: Ground,
        router: RouterClient,
        *,
        on_step: OnStep,
        on_slow: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self._service = service
        self._ground = ground
        self._router = router
        self._on_step = on_step
        self._on_slow = on_slow
        self._registry = service.registry
        self._generation = 0
        self._cause = Cause.DEPLOY

    def run(
        self,
        build: Build,
        cause: Cause,
        *,
        supersede: bool = False,
        expected_generation: int | None = None,
        expected_active: str | None = None,
    ) -> Switched:
        """Start ``build`` and switch to it once it is healthy.

        Raises:
            ConflictError: another rollout is under way, or an expectation no longer holds; nothing was changed.
            SpawnError, CandidateError: the candidate was stopped and forgotten; what was active is.
        """
        boot_id = new_boot_id()
        self._begin(boot_id, cause, supersede, expected_generation, expected_active)
        build_id = self._service.builds.remember(build)
        self._service.builds.record_rollout(Rollout(self._generation, build_id, cause.value, time.time()))
        try:
            self._make_room()
            daemon = self._candidate(boot_id).start(build, build_id)
            return self._switch(daemon, window=cause in OBSERVED)
        except BaseException as error:
            note = self._give_up(boot_id, build_id, error)
            if note and isinstance(error, CandidateError | SpawnError):
                raise type(error)(f"{error.message}; {note}", hint=error.hint, detail=error.detail) from error
            raise

    def adopt(self, daemon: Daemon) -> Switched:
        """Switch to a daemon that something else started (``attach``): probed, never stopped."""
        self._begin(daemon.boot_id, Cause.ATTACH, False, None, None)
        try:
            RolloutRun._make_room(self)
            must_hold(self._registry.update(lambda snap: register_daemon(snap, daemon)))
            self._candidate(daemon.boot_id).check_ready(daemon)
            return self._switch(daemon, window=True)
        except BaseException as error:
            self._give_up(daemon.boot_id, "", error)
            raise

    # -- the steps ---------------------------------------------------------------------------------------------------

    def _begin(
        self,
        boot_id: str,
        cause: Cause,
        supersede: bool,
        expected_generation: int | None,
        expected_active: str | None,
    ) -> None:
        self._on_step(Step.BEGIN, "")
        owner = own_identity()
        outcome = self._registry.update(
            lambda snap: begin_deploy(
                snap,
                boot_id,
                owner=owner,
                holds_lock=True,
                cause=cause,
                supersede=supersede,
                expected_generation=expected_generation,
                expected_active_boot_id=expected_active,
            )
        )
        must_hold(outcome)
        self._generation = outcome.deployment.generation
        self._cause = cause
        outcome = self._registry.update(_wants_to_run)
        self._service.journal.write(
            "begin",
            generation=self._generation,
            revision=outcome.deployment.revision,
            candidate=boot_id,
            cause=cause.value,
            owner_pid=owner.pid,
        )
        self._look(outcome)

    def _make_room(self) -> None:
        """Blue-green needs none; but an active daemon that is dead already serves nobody, and that is said."""
        active = self._registry.read().snapshot.active
        if active and provably_dead(active.identity):
            self._retire(active, "it was found dead")

    def _retire(self, active: Daemon, reason: str) -> None:
        """Nothing is active from here on, and new connections are held."""
        outcome = self._registry.update(lambda snap: retire_active(snap, self._generation, active.boot_id))
        must_hold(outcome)
        self._service.journal.write(
            "retire",
            generation=self._generation,
            revision=outcome.deployment.revision,
            boot_id=active.boot_id,
            reason=reason,
        )
        self._look(outcome, wait=True)

    def _candidate(self, boot_id: str) -> Candidate:
        return Candidate(
            self._service,
            self._ground,
            self._router,
            boot_id,
            generation=self._generation,
            on_step=self._on_step,
            on_attempt=self._attempted,
        )

    def _attempted(self, result: ProbeResult) -> None:
        """A check before the switch was made."""

    def _switch(self, daemon: Daemon, *, window: bool) -> Switched:
        service, generation, boot_id = self._service, self._generation, daemon.boot_id
        self._on_step(Step.MARK, boot_id)
        must_hold(self._registry.update(lambda snap: mark_candidate_healthy(snap, generation, boot_id)))
        self._candidate(boot_id).check_once_more(daemon)
        self._on_step(Step.SWITCH, boot_id)
        outcome = self._registry.update(
            lambda snap: switch_active(snap, generation, boot_id, now=time.time(), window=window)
        )
        must_hold(outcome)
        block = outcome.deployment
        service.journal.write("switch", generation=generation, revision=block.revision, active=boot_id)
        if daemon.build:
            service.builds.set_result(generation, "active")
        self._look(outcome, wait=True)
        return Switched(daemon, generation, observed=block.state is State.SWITCHED)

    # -- when it fails -----------------------------------------------------------------------------------------------

    def _give_up(self, boot_id: str, build_id: str, error: BaseException) -> str:
        """Abort, have the candidate stopped, forget it. A switch that is done stays done.

        Returns:
            What became of the service, where there is more to say than who serves.
        """
        self._abort(boot_id, build_id, error)
        return ""

    def _abort(self, boot_id: str, build_id: str, error: BaseException, *, restore: str = "") -> None:
        reason = error.message if isinstance(error, TurnoutError) else type(error).__name__
        if self._cause is Cause.ROLLBACK:
            reason = f"a rollback failed: {reason}"
        outcome = self._registry.update(
            lambda snap: abort_deploy(snap, self._generation, reason=reason, restore=restore)
        )
        block = outcome.deployment
        if block.active_boot_id == boot_id:
            return
        self._service.journal.write("abort", generation=self._generation, revision=block.revision, reason=reason)
        self._look(outcome)
        if build_id:
            self._service.builds.set_result(self._generation, "aborted")
            self._candidate(boot_id).stop()
        self._registry.update(lambda snap: forget_daemon(snap, boot_id))

    def _look(self, outcome: Outcome, *, wait: bool = False) -> None:
        """Have the router apply this at once. It polls the file anyway, so a router in replacement is no harm."""
        deadline = time.monotonic() + APPLY_TIMEOUT_S
        while True:
            try:
                timeout_s = max(0.1, deadline - time.monotonic()) if wait else 0.5
                self._router.wait_applied(self._service.name, outcome.deployment.revision, timeout_s=timeout_s)
            except (NotRunningError, TimedOutError, OSError):
                if not wait or time.monotonic() > deadline:
                    return
                time.sleep(0.02)
            else:
                return


def _wants_to_run(snap: Snapshot) -> Outcome:
    """A rollout starts a service that was stopped; one that is paused stays so until somebody resumes it."""
    return set_desired(snap, Desired.RUNNING if snap.deployment.desired is Desired.STOPPED else snap.deployment.desired)
