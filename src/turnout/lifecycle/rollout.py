"""A rollout's steps, from begin to switch, done by a verb under the lifecycle lock.

    begin ─ spawn ─ probe until healthy ─ mark ─ re-probe ─ switch ─ unlock ─ (the router observes)

This is blue-green; :mod:`turnout.lifecycle.recreate` has the steps in between for daemons that own their data. Until
the switch the active daemon is not touched; whatever fails before it leaves the candidate stopped and forgotten.
Dying here at any step is safe too: the block names the owner and the candidate before anything is started, so the next
verb aborts the rollout of a dead owner, and the router stops daemons that nothing names.
"""

from __future__ import annotations

import time
from typing import Final

import msgspec

from turnout.control.router_client import RouterClient
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
from turnout.core.rollout_step import RolloutStep
from turnout.errors import CandidateError, NotRunningError, SpawnError, TimedOutError, TurnoutError
from turnout.lifecycle.actions import StartBuild
from turnout.lifecycle.bootstrap import Bootstrap
from turnout.lifecycle.candidate import Candidate
from turnout.lifecycle.launch_context import Launch
from turnout.lifecycle.naming import new_boot_id
from turnout.lifecycle.progress import Progress
from turnout.state.builds import Build, Rollout
from turnout.state.service import Service
from turnout.system.probes.probe import ProbeResult
from turnout.system.process import own_identity, provably_dead

APPLY_TIMEOUT_S: Final = 10.0
KEPT_GOOD: Final = 20  # contexts of good rollouts stay, whatever their size

# Rollouts to another build: after their switch three failed checks lead back. The others run the same build again.
OBSERVED: Final = frozenset({Cause.DEPLOY, Cause.ATTACH, Cause.ROLLBACK})


class Switched(msgspec.Struct, frozen=True):
    """A rollout that reached its switch: ``observed`` tells whether the router now watches it."""

    daemon: Daemon
    generation: int
    observed: bool


class RolloutRun:
    """One rollout of one service, made by a verb that holds its lifecycle lock. The caller closes ``bootstrap``."""

    def __init__(self, service: Service, bootstrap: Bootstrap, router: RouterClient, progress: Progress) -> None:
        self._service = service
        self._bootstrap = bootstrap
        self._router = router
        self._progress = progress
        self._registry = service.registry
        self._generation = 0
        self._cause = Cause.DEPLOY
        self._boot_id = ""
        self._switched_to = ""

    @property
    def switched(self) -> bool:
        """Whether the build that was to be run was switched to."""
        return bool(self._boot_id) and self._switched_to == self._boot_id

    def run(self, action: StartBuild, *, expected_generation: int | None = None) -> Switched:
        """Start a build, and switch to it once it is healthy.

        Until then neither build nor context is what a later verb starts without being asked for it.

        Raises:
            ConflictError: another rollout is under way, or an expectation no longer holds; nothing was changed.
            SpawnError, CandidateError: the candidate was stopped and forgotten; what was active is.
        """
        build, cause, launch = action.build, action.cause, action.launch
        context_id = launch.context_id or self._service.contexts.save(launch.context)
        boot_id = self._boot_id = new_boot_id()
        begun = self._begin(
            boot_id,
            cause,
            supersede=action.supersede,
            expected_generation=expected_generation,
            expected_active=action.expected_active,
        )
        try:
            self._record(build, launch, context_id, begun)
            self._make_room(begun)
            daemon = self._candidate(boot_id).start(build, launch.context)
            return self._switch(daemon, window=cause in OBSERVED)
        except BaseException as error:
            note = self._give_up(boot_id, build.id, error)
            if note and isinstance(error, CandidateError | SpawnError):
                raise type(error)(f"{error.message}; {note}", hint=error.hint, detail=error.detail) from error
            raise

    def adopt(self, daemon: Daemon) -> Switched:
        """Switch to a daemon that something else started (``attach``): probed, never stopped."""
        begun = self._begin(daemon.boot_id, Cause.ATTACH)
        try:
            RolloutRun._make_room(self, begun)
            must_hold(self._registry.update(lambda snap: register_daemon(snap, daemon)))
            self._candidate(daemon.boot_id).check_ready(daemon)
            return self._switch(daemon, window=True)
        except BaseException as error:
            self._give_up(daemon.boot_id, "", error)
            raise

    def _record(self, build: Build, launch: Launch, context_id: str, begun: Snapshot) -> None:
        """Note the rollout with its build and its context, and its warnings; drop contexts that no rollout names."""
        builds, revision = self._service.builds, begun.deployment.revision
        for warning in launch.warnings:
            self._progress.warning(warning)
            self._service.journal.write("not_as_deployed", generation=self._generation, revision=revision, what=warning)
        rollout = Rollout(self._generation, build.id, self._cause.value, time.time(), context=context_id)
        builds.record_rollout(rollout, build)
        rollouts = builds.rollouts()[::-1]
        good = [rollout.context for rollout in rollouts if rollout.result == "active"]
        self._service.contexts.prune([rollout.context for rollout in rollouts], spare={context_id, *good[:KEPT_GOOD]})

    def _begin(
        self,
        boot_id: str,
        cause: Cause,
        *,
        supersede: bool = False,
        expected_generation: int | None = None,
        expected_active: str | None = None,
    ) -> Snapshot:
        """Name candidate and owner in the registry. It starts a stopped service; a paused service stays paused."""
        self._progress.step(RolloutStep.BEGIN, "")
        owner = own_identity()

        def begin(snap: Snapshot) -> Outcome:
            begun = begin_deploy(
                snap,
                boot_id,
                owner=owner,
                holds_lock=True,
                cause=cause,
                supersede=supersede,
                expected_generation=expected_generation,
                expected_active_boot_id=expected_active,
            )
            is_stopped = begun.deployment.desired is Desired.STOPPED
            return set_desired(begun.snapshot, Desired.RUNNING) if begun.applied and is_stopped else begun

        outcome = self._registry.update(begin)
        must_hold(outcome)
        self._generation = outcome.deployment.generation
        self._cause = cause
        self._service.journal.write(
            "begin",
            generation=self._generation,
            revision=outcome.deployment.revision,
            candidate=boot_id,
            cause=cause.value,
            owner_pid=owner.pid,
        )
        self._notify_router(outcome)
        return outcome.snapshot

    def _make_room(self, begun: Snapshot) -> None:
        """Blue-green needs no room; but a dead active daemon is retired, so that clients are held meanwhile."""
        active = begun.active
        if active and provably_dead(active.identity):
            self._retire(active, "it was found dead")

    def _retire(self, active: Daemon, reason: str) -> None:
        """Have no active daemon from here on, and new connections held."""
        outcome = self._registry.update(lambda snap: retire_active(snap, self._generation, active.boot_id))
        must_hold(outcome)
        self._service.journal.write(
            "retire",
            generation=self._generation,
            revision=outcome.deployment.revision,
            boot_id=active.boot_id,
            reason=reason,
        )
        self._notify_router(outcome, wait=True)

    def _candidate(self, boot_id: str) -> Candidate:
        return Candidate(
            self._service,
            self._bootstrap,
            self._router,
            boot_id,
            generation=self._generation,
            progress=msgspec.structs.replace(self._progress, attempt=self._attempted),
        )

    def _attempted(self, result: ProbeResult) -> None:
        """Called with each check before the switch."""

    def _switch(self, daemon: Daemon, *, window: bool) -> Switched:
        service, generation, boot_id = self._service, self._generation, daemon.boot_id
        self._progress.step(RolloutStep.MARK, boot_id)
        must_hold(self._registry.update(lambda snap: mark_candidate_healthy(snap, generation, boot_id)))
        self._candidate(boot_id).check_once_more(daemon)
        self._progress.step(RolloutStep.SWITCH, boot_id)
        outcome = self._registry.update(
            lambda snap: switch_active(snap, generation, boot_id, now=time.time(), window=window)
        )
        must_hold(outcome)
        self._switched_to = boot_id
        block = outcome.deployment
        service.journal.write("switch", generation=generation, revision=block.revision, active=boot_id)
        if daemon.build:
            service.builds.set_result(generation, "active")
        self._notify_router(outcome, wait=True)
        return Switched(daemon, generation, observed=block.state is State.SWITCHED)

    def _give_up(self, boot_id: str, build_id: str, error: BaseException) -> str:
        """Abort, have the candidate stopped, remove its entry. A switch that is done stays done.

        Returns:
            A note on the service for the message of ``error``; empty: the daemon that serves is all there is to say.
        """
        self._abort(boot_id, build_id, error)
        return ""

    def _abort(self, boot_id: str, build_id: str, error: BaseException, *, restore: str = "") -> None:
        reason = error.message if isinstance(error, TurnoutError) else type(error).__name__
        if self._cause is Cause.ROLLBACK:
            reason = f"a rollback failed: {reason}"
        try:
            outcome = self._registry.update(
                lambda snap: abort_deploy(snap, self._generation, reason=reason, restore=restore)
            )
        except TurnoutError:  # a full disk: the router aborts it once there is room, since no verb carries it on
            if build_id and self._registry.read().snapshot.deployment.active_boot_id != boot_id:
                self._candidate(boot_id).stop()
            raise
        block = outcome.deployment
        if block.active_boot_id == boot_id:
            return
        self._service.journal.write("abort", generation=self._generation, revision=block.revision, reason=reason)
        self._notify_router(outcome)
        if build_id:
            try:
                self._service.builds.set_result(self._generation, "aborted")
            finally:
                self._candidate(boot_id).stop()
        self._registry.update(lambda snap: forget_daemon(snap, boot_id))

    def _notify_router(self, outcome: Outcome, *, wait: bool = False) -> None:
        """Have the router apply this at once. A router in replacement does no harm: it polls the file anyway."""
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
