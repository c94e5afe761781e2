"""What keeps one service's daemon well: its monitor, restarter and cold rollback, and what they have done."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from turnout.core.deployment import abort_deploy, deactivate
from turnout.core.model import Daemon, Snapshot
from turnout.core.outcome import Outcome
from turnout.errors import LockTimeoutError, StateUnwritableError
from turnout.router.followed_service import FollowedService
from turnout.router.health.cold_rollback import ColdRollback
from turnout.router.health.monitor import HealthMonitor
from turnout.router.health.restarter import NotBegun, Restarter, Started
from turnout.router.verb_runner import VerbRunner
from turnout.system.probes.probe import ProbeResult


class HealthActions:
    """Has the monitor, the restarter and the cold rollback of one service, and does what they decide.

    Their tasks belong to the service.

    Args:
        changed: called when a restart becomes pending, or no longer is: clients are to be held, or not any more.
    """

    def __init__(
        self,
        service: FollowedService,
        verbs: VerbRunner,
        probe: Callable[[Daemon], Awaitable[ProbeResult]],
        changed: Callable[[], None],
    ) -> None:
        self._service = service
        self._live = live = service.live
        self._registry = registry = service.registry
        self._events = events = service.events
        self._verbs = verbs
        self._to_quarantine: tuple[str, str, int] | None = None  # build, reason and generation, until it is written
        clock = service.loop.time
        self.monitor = HealthMonitor(clock, lambda: live.settings, probe, registry, events, self)
        self.restarter = Restarter(clock, events, self.start, self._give_up, changed)
        self.cold_rollback = ColdRollback(clock, events, self.roll_back)

    def on_exit(self, daemon: Daemon, reason: str) -> None:
        """Restart the active daemon, whose process has ended outside any window."""
        self.restarter.on_exit(daemon, reason)

    def on_hang(self, daemon: Daemon, reason: str) -> None:
        """Replace the active daemon, which fails its checks outside any window, if the settings say so."""
        self._events.daemon_event("unwell", daemon.boot_id, evidence=reason)
        if self._live.settings.on_unhealthy == "restart":
            self.restarter.on_hang(daemon, reason)

    def on_recovery(self, daemon: Daemon) -> None:
        self._events.daemon_event("well_again", daemon.boot_id)
        self.restarter.on_recovery(daemon)

    async def start(self, hung: str) -> Started | NotBegun:
        result = await self._verbs.run("start", *(("--unwell", hung) if hung else ()))
        if result.busy:
            return Started.BUSY
        if not result.began:
            return NotBegun(result.why)
        return Started.NO if result.code else Started.YES

    async def roll_back(self) -> Started | NotBegun:
        """Only the machine is waited for: a window with a previous build whose program is gone has to end, too."""
        if trouble := await self._quarantine():
            return NotBegun(trouble)
        result = await self._verbs.run("rollback")
        if result.busy:
            return Started.BUSY
        if result.blames_machine:
            return NotBegun(result.why)
        return Started.NO if result.code else Started.YES

    async def on_nothing_to_restore(self, failed: Daemon, reason: str) -> bool:
        """Start the build of the previous daemon, which cannot serve; answers whether that is begun."""
        snapshot = self._registry.snapshot
        generation, old = snapshot.deployment.generation, snapshot.old
        if self.cold_rollback.pending is None and failed.build and (old is None or old.build != failed.build):
            self._to_quarantine = (failed.build, reason, generation)
            await self._quarantine()
        self.cold_rollback.needed(snapshot, failed, reason)
        return self.cold_rollback.pending is not None

    async def _quarantine(self) -> str:
        """Put the build that failed its window into quarantine; returns why that failed, empty: it did not.

        A file that cannot be written delays the rollback, and is no reason to begin none: each attempt writes it first.
        """
        if self._to_quarantine is None or self._to_quarantine[2] != self._registry.snapshot.deployment.generation:
            return ""
        build, reason, generation = self._to_quarantine
        try:
            await self._service.write_file(lambda: self._live.service.builds.quarantine(build, reason, generation))
        except (StateUnwritableError, LockTimeoutError) as error:
            return error.message
        self._to_quarantine = None
        return ""

    async def _give_up(self, boot_id: str, reason: str) -> None:
        block = self._registry.snapshot.deployment
        generation = block.generation

        def end(snap: Snapshot) -> Outcome:
            if block.in_flight:  # it is the rollout whose owner is dead
                return abort_deploy(snap, generation, reason=reason)
            return deactivate(snap, generation, boot_id, reason=reason)

        outcome = await self._registry.update(end)
        self._events.deployment_event("crash_loop", outcome, boot_id=boot_id, evidence=reason)

    async def on_rollback(self, outcome: Outcome, failed: Daemon, build: str, reason: str) -> None:
        self._events.deployment_event("rollback", outcome, boot_id=failed.boot_id, evidence=reason)
        if build:
            generation = outcome.deployment.generation

            def keep() -> None:
                self._live.service.builds.quarantine(build, reason, generation)
                self._live.service.builds.set_result(generation, "rolled_back")

            await self._service.write_file(keep)
