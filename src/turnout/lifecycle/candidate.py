"""A candidate from its start until it is ready, and its stop when it is given up.

    launch spec ─ spawn ─ probe until healthy ─ ask whether it would refuse its clients

The registry's block names the candidate before anything here begins (:mod:`turnout.lifecycle.rollout`), and the
candidate gets an entry of its own as soon as it runs.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import replace
from typing import Final

import msgspec

from turnout.activation.obstacle import obstacle
from turnout.config.settings import takes_listener
from turnout.control.keeper_client import BoundPorts
from turnout.control.router_client import RouterClient
from turnout.core.addresses import reachable
from turnout.core.data_owner import DataOwner, owns_its_data
from turnout.core.membership import register_daemon
from turnout.core.model import Daemon, Identity
from turnout.core.outcome import must_hold
from turnout.core.rollout_step import RolloutStep
from turnout.core.slots import source_of
from turnout.errors import CandidateError, NotRunningError, TimedOutError
from turnout.lifecycle.bootstrap import Bootstrap
from turnout.lifecycle.failure_report import candidate_error, log_tail
from turnout.lifecycle.launch_spec import LaunchSpec, build_launch_spec, shares_fixed_address
from turnout.lifecycle.progress import Progress
from turnout.state.builds import Build
from turnout.state.exec_context import ExecContext
from turnout.state.service import Service
from turnout.system.net.ports import choose_port
from turnout.system.net.sockets import listening_at
from turnout.system.probes.probe import ProbeResult, probe
from turnout.system.probes.readiness import says_not_ready
from turnout.system.probes.wait import wait_healthy
from turnout.system.process import is_alive
from turnout.system.spawn_record import SpawnRecord, read_records

ROUTER_TIMEOUT_S: Final = 10.0
SPAWN_TRIES: Final = 3
READY_AGAIN_S: Final = 0.05
BOUND_AGAIN_S: Final = 0.02
PORT_TAKEN: Final = ("address already in use", "eaddrinuse", "address in use")


class Candidate:
    """One boot of a daemon that a rollout is about to switch to. Owns its process until that switch.

    The keeper forks and reaps it. A rollout that is given up has it stopped by :meth:`stop`. A daemon that something
    else started (``attach``) is only probed, and never stopped. The caller closes ``bootstrap``.
    """

    def __init__(
        self,
        service: Service,
        bootstrap: Bootstrap,
        router: RouterClient,
        boot_id: str,
        *,
        generation: int,
        progress: Progress,
    ) -> None:
        self._service = service
        self._bootstrap = bootstrap
        self._router = router
        self._boot_id = boot_id
        self._generation = generation
        self._progress = progress
        self._spec = msgspec.structs.replace(service.probe_spec, door=router.door(service.name))

    def start(self, build: Build, context: ExecContext) -> Daemon:
        """Have it started, and wait until it is ready: ``start_timeout`` at most for each try.

        Returns:
            The daemon as the registry has it.

        Raises:
            NotRunningError: there is no keeper.
            SpawnError: its command cannot be run.
            CandidateError: it ended, or did not become healthy in time. It may still run: the caller has to stop it.
        """
        settings = self._service.settings
        self._spec, owner = msgspec.structs.replace(self._spec, environ=context.env), owns_its_data(build.command)
        shares = shares_fixed_address(build, settings, self._router, timeout_s=ROUTER_TIMEOUT_S)
        if shares and takes_listener(build.command, build.env, settings):
            daemon = self._spawn(build, context, None)
            self.check_ready(daemon, owner)
            return daemon
        avoid = {address.port for address in settings.listen}
        for attempt in range(1, SPAWN_TRIES + 1):
            with choose_port(avoid=avoid) as reserved:
                if attempt > 1:  # for daemons that bind without SO_REUSEADDR
                    reserved.release()
                daemon = self._spawn(build, context, reserved.port, shares=shares)
                if shares:
                    daemon = self._located(daemon)
                result = self._wait_ready(daemon, owner)
            log = log_tail(self._service.home.log(self._boot_id)).lower()
            taken = result.gone and any(words in log for words in PORT_TAKEN)
            if attempt == SPAWN_TRIES or result.ok or not taken:
                own_port = self._own_port(daemon, reserved.port, result) if settings.activation == "on" else 0
                if result.ok:
                    return self._note_own_port(daemon, own_port) if own_port else daemon
                raise candidate_error(self._service, daemon, result)
            self.stop()  # what it left behind: the next try has the same name
            with suppress(OSError):  # its lines on the socket that keeps the port mislead
                os.truncate(self._service.home.log(self._boot_id), 0)
        raise AssertionError("the last try returns or raises")

    def _located(self, daemon: Daemon) -> Daemon:
        """Wait until an activated daemon listens, ``start_timeout`` at most: at the fixed address itself, or behind it.

        It is behind it where it listens for IPv6, or may not be looked at; then the router relays to it.
        """
        settings, given = self._service.settings, daemon.port
        deadline = time.monotonic() + settings.start_timeout_s
        while time.monotonic() < deadline and is_alive(daemon.identity):
            binds = self._binds()
            if binds.indexes:
                fixed = settings.listen[0]
                at = reachable(fixed.host)
                return self._note(replace(daemon, host=at, port=fixed.port, source=source_of(binds.indexes[0])))
            if binds.trouble or listening_at(daemon.host, given):
                break
            time.sleep(BOUND_AGAIN_S)
        return daemon

    def _own_port(self, daemon: Daemon, given: int, result: ProbeResult) -> int:
        """The port that the daemon bound by its own configuration; 0: it bound the one that it was given.

        Raises:
            CandidateError: it is not known which of its ports is the one for its clients, or it was not answered.
        """
        binds = self._binds()
        several = {binds.serving, *binds.others}
        is_named = binds.serving == given or self._service.settings.port != 0
        if binds.serving and len(several) > 1 and not is_named and not self._has_served(daemon.build):
            ports = ", ".join(map(str, sorted(several)))
            raise CandidateError(
                f"the daemon binds ports {ports}: which of them is for its clients?",
                hint=f"name it, for example --port {binds.serving}, or port = {binds.serving} in turnout.toml",
            )
        if binds.trouble and not result.ok:
            raise CandidateError(
                f"the daemon's own port cannot become the one behind the fixed address: {binds.trouble}",
                hint='activation = "off", and {port} in the command',
            )
        return 0 if binds.serving == given else binds.serving

    def _note_own_port(self, daemon: Daemon, own_port: int) -> Daemon:
        self._progress.note(f"the daemon's own port {own_port} is {daemon.host}:{daemon.port} here")
        return self._note(replace(daemon, own_port=own_port))

    def _note(self, daemon: Daemon) -> Daemon:
        must_hold(self._service.registry.update(lambda snap: register_daemon(snap, daemon)))
        return daemon

    def _binds(self) -> BoundPorts:
        """What the keeper says of its ports; one that died meanwhile is replaced, and the next one knows."""
        with suppress(NotRunningError):
            return self._bootstrap.keeper.binds(self._service.name, self._boot_id)
        self._bootstrap.reconnect()
        return self._bootstrap.keeper.binds(self._service.name, self._boot_id)

    def _has_served(self, build_id: str) -> bool:
        """Whether another daemon of this build is known: it may have bound a second port after it was healthy."""
        daemons = self._service.registry.read().snapshot.daemons.values()
        return any(other.build == build_id and other.boot_id != self._boot_id for other in daemons)

    def check_ready(self, daemon: Daemon, known: DataOwner | None = None) -> None:
        """Wait until a daemon is ready, ``start_timeout`` at most; ``known``: how its kind says that it is not.

        Raises:
            CandidateError: it is not.
        """
        result = self._wait_ready(daemon, known)
        if not result.ok:
            raise candidate_error(self._service, daemon, result)

    def check_once_more(self, daemon: Daemon) -> None:
        """Probe a daemon that is ready a last time. Raises CandidateError: it is not healthy any more."""
        service = self._service
        self._progress.step(RolloutStep.REPROBE, daemon.boot_id)
        result = probe(daemon, self._spec, timeout_s=service.settings.health.timeout_s)
        self._journal_probe(daemon, RolloutStep.REPROBE, result, result.took_s)
        if not result.ok:
            raise candidate_error(service, daemon, result)

    def stop(self) -> None:
        """Have the keeper stop it, and wait until it is gone; one that was never started is gone already.

        Nothing is raised where there is no keeper or it is not gone in time: nothing names it once the rollout is
        aborted, so the router has it stopped.
        """
        settings = self._service.settings
        grace_s = min(settings.stop_grace_s, 10.0)  # nothing was ever connected to it
        with suppress(NotRunningError, TimedOutError):
            self._bootstrap.keeper.stop(
                self._service.name, self._boot_id, stop_signal=settings.stop_signal, grace_s=grace_s
            )

    def _spawn(self, build: Build, context: ExecContext, port: int | None, *, shares: bool = False) -> Daemon:
        """Start it on that port; None: at the fixed address, in the group there. ``shares``: as for the launch spec."""
        settings = self._service.settings
        spec = build_launch_spec(build, settings, port, context.env, shares=shares)
        if spec.activation and (lacks := obstacle(context.program)):
            self._progress.warning(f"the daemon binds its port itself: {lacks}")
            spec = msgspec.structs.replace(spec, activation=None, listener=None)
        self._progress.step(RolloutStep.SPAWN, f"{self._boot_id} on port {spec.address.port}")
        identity = self._fork(spec, build.cwd, context)
        record = self._record()
        now = time.time()
        daemon = Daemon(
            self._boot_id,
            host=spec.address.host,
            port=spec.address.port,
            source=source_of(record.slot) if record and record.listener_inode else "",
            identity=identity,
            start_ts=now,
            last_seen_ts=now,
            version=build.version,
            build=build.id,
            owned=True,
            proxy_protocol=settings.proxy_protocol,
        )
        return self._note(daemon)

    def _fork(self, spec: LaunchSpec, cwd: str, context: ExecContext) -> Identity:
        """Have the keeper start it; a keeper that dies over it is replaced, for nothing may serve meanwhile."""
        try:
            return self._ask_keeper(spec, cwd, context)
        except NotRunningError:
            self._bootstrap.reconnect()
        record = self._record()
        if record and record.ended is None and is_alive(record.identity):
            return record.identity  # it was started, and only the answer was lost
        if record:  # it has ended since; what it left behind goes before another one has its name
            self.stop()
        return self._ask_keeper(spec, cwd, context)

    def _ask_keeper(self, spec: LaunchSpec, cwd: str, context: ExecContext) -> Identity:
        return self._bootstrap.keeper.spawn(
            self._service.name,
            self._boot_id,
            spec.argv,
            cwd=cwd,
            env=spec.env,
            listener=spec.listener,
            program=context.program,
            umask=context.umask,
            limits=context.limits,
            activation=spec.activation,
            on_warning=self._progress.warning,
        )

    def _record(self) -> SpawnRecord | None:
        return read_records(self._service.home.records).get(self._boot_id)

    def _wait_ready(self, daemon: Daemon, known: DataOwner | None) -> ProbeResult:
        """Healthy, and of a kind of daemon that is known to listen too early: not refusing its clients either."""
        settings = self._service.settings
        deadline = time.monotonic() + settings.start_timeout_s
        self._progress.step(RolloutStep.PROBE, daemon.boot_id)
        while True:
            result = self._wait_healthy(daemon, max(0.1, deadline - time.monotonic()))
            if known is None or not result.ok:
                return result
            asks = self._service.probe_spec.preamble + known.asks
            within_s, door = settings.health.timeout_s, self._spec.door
            waits = says_not_ready(daemon, asks, known.not_ready, timeout_s=within_s, door=door)
            if not waits:
                return result
            reason = f"not healthy within {settings.start_timeout_s:g} s: {waits}"
            result = msgspec.structs.replace(result, ok=False, reason=reason)
            if time.monotonic() > deadline:
                return result
            self._progress.attempt(result)
            time.sleep(READY_AGAIN_S)

    def _wait_healthy(self, daemon: Daemon, timeout_s: float) -> ProbeResult:
        settings = self._service.settings
        began = time.monotonic()
        result = wait_healthy(
            daemon,
            self._spec,
            timeout_s=timeout_s,
            check_timeout_s=settings.health.timeout_s,
            on_attempt=self._progress.attempt,
        )
        self._journal_probe(daemon, RolloutStep.PROBE, result, time.monotonic() - began)
        return result

    def _journal_probe(self, daemon: Daemon, step: RolloutStep, result: ProbeResult, after_s: float) -> None:
        """What the candidate was judged by is in the journal, with the time that it took."""
        self._service.journal.write(
            "probe",
            generation=self._generation,
            revision=self._service.registry.read().snapshot.deployment.revision,
            step=step.value,
            candidate=daemon.boot_id,
            ok=result.ok,
            reason=result.reason,
            after_s=round(after_s, 4),
        )
