"""What keeps one service's daemon well: its supervisor, restarter and cold rollback, and the world that they share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import replace
from typing import Final

from turnout.automatic import run_verb
from turnout.carrier import is_abandoned
from turnout.cold_rollback import ColdRollback
from turnout.core.deployment import abort_deploy, deactivate
from turnout.core.model import Daemon, Deployment, Snapshot
from turnout.core.outcome import Outcome, Reason, refuse
from turnout.core.policy import abandoned
from turnout.core.proxy_protocol import LOCAL_HEADER
from turnout.errors import ConflictError
from turnout.following import Following
from turnout.live_settings import LiveSettings
from turnout.pointing import Pointing
from turnout.restarter import Restarter, Started
from turnout.supervisor import Change, Supervisor
from turnout.system.home import Home
from turnout.system.probe import ProbeResult, probe
from turnout.telling import Telling

OWNER_LOOK_S: Final = 0.25


class Supervision:
    """The world of the three: they decide, and everything they touch is here. Their tasks belong to the service.

    Args:
        loop: the router's.
        executor: where probes run, and files are written.
        home: the state directory.
        live: the service and its settings.
        following: the registry.
        pointing: knows which daemon expects a PROXY header.
        telling: log and journal.
        restart_changed: called when a restart has come to be due, or is no longer.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        executor: Executor,
        home: Home,
        live: LiveSettings,
        following: Following,
        pointing: Pointing,
        telling: Telling,
        restart_changed: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._executor = executor
        self._home = home
        self._live = live
        self._following = following
        self._pointing = pointing
        self._telling = telling
        self._restart_changed = restart_changed
        self.supervisor = Supervisor(self, lambda: live.settings)
        self.restarter = Restarter(self)
        self.cold_rollback = ColdRollback(self)

    def process_ended(self, boot_id: str) -> None:
        """Check at once, where it was the active daemon's."""
        if self._following.snapshot.deployment.active_boot_id == boot_id:
            self.supervisor.poke()

    async def watch_owner(self) -> None:
        """A rollout whose owner is provably dead is ended: its candidate would run, for nobody, until the next verb.

        Where nothing serves since it retired what did, somebody must go on instead: clients are held.
        """
        while True:
            await asyncio.sleep(OWNER_LOOK_S)
            block = self._following.snapshot.deployment
            if not is_abandoned(block, self._live.service.home):
                continue
            if block.active_boot_id:
                await self._abort_abandoned(block)
            else:
                daemon = self._following.snapshot.old or self._following.snapshot.candidate
                lost = daemon or Daemon(block.candidate_boot_id, owned=True)
                self.restarter.died(lost, f"the rollout of generation {block.generation} lost its owner")

    async def _abort_abandoned(self, block: Deployment) -> None:
        generation, reason = block.generation, abandoned(block)

        def end(snap: Snapshot) -> Outcome:
            if not snap.deployment.active_boot_id:  # retired a moment before the death, and not seen here yet
                return refuse(snap, Reason.ACTIVE_CHANGED)
            return abort_deploy(snap, generation, reason=reason)

        outcome = await self.update(end)
        if outcome.applied:
            self.journal("abort", outcome, reason=reason, owner_pid=block.owner.pid)
            with self._following.unbroken():
                await self._loop.run_in_executor(
                    self._executor, lambda: self._live.service.builds.set_result(generation, "aborted")
                )

    # -- the world ---------------------------------------------------------------------------------------------------

    def now(self) -> float:
        return self._loop.time()

    def say(self, event: str, boot_id: str, **evidence: object) -> None:
        self._telling.say(event, boot_id, **evidence)

    def journal(self, event: str, outcome: Outcome, **evidence: object) -> None:
        self._telling.journal(event, outcome, **evidence)

    async def probe(self, daemon: Daemon) -> ProbeResult:
        health = self._live.service.settings.health
        preamble = LOCAL_HEADER if self._pointing.expects_header(daemon.boot_id) else b""
        spec = replace(self._live.service.probe_spec, preamble=preamble)
        located = self._pointing.located(daemon)

        def check() -> ProbeResult:
            return probe(located, spec, timeout_s=health.timeout_s)

        return await self._loop.run_in_executor(self._executor, check)

    async def update(self, change: Change) -> Outcome:
        return await self._following.update(change)

    def died(self, daemon: Daemon, reason: str) -> None:
        self.restarter.died(daemon, reason)

    def unwell(self, daemon: Daemon, reason: str) -> None:
        self.say("unwell", daemon.boot_id, evidence=reason)
        if self._live.service.settings.on_unhealthy == "restart":
            self.restarter.hung(daemon, reason)

    def well_again(self, daemon: Daemon) -> None:
        self.say("well_again", daemon.boot_id)
        self.restarter.recovered(daemon)

    async def start(self, hung: str) -> Started:
        return await self._automatically("start", *(("--unwell", hung) if hung else ()))

    async def roll_back(self) -> Started:
        return await self._automatically("rollback")

    async def _automatically(self, verb: str, *flags: str) -> Started:
        settings = self._live.service.settings
        within_s = settings.hold_timeout_s + settings.stop_grace_s + 2 * settings.start_timeout_s
        code = await run_verb(self._home, verb, self._live.service.name, *flags, within_s=within_s)
        if code == ConflictError.exit_code:
            return Started.BUSY
        return Started.NO if code else Started.YES

    async def nothing_to_restore(self, failed: Daemon, reason: str) -> None:
        snapshot = self._following.snapshot
        generation, old = snapshot.deployment.generation, snapshot.old
        if self.cold_rollback.due is None and failed.build and (old is None or old.build != failed.build):
            with self._following.unbroken():
                await self._loop.run_in_executor(
                    self._executor, lambda: self._live.service.builds.quarantine(failed.build, reason, generation)
                )
        self.cold_rollback.needed(snapshot, failed, reason)

    async def give_up(self, boot_id: str, reason: str) -> None:
        block = self._following.snapshot.deployment
        generation = block.generation

        def end(snap: Snapshot) -> Outcome:
            if block.in_flight:  # it is the rollout that nobody carries any more
                return abort_deploy(snap, generation, reason=reason)
            return deactivate(snap, generation, boot_id, reason=reason)

        outcome = await self.update(end)
        self.journal("crash_loop", outcome, boot_id=boot_id, evidence=reason)

    def restart_changed(self) -> None:
        self._restart_changed()

    async def rolled_back(self, outcome: Outcome, failed: Daemon, build: str, reason: str) -> None:
        self.journal("rollback", outcome, boot_id=failed.boot_id, evidence=reason)
        if build:
            generation = outcome.deployment.generation

            def keep() -> None:
                self._live.service.builds.quarantine(build, reason, generation)
                self._live.service.builds.set_result(generation, "rolled_back")

            with self._following.unbroken():
                await self._loop.run_in_executor(self._executor, keep)
