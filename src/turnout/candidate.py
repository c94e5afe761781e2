"""A candidate from its start until it is ready, and its stop when it is given up.

    place ─ spawn ─ (join the fixed address) ─ probe until healthy ─ ask whether it would refuse its clients

Why it is started, and what the registry says meanwhile, is :mod:`turnout.rollout`'s. The block names the candidate
before anything here begins, and it gets an entry of its own as soon as it runs.
"""

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
from turnout.system.probe import ProbeResult, probe, wait_healthy
from turnout.system.process import is_alive
from turnout.system.readiness import says_not_ready
from turnout.system.spawn import choose_port
from turnout.system.spawn_record import read_records

ROUTER_TIMEOUT_S: Final = 10.0
SPAWN_TRIES: Final = 3
READY_AGAIN_S: Final = 0.05
PORT_TAKEN: Final = ("address already in use", "eaddrinuse", "address in use")


class Candidate:
    """One boot of a daemon that a rollout is about to switch to. Owns its process until that switch.

    The keeper forks and reaps it for whoever is here; who gives the rollout up has it stopped by :meth:`stop`. A daemon
    that something else started (``attach``) is only probed, and never stopped.

    Args:
        service: whose.
        ground: the line to the keeper; the caller's, who closes it.
        router: the line to the router.
        boot_id: the name that the rollout began with.
        generation: that rollout's, for the journal.
        on_step: told each step.
        on_attempt: told the result of each check until it is ready.
    """

    def __init__(
        self,
        service: Service,
        ground: Ground,
        router: RouterClient,
        boot_id: str,
        *,
        generation: int,
        on_step: OnStep,
        on_attempt: Callable[[ProbeResult], None],
    ) -> None:
        self._service = service
        self._ground = ground
        self._router = router
        self._boot_id = boot_id
        self._generation = generation
        self._on_step = on_step
        self._on_attempt = on_attempt

    def start(self, build: Build, build_id: str) -> Daemon:
        """Have it started, and wait until it is ready: ``start_timeout`` at most for each try.

        Args:
            build: what is run.
            build_id: the name of that, as the registry and the list of builds have it.

        Returns:
            The daemon as the registry knows it.

        Raises:
            NotRunningError: there is no keeper.
            SpawnError: its command cannot be run.
            CandidateError: it ended, or did not become healthy in time. It may still run: :meth:`stop` is the caller's.
        """
        settings = self._service.settings
        if shares_address(build, settings, self._router, timeout_s=ROUTER_TIMEOUT_S):
            return self._start_at_fixed_address(build, build_id)
        avoid = {address.port for address in settings.listen}
        for attempt in range(1, SPAWN_TRIES + 1):
            with choose_port(avoid=avoid) as reserved:
                if attempt > 1:  # for daemons that bind without SO_REUSEADDR
                    reserved.release()
                daemon = self._spawn(build, build_id, reserved.port)
                result = self._wait_ready(daemon, owns_its_data(build.command))
            if result.ok:
                return daemon
            said = log_tail(self._service.home.log(self._boot_id)).lower()
            if attempt == SPAWN_TRIES or not result.gone or not any(words in said for words in PORT_TAKEN):
                raise candidate_error(self._service, daemon, result)
        raise AssertionError("the last try returns or raises")

    def check_ready(self, daemon: Daemon, known: DataOwner | None = None, *, began: float | None = None) -> None:
        """Wait until a daemon that runs is ready, ``start_timeout`` at most.

        Args:
            daemon: it.
            known: what is known of daemons of its kind that listen before they are ready; None: nothing is.
            began: when it was started, in monotonic seconds; None: now.

        Raises:
            CandidateError: it is not.
        """
        result = self._wait_ready(daemon, known, began=began)
        if not result.ok:
            raise candidate_error(self._service, daemon, result)

    def check_once_more(self, daemon: Daemon) -> None:
        """Probe a daemon that is ready a last time. Raises CandidateError: it is not healthy any more."""
        service = self._service
        self._on_step(Step.REPROBE, daemon.boot_id)
        result = probe(daemon, service.probe_spec, timeout_s=service.settings.health.timeout_s)
        self._tell_probe(daemon, Step.REPROBE, result, result.took_s)
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
            self._ground.keeper.stop(
                self._service.name, self._boot_id, stop_signal=settings.stop_signal, grace_s=grace_s
            )

    def _start_at_fixed_address(self, build: Build, build_id: str) -> Daemon:
        """Into the group at the fixed address, where it was given its place, or takes one by itself."""
        settings = self._service.settings
        daemon = self._spawn(build, build_id, None)
        began = time.monotonic()
        if settings.shares_port:
            daemon = wait_joined(self._service, daemon, timeout_s=settings.start_timeout_s)
            self._register(daemon)
        self.check_ready(daemon, owns_its_data(build.command), began=began)
        if settings.shares_port:
            check_joined(self._service, daemon)
        return daemon

    def _spawn(self, build: Build, build_id: str, port: int | None) -> Daemon:
        """Start it on that port; None: at the fixed address, in the group there."""
        where = place(build, self._service.settings, port)
        at = where.at
        self._on_step(Step.SPAWN, f"{self._boot_id} on port {at.port}")
        identity = self._fork(where, build.cwd)
        record = read_records(self._service.home.records).get(self._boot_id)
        now = time.time()
        daemon = Daemon(
            self._boot_id,
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
        self._register(daemon)
        return daemon

    def _register(self, daemon: Daemon) -> None:
        must_hold(self._service.registry.update(lambda snap: register_daemon(snap, daemon)))

    def _fork(self, where: Place, cwd: str) -> Identity:
        """Have the keeper start it; a keeper that dies over it is replaced, for nothing may serve meanwhile."""
        try:
            return self._ask_keeper(where, cwd)
        except NotRunningError:
            self._ground.renew()
        record = read_records(self._service.home.records).get(self._boot_id)
        if record and record.ended is None and is_alive(record.identity):
            return record.identity  # it was started, and only the answer was lost
        return self._ask_keeper(where, cwd)

    def _ask_keeper(self, where: Place, cwd: str) -> Identity:
        return self._ground.keeper.spawn(
            self._service.name, self._boot_id, where.argv, cwd=cwd, env=where.env, listener=where.listener
        )

    def _wait_ready(self, daemon: Daemon, known: DataOwner | None, *, began: float | None = None) -> ProbeResult:
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
            self._on_attempt(result)
            time.sleep(READY_AGAIN_S)

    def _wait_healthy(self, daemon: Daemon, timeout_s: float) -> ProbeResult:
        settings = self._service.settings
        began = time.monotonic()
        result = wait_healthy(
            daemon,
            self._service.probe_spec,
            timeout_s=timeout_s,
            check_timeout_s=settings.health.timeout_s,
            on_attempt=self._on_attempt,
        )
        self._tell_probe(daemon, Step.PROBE, result, time.monotonic() - began)
        return result

    def _tell_probe(self, daemon: Daemon, step: Step, result: ProbeResult, after_s: float) -> None:
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
