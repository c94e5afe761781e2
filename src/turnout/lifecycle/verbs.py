"""The lifecycle verbs: each under the service's lock, each leaving a state from which the next verb goes on.

:mod:`turnout.lifecycle.plan` decides what a verb does, and when it is refused; here its action is carried out.
"""

from __future__ import annotations

import time
from contextlib import nullcontext, suppress
from dataclasses import replace
from typing import Final

import msgspec

from turnout.control.keeper_watchdog import SILENT_AFTER_S
from turnout.control.registry_claim import is_others, release_claim
from turnout.core.deployment import deactivate, rollback_active, set_desired
from turnout.core.membership import hasten_drain
from turnout.core.model import Cause, Daemon, Desired, DrainCause, Snapshot, State
from turnout.core.outcome import Outcome, must_hold
from turnout.errors import CandidateError, NotRunningError, SpawnError, StillRunningError, TimedOutError, TurnoutError
from turnout.lifecycle import actions
from turnout.lifecycle.auto_deploy_guard import AutoDeployGuard
from turnout.lifecycle.bootstrap import POLL_S, ROUTER_TIMEOUT_S
from turnout.lifecycle.forecast import forecast_registry
from turnout.lifecycle.naming import daemon_name
from turnout.lifecycle.planned_verb import SERVING, STARTING, PlannedVerb
from turnout.lifecycle.preparation import Preparation
from turnout.lifecycle.recreate import RecreateRun
from turnout.lifecycle.rollout import RolloutRun, Switched
from turnout.planes.direct.bpf_pins import pins_of
from turnout.state.metrics_address import write_scrape
from turnout.system.process import is_alive, provably_dead

METRICS_TIMEOUT_S: Final = 3.0


class VerbResult(msgspec.Struct, frozen=True):
    """The answer of a verb, in one line for people; ``changed`` False: it was so already."""

    text: str
    changed: bool = True
    switched: Switched | None = None


class Lifecycle(PlannedVerb):
    """One verb. Opened, and closed, as a :class:`turnout.lifecycle.session.Session`."""

    def run(self) -> VerbResult:
        """Carry out the verb.

        Raises:
            TurnoutError: the verb is refused, before anything is started or changed; or it failed.
        """
        verb = self._request.verb
        if verb in {"up", "deploy"}:
            self._guard = AutoDeployGuard(self.service, self.wanted, automatic=self._request.automatic)
        with self._guard or nullcontext():
            plan = self.plan()
            if verb in SERVING or plan.action == actions.EndService():
                plan = self._prepare(plan)
            result = self._carry_out(plan.action)
        return self._finish_up(result) if verb == "up" else result

    def _prepare(self, plan: actions.Plan) -> actions.Plan:
        """Prepare, and return the plan, or another one where the registry has changed since."""
        verb, forecast = self._request.verb, self._forecast
        self._preparation = Preparation(self.home, self.service, self._bootstrap, self._progress)
        snapshot = self._preparation.run(listen=verb != "down", rolls=verb in STARTING)
        if verb in STARTING:
            snapshot = self._wait_for_switch_back(snapshot)
        found = forecast_registry(self.service, snapshot, locked=True, router_acts=False)
        warm = plan.action.old.boot_id if isinstance(plan.action, actions.SwitchBack) else ""
        if warm and snapshot.deployment.active_boot_id == warm:
            return plan  # the router was faster
        # what is switched back to is probed once more, since a keeper may have been started meanwhile
        if not warm and forecast.failed is None and found.basis == forecast.basis:
            return plan
        try:
            return self._plan_over(replace(found, failed=forecast.failed))
        except BaseException:
            self._preparation.undo_rollout(switched=False)
            raise

    def _wait_for_switch_back(self, snapshot: Snapshot) -> Snapshot:
        """In a window whose daemon has died the router is about to switch back to the previous one: let it."""
        deadline = time.monotonic() + SILENT_AFTER_S
        while snapshot.deployment.state is State.SWITCHED and time.monotonic() < deadline:
            active, old = snapshot.active, snapshot.old
            if active is None or is_alive(active.identity) or old is None or not is_alive(old.identity):
                break
            time.sleep(POLL_S)
            snapshot = self.service.registry.read().snapshot
        return snapshot

    def _carry_out(self, action: actions.Action) -> VerbResult:
        match action:
            case actions.Leave():
                if action.desired:
                    self._set_desired(action.desired)
                return VerbResult(action.text, changed=False)
            case actions.StartBuild():
                return self._start_build(action)
            case actions.AttachDaemon(daemon):
                switched = self._rollout().adopt(daemon)
                text = f"attached {daemon_name(daemon)} as generation {switched.generation}"
                return VerbResult(text, switched=switched)
            case actions.SwitchBack():
                return self._switch_back(action)
            case actions.StopDaemon(active):
                return self._stop_daemon(active)
            case actions.DetachDaemon(active):
                self._deactivate(active, "detached", DrainCause.REPLACED)
                until = "until something is attached or started"
                return VerbResult(f"detached {daemon_name(active)}; new connections are reset {until}")
            case actions.SetDesired(desired):
                return self._pause_or_resume(desired)
            case actions.Hasten():
                return self._hasten(action)
            case actions.EndService(runs, beside):
                return self._end_service() if runs and not beside else self._end_rest(beside=beside)

    def _rollout(self) -> RolloutRun:
        kind = RecreateRun if self.service.settings.strategy == "recreate" else RolloutRun
        return kind(self.service, self._bootstrap, self.router, self._progress)

    def _start_build(self, action: actions.StartBuild) -> VerbResult:
        builds, rollout, preparation = self.service.builds, self._rollout(), self._preparation
        assert preparation is not None  # every verb that starts a build prepares
        if action.launch.note:
            self._progress.note(action.launch.note)
        try:
            switched = rollout.run(
                msgspec.structs.replace(action, supersede=action.supersede or preparation.takes_over),
                expected_generation=self._request.if_generation,
            )
        except (CandidateError, SpawnError) as error:
            failed = self._with_serving(error)
            preparation.undo_rollout(switched=rollout.switched)
            raise failed from error
        except BaseException:
            preparation.undo_rollout(switched=rollout.switched)
            raise
        if action.hastened:
            self._hasten_drain(action.hastened, DrainCause.FAILED)
        if action.pardon:
            builds.pardon(action.build.id)
        if action.ends_window is not None:
            builds.set_result(action.ends_window, "rolled_back")
        if self._request.verb == "rollback":
            self._quarantine(action.rolled_back, action.build.id)
        did = {Cause.START: "started", Cause.REFRESH: "refreshed", Cause.ROLLBACK: "rolled back to"}
        verb = did.get(action.cause, "switched to")
        text = f"{verb} {daemon_name(switched.daemon)} as generation {switched.generation}, behind {self._where()}"
        return VerbResult(text, switched=switched)

    def _switch_back(self, action: actions.SwitchBack) -> VerbResult:
        generation, old = action.generation, action.old
        outcome = self.service.registry.update(
            lambda snap: rollback_active(snap, generation, old.boot_id, reason="by hand")
        )
        must_hold(outcome)
        block = outcome.deployment
        if outcome.applied:
            self.service.journal.write(
                "rollback",
                generation=generation,
                revision=block.revision,
                boot_id=action.active.boot_id if action.active else "",
                evidence="by hand",
            )
        self.service.builds.set_result(generation, "rolled_back")
        self._quarantine(action.active, old.build)
        self._wait_applied(block.revision)
        return VerbResult(f"rolled back to {daemon_name(old)}; generation {generation} is ended")

    def _quarantine(self, left: Daemon | None, chosen: str) -> None:
        """Keep the router, and clients that ask, from the build that a person went back from."""
        builds = self.service.builds
        if self._request.automatic:  # the router has its own reason, and has written it
            return
        if left and left.build and left.build != chosen:
            builds.quarantine(
                left.build, "rolled back by hand", self.service.registry.read().snapshot.deployment.generation
            )
        builds.pardon(chosen)

    def _stop_daemon(self, active: Daemon) -> VerbResult:
        """Stop the daemon. The fixed address stays, and resets new connections."""
        self._deactivate(active, "stopped", DrainCause.STOPPED, desired=Desired.STOPPED)
        self._processes.wait_gone(self.service.settings.stop_grace_s + ROUTER_TIMEOUT_S)
        if not active.owned:
            return VerbResult(f"{self.service.name} is stopped{_runs_on(active)}")
        return VerbResult(f"stopped {daemon_name(active)}")

    def _pause_or_resume(self, desired: Desired) -> VerbResult:
        """Hold new connections from here on, or let those that are held go."""
        service, settings = self.service, self.service.settings
        held = f"held, at most {settings.hold_max} of them for {settings.hold_timeout_s:g} s each"
        text = f"new connections to {self._where()} are {held if desired is Desired.PAUSED else 'served again'}"
        outcome = service.registry.update(lambda snap: set_desired(snap, desired))
        if not outcome.applied:
            return VerbResult(f"it was so already: {text}", changed=False)
        block = outcome.deployment
        event = "pause" if desired is Desired.PAUSED else "resume"
        service.journal.write(event, generation=block.generation, revision=block.revision)
        self._wait_applied(block.revision)
        return VerbResult(text)

    def _hasten(self, action: actions.Hasten) -> VerbResult:
        for daemon in action.draining:
            self._hasten_drain(daemon.boot_id, action.cause)
        if not action.draining:
            return VerbResult("nothing drains", changed=False)
        return VerbResult(f"hastened: {', '.join(daemon_name(daemon) for daemon in action.draining)}")

    def _hasten_drain(self, boot_id: str, cause: DrainCause) -> None:
        outcome = self.service.registry.update(lambda snap: hasten_drain(snap, boot_id, cause))
        if outcome.applied:
            self._wait_applied(outcome.deployment.revision)

    def _set_desired(self, desired: Desired) -> None:
        """Record what the operator wants; a paused service stays paused until it is resumed or stopped."""

        def change(snap: Snapshot) -> Outcome:
            paused = snap.deployment.desired is Desired.PAUSED and desired is Desired.RUNNING
            reason = "stopped" if desired is Desired.STOPPED else ""  # of no active daemon: an earlier failure is over
            return set_desired(snap, Desired.PAUSED if paused else desired, reason=reason)

        self.service.registry.update(change)

    def _deactivate(self, active: Daemon, reason: str, cause: DrainCause, *, desired: Desired | None = None) -> None:
        """Take the daemon out of service, and record ``desired`` in the same write: both, or neither."""
        generation = self.service.registry.read().snapshot.deployment.generation

        def change(snap: Snapshot) -> Outcome:
            outcome = deactivate(snap, generation, active.boot_id, reason=reason, cause=cause)
            if desired is None or not outcome.ok or outcome.deployment.desired is desired:
                return outcome
            return set_desired(outcome.snapshot, desired, reason=reason)

        outcome = self.service.registry.update(change)
        must_hold(outcome)
        revision = outcome.deployment.revision
        self.service.journal.write("deactivate", generation=generation, revision=revision, reason=reason)
        self._wait_applied(revision)

    def _wait_applied(self, revision: int) -> None:
        with suppress(NotRunningError, TimedOutError, OSError):  # it polls the file anyway
            self.router.wait_applied(self.service.name, revision, timeout_s=SILENT_AFTER_S)

    def _finish_up(self, result: VerbResult) -> VerbResult:
        self._must_be_served(result)
        unserved = ""
        if self._scrape:
            write_scrape(self.home, self._scrape)
            where = str(self._scrape.listen) if self._scrape.listen else None
            unserved = self.router.wait_metrics(where, timeout_s=METRICS_TIMEOUT_S)
        runs = self._bootstrap.other_plane()
        notes = f"; not deployed: {self._not_deployed}" if self._not_deployed else ""
        notes += f"; it runs on plane {runs} until: turnout router --replace" if runs else ""
        notes += f"; metrics are not served: {unserved}" if unserved else ""
        return msgspec.structs.replace(result, text=result.text + notes)

    def _must_be_served(self, result: VerbResult) -> None:
        """See that a router serves the address, and has applied what was done: it may have died in the meantime.

        Raises:
            TimedOutError: none does.
        """
        try:
            self._bootstrap.wait_for_router()
            revision = self.service.registry.read().snapshot.deployment.revision
            self.router.wait_applied(self.service.name, revision, timeout_s=ROUTER_TIMEOUT_S)
        except (NotRunningError, TimedOutError) as error:
            raise TimedOutError(
                f"{result.text}; but {self._where()} is not served: {error.message}",
                hint=error.hint or f"see {self.home.router_log}",
            ) from error

    def _end_service(self) -> VerbResult:
        """Drain and stop all of it, the router too; other services of this home go on.

        Raises:
            StillRunningError: it is down, but for processes that cannot be ended.
        """
        self._set_desired(Desired.STOPPED)
        _ = self._bootstrap.keeper  # where there is none, one is started: it stops what is left
        active = self.service.registry.read().snapshot.active
        if active:
            self._deactivate(active, "down", DrainCause.REPLACED)
        left = self._processes.drain_and_stop()
        self._processes.close_address()
        self._remove_pins()
        release_claim(self.home, self.service.home, self.service.registry.path)
        if left:
            message = "; ".join(error.message for error in left)
            raise StillRunningError(f"{self.service.name} is down, but {message}", hint=left[0].hint)
        return VerbResult(f"{self.service.name} is down{_runs_on(active) if active and not active.owned else ''}")

    def _end_rest(self, *, beside: bool) -> VerbResult:
        """``down`` of a service of which nothing runs, or (``beside``) whose registry file another service has."""
        service, text = self.service, f"{self.service.name} is down"
        if beside:
            for boot_id in self._processes.boots():
                self._processes.stop(boot_id)
            self._processes.close_address()
            text += f"; another service has {service.registry.path}"
        elif service.registry.path.exists() and not is_others(self.home, service.home, service.registry.path):
            with suppress(TurnoutError):  # a full disk: it is down all the same
                self._set_desired(Desired.STOPPED)
        self._remove_pins()
        if not beside:
            release_claim(self.home, service.home, service.registry.path)
        return VerbResult(text, changed=beside)

    def _remove_pins(self) -> None:
        """Remove the steering of a router that was killed; one that ends does so itself."""
        pins = pins_of(self.home.root, self.service.name)
        if pins and pins.exist():
            with suppress(OSError):  # doctor names what is left
                pins.remove()


def _runs_on(daemon: Daemon) -> str:
    ended = "had ended already" if provably_dead(daemon.identity) else "is left as it is"
    how = "runs on" if is_alive(daemon.identity) else ended
    return f"; {daemon_name(daemon)} was attached, and {how}"
