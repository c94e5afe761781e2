"""Checks the daemons of one service, and notes whether the listener of the active daemon is proven to be its own."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from turnout.core.model import Daemon
from turnout.router.followed_service import FollowedService
from turnout.router.health.probing import ProbeThreads
from turnout.router.upstream import UpstreamSelector
from turnout.state.service import probe_spec
from turnout.system.probes.connect import Door
from turnout.system.probes.probe import ProbeResult, look_at_listener, probe

PROVE_FIRST_S: Final = 0.05  # a look costs a walk through the process table, and a listener may stay lost for hours
PROVE_MOST_S: Final = 1.0
log = logging.getLogger("turnout.router")


@dataclass(slots=True)
class DaemonProber:
    """Probes the daemons of one service. Owns nothing.

    Args:
        upstream: knows where a daemon is reached, and notes whether the listener there is its own.
        door: how a connection reaches a daemon that shares the fixed address.
        changed: called when the active daemon's listener is no longer proven, or is proven again: clients are to be
            held, or sent to the daemon.
    """

    service: FollowedService
    threads: ProbeThreads
    upstream: UpstreamSelector
    door: Door
    changed: Callable[[], None]
    _unproven: asyncio.Event = field(default_factory=asyncio.Event)
    _environ: Mapping[str, str] | None = None
    _environ_for: str = ""

    async def probe(self, daemon: Daemon) -> ProbeResult:
        """Check a daemon once, by the settings that are in force."""
        health, started = self.service.live.settings.health, self.upstream.as_started(daemon)
        spec = msgspec.structs.replace(probe_spec(self.service.live.settings, started), door=self.door)
        if spec.kind == "exec":
            spec = msgspec.structs.replace(spec, environ=await self._environ_of(daemon))

        def check() -> ProbeResult:
            return probe(started, spec, timeout_s=health.timeout_s)

        result = await self.threads.run(daemon, check, timeout_s=health.timeout_s)
        self._note_listener(daemon, result)
        return result

    def _note_listener(self, daemon: Daemon, result: ProbeResult) -> None:
        """Note whether the daemon's listener was proven, and have the plane follow."""
        if result.proven is not None and self.upstream.listener_seen(daemon, proven=result.proven):
            if not result.proven:
                log.warning("%s: clients are held: %s", self.service.live.service.name, result.reason)
                self._unproven.set()
            self.changed()

    async def _environ_of(self, daemon: Daemon) -> Mapping[str, str] | None:
        """The environment of its deploy, for the program that checks it; read once for each daemon."""
        if not daemon.build:
            return None
        if self._environ is None or self._environ_for != daemon.boot_id:
            environ_of, reading = self.service.live.service.environ_of, self.service.files.reading
            self._environ = await self.service.loop.run_in_executor(reading, environ_of, daemon.build)
            self._environ_for = daemon.boot_id
        return self._environ

    async def watch_listener(self) -> None:
        """Look at a listener that is not proven more often than health checks do, since its clients are held."""
        pause_s = PROVE_FIRST_S
        while True:
            await self._unproven.wait()
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, PROVE_MOST_S)
            active = self.service.registry.snapshot.active
            if active is None or self.upstream.is_proven(active):
                self._unproven.clear()
                pause_s = PROVE_FIRST_S
                continue
            spec = self.service.live.service.probe_spec
            look = functools.partial(look_at_listener, self.upstream.located(active), spec)
            result = await self.threads.run(active, look, timeout_s=PROVE_MOST_S, kind="listener look")
            self._note_listener(active, result)
