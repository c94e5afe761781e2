"""Health to rollback: checks the active daemon, counts consecutive failures in the observe window, and ends the window.

Runs in the router, never under the lifecycle lock: every write is an event that carries its generation, so a verb that
comes in between simply wins, and the event is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from turnout.config import Settings
from turnout.core.deployment import finish_deploy, record_health_failure, record_health_success
from turnout.core.health import CheckResult, Unwell, counts, next_check_at, unwell_after
from turnout.core.model import Daemon, Snapshot, State
from turnout.core.outcome import Outcome
from turnout.system.probe import ProbeResult

Change = Callable[[Snapshot], Outcome]


class World(Protocol):
    """What the supervisor needs of the router, and what a test gives it instead."""

    def now(self) -> float: ...
    async def probe(self, daemon: Daemon) -> ProbeResult: ...
    async def update(self, change: Change) -> Outcome: ...
    def journal(self, event: str, outcome: Outcome, **evidence: object) -> None: ...
    def died(self, daemon: Daemon, reason: str) -> None: ...
    def unwell(self, daemon: Daemon, reason: str) -> None:
        """Outside any window it runs, and has failed as many checks in a row as would roll back inside one."""
        ...

    def well_again(self, daemon: Daemon) -> None: ...
    async def rolled_back(self, outcome: Outcome, failed: Daemon, build: str, reason: str) -> None: ...
    async def nothing_to_restore(self, failed: Daemon, reason: str) -> None: ...


class Supervisor:
    """Watches one service's active daemon. Its one task belongs to whoever runs :meth:`run`.

    Args:
        world: the clock, the probe, the registry.
        settings: answers the settings as they are now.
    """

    def __init__(self, world: World, settings: Callable[[], Settings]) -> None:
        self._world = world
        self._settings = settings
        self._snapshot = Snapshot()
        self._wake = asyncio.Event()
        self._window_ends = 0.0
        self._watched: tuple[int, str] | None = None  # generation and boot of the window under way
        self.unwell: Unwell | None = None
        self.healthy: dict[str, bool] = {}
        self.reasons: dict[str, str] = {}

    def observe(self, snapshot: Snapshot) -> None:
        """Take notice of what the registry says now."""
        before = self._snapshot.deployment
        self._snapshot = snapshot
        block = snapshot.deployment
        for boot_id in set(self.healthy) - set(snapshot.daemons):
            del self.healthy[boot_id]
            self.reasons.pop(boot_id, None)
        window = (block.generation, block.active_boot_id) if block.state is State.SWITCHED else None
        if window != self._watched:
            self._watched = window
            # the router's own clock: a window that another router began is run again in full
            self._window_ends = self._world.now() + self._settings().observe_s
        if (before.active_boot_id, before.state) != (block.active_boot_id, block.state):
            self._wake.set()

    def poke(self) -> None:
        """Check now: there is news of the daemon (its process ended)."""
        self._wake.set()

    @property
    def observe_remaining_s(self) -> float | None:
        """Seconds until the window ends by itself; None outside a window."""
        return None if self._watched is None else max(0.0, self._window_ends - self._world.now())

    async def run(self) -> None:
        """Check the active daemon for ever."""
        last: CheckResult | None = None
        checked = ""
        while True:
            active = self._snapshot.active
            if active is None or active.boot_id != checked:
                last, checked = None, active.boot_id if active else ""
            due = await self._until_due(active, last)
            active = self._snapshot.active
            if active is None or active.boot_id != checked:
                continue
            if self._window_is_over():
                await self._finish()
            last = await self._check(active, due)

    async def _until_due(self, active: Daemon | None, last: CheckResult | None) -> float:
        """Sleep until the next check, the end of the window, or news; answers when the check was due."""
        self._wake.clear()
        now = self._world.now()
        if active is None:
            await self._wake.wait()
            return self._world.now()
        if last is None:
            return now
        due = next_check_at(now, last, self._settings().health.interval_s)
        if self._watched and not self._snapshot.deployment.health_fail_streak:
            due = max(now, min(due, self._window_ends))
        try:
            async with asyncio.timeout(due - now):
                await self._wake.wait()
        except TimeoutError:
            return due
        return self._world.now()  # woken early: nothing was late

    async def _check(self, active: Daemon, due: float) -> CheckResult:
        started = self._world.now()
        result = await self._world.probe(active)
        # a check that outran its own time-out met a machine that stalled in the middle of it
        overrun_s = max(0.0, result.took_s - self._settings().health.timeout_s)
        lag_s = max(0.0, started - due) + overrun_s
        seen = CheckResult(ok=result.ok, reason=result.reason, gone=result.gone, at=self._world.now(), lag_s=lag_s)
        self.healthy[active.boot_id] = result.ok
        self.reasons[active.boot_id] = result.reason
        block = self._snapshot.deployment
        in_window = self._watched == (block.generation, active.boot_id)
        self._note_unwell(active, seen, in_window=in_window)
        if not in_window and result.gone:
            self._world.died(active, result.reason)
        if not in_window or not counts(seen, self._settings().health.interval_s):
            return seen
        if result.ok:
            if block.health_fail_streak:
                outcome = await self._world.update(
                    lambda snap: record_health_success(snap, block.generation, active.boot_id)
                )
                self._world.journal("health_ok", outcome, boot_id=active.boot_id)
        else:
            await self._failed(active, result)
        return seen

    def _note_unwell(self, active: Daemon, seen: CheckResult, *, in_window: bool) -> None:
        """Outside the window nothing is rolled back: what hangs is said, once each time."""
        settings = self._settings()
        before = self.unwell
        self.unwell = None if in_window else unwell_after(before, active.boot_id, seen, settings.health.interval_s)
        threshold = settings.health.failures
        was = before is not None and before.boot_id == active.boot_id and before.failures >= threshold
        if self.unwell and self.unwell.failures >= threshold and not was:
            self._world.unwell(active, seen.reason)
        elif was and seen.ok:
            self._world.well_again(active)

    async def _failed(self, active: Daemon, result: ProbeResult) -> None:
        """Count it; the one that reaches the threshold brings the warm daemon back if that passes a probe now."""
        settings = self._settings()
        block = self._snapshot.deployment
        threshold = settings.health.failures
        restore: str | None = None
        old = self._snapshot.old
        refused = "there is no previous daemon"
        if old and block.health_fail_streak + 1 >= threshold:
            answer = await self._world.probe(old)
            self.healthy[old.boot_id] = answer.ok
            refused = f"the previous daemon cannot serve: {answer.reason}"
            restore = old.boot_id if answer.ok else None
        outcome = await self._world.update(
            lambda snap: record_health_failure(
                snap, block.generation, active.boot_id, reason=result.reason, threshold=threshold, restore=restore
            )
        )
        self._world.journal(
            "health_failure",
            outcome,
            boot_id=active.boot_id,
            evidence=result.reason,
            streak=outcome.deployment.health_fail_streak,
        )
        after = outcome.deployment
        if outcome.applied and after.state is State.IDLE:
            await self._world.rolled_back(outcome, active, active.build, after.rollback_reason)
            return
        observed = (after.generation, after.active_boot_id, after.state)
        if observed != (block.generation, active.boot_id, State.SWITCHED) or after.health_fail_streak < threshold:
            return
        if outcome.applied:
            self._world.journal("rollback_refused", outcome, boot_id=active.boot_id, evidence=refused)
        # also where an earlier router stored the streak: nobody else would begin it
        await self._world.nothing_to_restore(active, f"{result.reason}; {refused}")

    def _window_is_over(self) -> bool:
        """The time is up and no failure is pending: one that is counted is first brought to an end."""
        if self._watched is None or self._world.now() < self._window_ends:
            return False
        streak = self._snapshot.deployment.health_fail_streak
        return streak == 0 or (streak >= self._settings().health.failures and self._snapshot.old is None)

    async def _finish(self) -> None:
        generation = self._snapshot.deployment.generation
        outcome = await self._world.update(lambda snap: finish_deploy(snap, generation))
        self._world.journal("finish", outcome)
