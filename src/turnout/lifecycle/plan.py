"""The rules of the verbs: each verb's plan, or why the verb is refused, from the state that was read. Read-only.

A verb makes its plan under its lock and carries out the action; ``--dry-run`` makes it without the lock and prints the
steps.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import msgspec

from turnout.config.build_stamp import is_version_pending
from turnout.config.command_check import check_no_container
from turnout.config.settings import ServiceRequest, Settings, takes_listener
from turnout.control.router_client import RouterClient
from turnout.core.deployment import (
    begin_deploy,
    deactivate,
    mark_candidate_healthy,
    retire_active,
    rollback_active,
    switch_active,
)
from turnout.core.membership import register_daemon
from turnout.core.model import Cause, Daemon, Desired, DrainCause, Identity, Snapshot, State
from turnout.core.outcome import must_hold
from turnout.errors import ConflictError, NotRunningError, UsageError
from turnout.lifecycle import actions
from turnout.lifecycle.build_selection import (
    attach_again,
    build_to_deploy,
    build_to_return_to,
    last_good_build,
    start_hint,
    wanted_build,
)
from turnout.lifecycle.forecast import Forecast
from turnout.lifecycle.launch_context import Launches
from turnout.lifecycle.naming import attached_boot_id, daemon_name
from turnout.lifecycle.port_forwarder import check_forwarded
from turnout.lifecycle.recreate import check_can_make_room
from turnout.lifecycle.rollout import OBSERVED
from turnout.lifecycle.verb_request import VerbRequest
from turnout.state.builds import Build
from turnout.state.service import Service
from turnout.system.net.sockets import who_listens
from turnout.system.probes.probe import probe
from turnout.system.process import identify, is_alive, own_identity, provably_dead

_CANDIDATE: Final = "<candidate>"  # of a daemon that does not exist yet: no boot id and no name of a file is like it


class Planner:
    """The rules of the verbs, over one forecast of the registry. A dry run runs no program of the configuration."""

    def __init__(
        self,
        service: Service,
        wanted: ServiceRequest,
        request: VerbRequest,
        launches: Launches,
        forecast: Forecast,
        *,
        is_dry_run: bool,
    ) -> None:
        self._service = service
        self._wanted = wanted
        self._settings: Settings = service.settings
        self._request = request
        self._launches = launches
        self._snapshot = forecast.snapshot
        self._failed = forecast.failed
        self._is_dry_run = is_dry_run
        self._steps: list[str] = []

    def plan(self) -> actions.Plan:
        """The plan of the verb. Raises TurnoutError: the verb is refused."""
        rules: dict[str, Callable[[], actions.Action]] = {
            "up": self._up,
            "start": self._start,
            "deploy": self._deploy,
            "refresh": self._refresh,
            "rollback": self._rollback,
            "attach": self._attach,
            "detach": self._detach,
            "stop": self._stop,
            "down": self._down,
            "pause": lambda: self._turn(Desired.PAUSED, "hold new connections"),
            "resume": lambda: self._turn(Desired.RUNNING, "let held connections go"),
            "drain": self._drain,
        }
        action = rules[self._request.verb]()
        return actions.Plan(action, tuple(self._steps))

    @property
    def _where(self) -> str:
        return ", ".join(map(str, self._settings.listen))

    @property
    def _living(self) -> Daemon | None:
        active = self._snapshot.active
        return active if active and is_alive(active.identity) else None

    @property
    def _dead_in_window(self) -> bool:
        """Whether a window's daemon has died, with nothing to switch back to: a start ends the window."""
        return self._snapshot.deployment.state is State.SWITCHED and self._living is None

    def _quarantined(self, build: Build) -> str | None:
        failed = self._failed and self._failed.build == build.id
        return self._service.builds.quarantined(build.id) or ("it has ended" if failed else None)

    def _up(self) -> actions.Action:
        active = self._living
        name = self._service.name
        build = wanted_build(self._service, self._wanted, required=self._snapshot.active is None)
        pending = build is not None and is_version_pending(self._wanted)
        barred = self._quarantined(build) if build and not pending else None
        if not active:
            if pending:
                self._ask_version()
            if build is None or barred:
                build = last_good_build(self._service, self._wanted, self._snapshot)
            return self._roll(build, Cause.START, supersede=self._dead_in_window)
        is_up = f"{name} is up: {daemon_name(active)} behind {self._where}"
        if build is None or not active.owned or (active.build == build.id and not pending):
            return self._leave(is_up, Desired.RUNNING)
        if barred:
            self._steps.append(f"leave {daemon_name(active)}: the configured build is quarantined ({barred})")
            but = f"; the configured build was rolled back ({barred}), deploy --force insists on it"
            return self._leave(is_up + but, Desired.RUNNING)
        if pending:
            self._ask_version()
            runs = self._service.builds.get(active.build)
            if runs and msgspec.structs.replace(build, version=runs.version).id == runs.id:
                self._steps.append(
                    f"leave {daemon_name(active)} if the version is still {runs.version!r}, and otherwise:"
                )
        return self._roll(build, Cause.DEPLOY)

    def _ask_version(self) -> None:
        """Add the step of ``version_command``, which says which build it is; a dry run does not run it."""
        command = shlex.join(self._settings.version_command)
        self._steps.append(f"run {command} for the version, which is not known yet")

    def _start(self) -> actions.Action:
        """Start the build that was active last, never another. For the router, a stopped service stays stopped."""
        service, request, block = self._service, self._request, self._snapshot.deployment
        if self._snapshot.active is None:
            wanted_build(service, self._wanted, required=True)
        if request.automatic and block.desired is Desired.STOPPED:
            return actions.Leave(f"{service.name} is to be {block.desired}")
        active = self._living
        if active and active.boot_id == request.unwell and block.state is State.IDLE:
            return self._replace_unwell(active)
        if active:
            return self._leave(f"{service.name} runs already: {daemon_name(active)}", Desired.RUNNING)
        if request.automatic and self._dead_in_window:  # decided before the switch, over the daemon that was active
            return actions.Leave(f"{service.name} is observed: its checks decide")
        build = last_good_build(service, self._wanted, self._snapshot)
        return self._roll(build, Cause.START, supersede=self._dead_in_window)

    def _replace_unwell(self, active: Daemon) -> actions.Action:
        """Start a new process of the same build; the old one serves until the switch, and is then drained at once."""
        build = self._service.builds.get(active.build)
        if build is None or self._is_well(active):
            return actions.Leave(f"{daemon_name(active)} is well again")
        return msgspec.structs.replace(self._roll(build, Cause.REFRESH, expected=active), hastened=active.boot_id)

    def _is_well(self, daemon: Daemon) -> bool:
        spec = self._service.spec_of(daemon)
        if self._is_dry_run and spec.kind == "exec":
            return is_alive(daemon.identity)
        router = RouterClient(self._service.home.home)
        spec = msgspec.structs.replace(spec, door=router.door(self._service.name))
        return probe(daemon, spec, timeout_s=self._settings.health.timeout_s).ok

    def _deploy(self) -> actions.Action:
        build = build_to_deploy(self._service, self._wanted)
        if is_version_pending(self._wanted):
            self._ask_version()
        reason = self._service.builds.quarantined(build.id)
        just_failed = self._failed is not None and self._failed.build == build.id
        if reason and not self._request.force and not just_failed:
            raise ConflictError(
                f"build {build.id} is quarantined: {reason}",
                hint="change the build, or deploy it all the same: --force",
            )
        action = self._roll(build, Cause.DEPLOY, supersede=self._dead_in_window)
        if reason:
            self._steps.append("lift the quarantine of that build")
        return msgspec.structs.replace(action, pardon=bool(reason))

    def _refresh(self) -> actions.Action:
        active = self._snapshot.active
        if active is None:
            raise NotRunningError(f"service {self._service.name} has no active daemon", hint=start_hint(self._service))
        build = self._service.builds.get(active.build)
        if build is None:
            raise UsageError(
                f"{daemon_name(active)} was not started by turnout",
                hint=f"restart it yourself, then: {attach_again(active)}",
            )
        return self._roll(build, Cause.REFRESH, expected=active)

    def _rollback(self) -> actions.Action:
        """In the window back to the warm daemon; else a new rollout of the recorded build.

        The router asks (``automatic``) where a window's daemon failed and the previous one is gone.
        """
        request, block, old = self._request, self._snapshot.deployment, self._snapshot.old
        observed = block.state is State.SWITCHED
        failed = observed and block.health_fail_streak >= self._settings.health.failures
        if request.automatic and (not failed or block.desired is Desired.STOPPED):
            return actions.Leave("nothing is to be rolled back")
        active = self._snapshot.active
        if request.generation is None and observed and old and self._is_well(old):
            must_hold(rollback_active(self._snapshot, block.generation, old.boot_id, reason="by hand"))
            self._steps.append(
                f"switch back to {daemon_name(old)}, which still runs, and end generation {block.generation}"
            )
            if active and active.owned:
                self._steps.append(f"drain and stop {daemon_name(active)}")
            return actions.SwitchBack(block.generation, old, active)
        build = build_to_return_to(self._service, self._snapshot, request.generation)
        action = self._roll(build, Cause.ROLLBACK, supersede=observed)
        return msgspec.structs.replace(action, rolled_back=active, ends_window=block.generation if observed else None)

    def _attach(self) -> actions.Action:
        address = self._request.address
        assert address is not None
        if any(address.port == own.port for own in self._settings.listen):
            raise UsageError(f"{address} is the service's own address", hint="name the daemon's own port")
        holder = who_listens(address.host, address.port)
        if holder is None or not holder.listening:
            raise NotRunningError(f"nothing listens on {address}", hint="start the daemon first")
        check_forwarded(address, holder, self._settings)
        identity = Identity()
        with suppress(ProcessLookupError, PermissionError):
            identity = identify(holder.pid) if holder.pid else identity
        daemon = Daemon(
            attached_boot_id(identity, address.port),
            host=address.host,
            port=address.port,
            identity=identity,
            start_ts=time.time(),
            last_seen_ts=time.time(),
            proxy_protocol=self._settings.proxy_protocol,
        )
        begun = self._begin(Cause.ATTACH, supersede=False)
        self._steps.append(f"probe {holder.command} (pid {holder.pid}) on {address} until it is healthy")
        self._switch(begun, Cause.ATTACH, makes_room=False)
        return actions.AttachDaemon(daemon)

    def _roll(
        self, build: Build, cause: Cause, *, supersede: bool = False, expected: Daemon | None = None
    ) -> actions.StartBuild:
        request, settings = self._request, self._settings
        if not request.automatic:  # a restart of what an earlier version took is no time to refuse it
            check_no_container(build.command)
        recreates = settings.strategy == "recreate"
        if recreates:
            check_can_make_room(self._snapshot.active)
        launch = self._launches.choose(build, cause, request.generation)
        supersede = supersede or request.supersede
        begun = self._begin(cause, supersede=supersede)
        if recreates and self._living:
            self._steps.append(
                f"hold new connections, at most {settings.hold_timeout_s:g} s, and stop {daemon_name(self._living)}"
            )
        version = f" (version {build.version})" if build.version else ""
        self._steps.append(f"start {shlex.join(build.command)}{version} in {build.cwd}")
        self._steps += [f"warn: {text}" for text in (launch.note, *launch.warnings) if text]
        if settings.activation == "on" and not takes_listener(build.command, build.env, settings):
            of = f"its port {settings.port}" if settings.port else "the port that it binds, which is not known before"
            self._steps.append(f"give it the fixed address for {of}")
        health = settings.health
        self._steps.append(f"probe it ({health.probe}) until it is healthy, for {settings.start_timeout_s:g} s at most")
        self._switch(begun, cause, makes_room=recreates)
        return actions.StartBuild(build, cause, launch, supersede, expected.boot_id if expected else None)

    def _begin(self, cause: Cause, *, supersede: bool) -> Snapshot:
        """Ask the state machine whether the rollout may begin; its answer is not written."""
        outcome = begin_deploy(
            self._snapshot,
            _CANDIDATE,
            owner=own_identity(),
            cause=cause,
            supersede=supersede,
            expected_generation=self._request.if_generation,
        )
        must_hold(outcome)
        self._steps.append(f"begin generation {outcome.deployment.generation} ({cause.value})")
        return outcome.snapshot

    def _switch(self, begun: Snapshot, cause: Cause, *, makes_room: bool) -> None:
        active, living = begun.active, self._living
        source = f"from {daemon_name(living)} " if living else ""
        self._steps.append(f"switch new connections {source}to it")
        generation = begun.deployment.generation
        if active and (makes_room or provably_dead(active.identity)):
            begun = retire_active(begun, generation, active.boot_id).snapshot
        ready = register_daemon(begun, Daemon(_CANDIDATE)).snapshot
        ready = mark_candidate_healthy(ready, generation, _CANDIDATE).snapshot
        switched = switch_active(ready, generation, _CANDIDATE, now=0.0, window=cause in OBSERVED)
        if switched.deployment.state is State.SWITCHED:
            failures = self._settings.health.failures
            self._steps.append(
                f"watch it for {self._settings.observe_s:g} s; {failures} failed checks in a row bring the previous one"
                " back"
            )
        if living and living.owned and not makes_room:
            self._steps.append(f"then drain and stop {living.boot_id}")

    def _leave(self, text: str, desired: Desired) -> actions.Leave:
        """Change no daemon, and record ``desired``; a paused service stays paused until it is resumed."""
        now = self._snapshot.deployment.desired
        if desired is Desired.RUNNING and now is Desired.STOPPED:
            self._steps.append("keep it running")
        if desired is Desired.STOPPED and now is not Desired.STOPPED:
            self._steps.append("keep it stopped")
        return actions.Leave(text, desired)

    def _detach(self) -> actions.Action:
        active = self._snapshot.active
        if active is None:
            raise NotRunningError("nothing is attached", hint="turnout status")
        if active.owned:
            raise UsageError(f"{daemon_name(active)} was started by turnout", hint="turnout stop")
        self._steps.append(f"let {daemon_name(active)} go; new connections are reset")
        self._check_idle(active)
        return actions.DetachDaemon(active)

    def _stop(self) -> actions.Action:
        active = self._snapshot.active
        if active is None:
            return self._leave(f"{self._service.name} is stopped", Desired.STOPPED)
        if active.owned:
            signals = f"{self._settings.stop_signal}, then KILL after {self._settings.stop_grace_s:g} s"
            self._steps.append(f"stop {daemon_name(active)} ({signals}); new connections are reset")
        else:
            self._steps.append(
                f"leave {daemon_name(active)}, which was attached and runs on; new connections are reset"
            )
        self._check_idle(active)
        return actions.StopDaemon(active)

    def _check_idle(self, active: Daemon) -> None:
        """Raises ConflictError: a rollout is under way, so the active daemon cannot be taken out of service."""
        generation = self._snapshot.deployment.generation
        must_hold(deactivate(self._snapshot, generation, active.boot_id, reason="stopped"))

    def _down(self) -> actions.Action:
        active = self._snapshot.active
        if active:
            self._check_idle(active)
        elif self._snapshot.deployment.desired is not Desired.STOPPED:
            self._steps.append("keep it stopped")
        return actions.EndService()

    def _turn(self, desired: Desired, step: str) -> actions.Action:
        desired_now = self._snapshot.deployment.desired
        if desired_now is Desired.STOPPED:
            raise NotRunningError(f"service {self._service.name} is stopped", hint=start_hint(self._service))
        if desired_now is not desired:
            self._steps.append(f"{step} on {self._where}")
        return actions.SetDesired(desired)

    def _drain(self) -> actions.Action:
        """actions.Hasten the daemons that drain: cut at the next quiet moment, or at once."""
        named = self._snapshot.deployment.named
        how = "stop it at once" if self._request.now else "cut its connections at their next quiet moment"
        daemons = self._snapshot.daemons.values()
        draining = tuple(daemon for daemon in daemons if daemon.draining and daemon.boot_id not in named)
        self._steps += [f"hasten {daemon_name(daemon)}: {how}" for daemon in draining]
        return actions.Hasten(draining, DrainCause.STOPPED if self._request.now else DrainCause.HASTENED)
