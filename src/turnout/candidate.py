"""A candidate from its start until it is ready: given a place, forked by the keeper, probed until it is healthy."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Final

from turnout.admin import RouterClient
from turnout.candidate_error import candidate_error, log_tail
from turnout.core.membership import register_daemon
from turnout.core.model import Daemon, Identity
from turnout.core.outcome import must_hold
from turnout.core.policy import DataOwner, owns_its_data
from turnout.core.slots import source_of
from turnout.core.step import OnStep, Step
from turnout.errors import NotRunningError, TimedOutError
from turnout.ground import Ground
from turnout.joined import check_joined, wait_joined
from turnout.placing import Place, place, shares_address
from turnout.service import Service
from turnout.system.builds import Build
from turnout.system.probe import ProbeResult, wait_healthy
from turnout.system.process import is_alive
from turnout.system.readiness import says_not_ready
from turnout.system.spawn import choose_port
from turnout.system.spawn_record import read_records

APPLY_TIMEOUT_S: Final = 10.0
SPAWN_TRIES: Final = 3
READY_AGAIN_S: Final = 0.05
PORT_TAKEN: Final = ("address already in use", "eaddrinuse", "address in use")


class Candidate:
    """What one rollout has started, or is about to."""

    def __init__(
        self,
        service: Service,
        ground: Ground,
        router: RouterClient,
        *,
        generation: int,
        on_step: OnStep,
        on_attempt: Callable[[ProbeResult], None],
    ) -> None:
        self._service = service
        self._ground = ground
        self._router = router
        self._registry = service.registry
        self._generation = generation
        self._on_step = on_step
        self._attempted = on_attempt

    def start_healthy(self, boot_id: str, build: Build, build_id: str) -> Daemon:
        """Spawn and probe; a daemon that ends because its port was taken is tried again on another one."""
        settings = self._service.settings
        if shares_address(build, settings, self._router, timeout_s=APPLY_TIMEOUT_S):
            daemon = self._spawn(boot_id, build, build_id, None)
            began = time.monotonic()
            if settings.shares_port:
                daemon = wait_joined(self._service, daemon, timeout_s=settings.start_timeout_s)
                must_hold(self._registry.update(lambda snap: register_daemon(snap, daemon)))
            result = self.wait_ready(daemon, owns_its_data(build.command), began=began)
            if not result.ok:
                raise candidate_error(self._service, daemon, result)
            if settings.shares_port:
                check_joined(self._service, daemon)
            return daemon
        avoid = {address.port for address in settings.listen}
        for attempt in range(1, SPAWN_TRIES + 1):
            with choose_port(avoid=avoid) as reserved:
                if attempt > 1:  # for daemons that bind without SO_REUSEADDR
                    reserved.release()
                daemon = self._spawn(boot_id, build, build_id, reserved.port)
                result = self.wait_ready(daemon, owns_its_data(build.command))
            if result.ok:
                return daemon
            said = log_tail(self._service.home.log(boot_id)).lower()
            if attempt == SPAWN_TRIES or not result.gone or not any(words in said for words in PORT_TAKEN):
                raise candidate_error(self._service, daemon, result)
        raise AssertionError("the last try returns or raises")

    def _spawn(self, boot_id: str, build: Build, build_id: str, port: int | None) -> Daemon:
        """Start it on that port; None: at the fixed address, in the group there."""
        where = place(build, self._service.settings, port)
        at = where.at
        self._on_step(Step.SPAWN, f"{boot_id} on port {at.port}")
        identity = self._fork(boot_id, where, build.cwd)
        record = read_records(self._service.home.records).get(boot_id)
        now = time.time()
        daemon = Daemon(
            boot_id,
            host=at.host,
            port=at.port,
            source=source_of(record.slot) if record and record.listener_inode else "",
            identity=identity,
            start_ts=now,
            last_seen_ts=now,
            version=build.version,
            build=build_id,
            owned=True,
            proxy_protocol=self._service.settings.proxy_protocol,
        )
        must_hold(self._registry.update(lambda snap: register_daemon(snap, daemon)))
        return daemon

    def _fork(self, boot_id: str, where: Place, cwd: str) -> Identity:
        """Have the keeper start it; a keeper that dies over it is replaced, for nothing may serve meanwhile."""
        name = self._service.name
        try:
            return self._ground.keeper.spawn(name, boot_id, where.argv, cwd=cwd, env=where.env, listener=where.listener)
        except NotRunningError:
            self._ground.renew()
        record = read_records(self._service.home.records).get(boot_id)
        if record and record.ended is None and is_alive(record.identity):
            return record.identity  # it was started, and only the answer was lost
        return self._ground.keeper.spawn(name, boot_id, where.argv, cwd=cwd, env=where.env, listener=where.listener)

    def wait_ready(self, daemon: Daemon, known: DataOwner | None, *, began: float | None = None) -> ProbeResult:
        """Healthy, and of a kind of daemon that is known to listen too early: not refusing its clients either."""
        settings = self._service.settings
        deadline = (time.monotonic() if began is None else began) + settings.start_timeout_s
        self._on_step(Step.PROBE, daemon.boot_id)
        while True:
            result = self._wait_healthy(daemon, max(0.1, deadline - time.monotonic()))
            if known is None or not result.ok:
                return result
            asks = self._service.probe_spec.preamble + known.asks
            waits = says_not_ready(daemon.host, daemon.port, asks, known.not_ready, timeout_s=settings.health.timeout_s)
            if not waits:
                return result
            result = replace(result, ok=False, reason=f"not healthy within {settings.start_timeout_s:g} s: {waits}")
            if time.monotonic() > deadline:
                return result
            self._attempted(result)
            time.sleep(READY_AGAIN_S)

    def _wait_healthy(self, daemon: Daemon, timeout_s: float) -> ProbeResult:
        settings = self._service.settings
        began = time.monotonic()
        result = wait_healthy(
            daemon,
            self._service.probe_spec,
            timeout_s=timeout_s,
            check_timeout_s=settings.health.timeout_s,
            on_attempt=self._attempted,
        )
        self.tell_probe(daemon, Step.PROBE, result, time.monotonic() - began)
        return result

    def tell_probe(self, daemon: Daemon, step: Step, result: ProbeResult, after_s: float) -> None:
        """What the candidate was judged by is in the journal, with the time that it took."""
        self._service.journal.write(
            "probe",
            generation=self._generation,
            revision=self._registry.read().snapshot.deployment.revision,
            step=step.value,
            candidate=daemon.boot_id,
            ok=result.ok,
            reason=result.reason,
            after_s=round(after_s, 4),
        )

    def stop(self, boot_id: str) -> None:
        settings = self._service.settings
        grace_s = min(settings.stop_grace_s, 10.0)  # nothing was ever connected to it
        with suppress(NotRunningError, TimedOutError):  # then the router has it stopped, since nothing names it
            self._ground.keeper.stop(self._service.name, boot_id, stop_signal=settings.stop_signal, grace_s=grace_s)
