"""Health to rollback: checks the active daemon, counts consecutive failures in the observe window, and ends the window.

Runs in the router, never under the lifecycle lock: every write is an event that carries its generation, so a verb that
comes in between simply wins, and the event is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from turnout.config.settings import Settings
from turnout.core.deployment import fail_window, finish_deploy, record_health_failure, record_health_success
from turnout.core.health import (
    HealthCheck,
    Unwell,
    counts,
    next_check_at,
    next_window_check_at,
    passes_window,
    unwell_after,
)
from turnout.core.model import Daemon, Snapshot, State
from turnout.core.outcome import Outcome
from turnout.router.event_log import DeploymentEvents
from turnout.router.follow.registry import RegistryWriter
from turnout.system.probes.probe import ProbeResult

# A window whose daemon fails ends this long after its time, even if a previous daemon runs that may yet recover.
WINDOW_OVERTIME_S: Final = 30.0


class _Actions(Protocol):
    """:class:`turnout.router.health.actions.HealthActions`, as far as the monitor calls them."""

    def on_exit(self, daemon: Daemon, reason: str) -> None: ...
    def on_hang(self, daemon: Daemon, reason: str) -> None: ...
    def on_recovery(self, daemon: Daemon) -> None: ...
    async def on_rollback(self, outcome: Outcome, failed: Daemon, build: str, reason: str) -> None: ...
    async def on_nothing_to_restore(self, failed: Daemon, reason: str) -> bool: ...


class HealthMonitor:
    """Watches one service's active daemon. Its one task belongs to the caller of :meth:`run`."""

    def __init__(
        self,
        clock: Callable[[], float],
        settings: Callable[[], Settings],
        probe: Callable[[Daemon], Awaitable[ProbeResult]],
        registry: RegistryWriter,
        events: DeploymentEvents,
        actions: _Actions,
    ) -> None:
        self._clock = clock
        self._probe = probe
        self._registry = registry
        self._events = events
        self._actions = actions
        self._settings = settings
        self._snapshot = Snapshot()
        self._wake = asyncio.Event()
        self._check_asked = False  # since the last check began
        self._window_ends = 0.0
        self._watched: tuple[int, str] | None = None  # generation and boot of the window under way
        self.unwell: Unwell | None = None
        self.healthy: dict[str, bool] = {}
        self.reasons: dict[str, str] = {}

    def on_snapshot(self, snapshot: Snapshot) -> None:
        """Begin and end windows as the registry has them now."""
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
            self._window_ends = self._clock() + self._settings().observe_s
        if (before.active_boot_id, before.state) != (block.active_boot_id, block.state):
            self._wake.set()

    def check_now(self) -> None:
        """Check at once; where a check is in flight, once more after it."""
        self._check_asked = True
        self._wake.set()

    @property
    def observe_remaining_s(self) -> float | None:
        """Seconds until the window ends by itself; None outside a window."""
        return None if self._watched is None else max(0.0, self._window_ends - self._clock())

    async def run(self) -> None:
        """Check the active daemon, until cancelled."""
        last: HealthCheck | None = None
        checked = ""
        while True:
            active = self._snapshot.active
            if active is None or active.boot_id != checked:
                last, checked = None, active.boot_id if active else ""
            due = await self._until_due(active, last)
            active = self._snapshot.active
            if active is None or active.boot_id != checked:
                continue
            last = await self._check(active, due, last)

    async def _until_due(self, active: Daemon | None, last: HealthCheck | None) -> float:
        """Sleep until the next check, the end of the window, or news; answers when the check was due."""
        self._wake.clear()
        now = self._clock()
        if active is None:
            await self._wake.wait()
            return self._clock()
        if last is None or self._check_asked:
            return now
        health, streak = self._settings().health, self._snapshot.deployment.health_fail_streak
        confirming = self._watched is not None and streak < health.failures
        due = next_check_at(now, last, health.interval_s, confirming=confirming)
        if self._watched and not streak:
            due = next_window_check_at(now, last, due, self._window_ends)
        try:
            async with asyncio.timeout(due - now):
                await self._wake.wait()
        except TimeoutError:
            return due
        return self._clock()  # woken early: nothing was late

    async def _check(self, active: Daemon, due: float, previous: HealthCheck | None) -> HealthCheck:
        started = self._clock()
        self._check_asked = False
        result = await self._probe(active)
        # a check that outran its own time-out met a machine that stalled in the middle of it
        overrun_s = max(0.0, result.took_s - self._settings().health.timeout_s)
        lag_s = max(0.0, started - due) + overrun_s
        seen = HealthCheck(result.ok, result.reason, result.gone, at=self._clock(), began=started, lag_s=lag_s)
        self.healthy[active.boot_id] = result.ok
        self.reasons[active.boot_id] = result.reason
        block = self._snapshot.deployment
        in_window = self._watched == (block.generation, active.boot_id)
        self._note_unwell(active, seen, previous, in_window=in_window)
        if not in_window and result.gone:
            self._actions.on_exit(active, result.reason)
        if not in_window or not counts(seen, self._settings().health.interval_s, previous=previous):
            return seen
        if result.ok:
            if block.health_fail_streak:
                outcome = await self._registry.update(
                    lambda snap: record_health_success(snap, block.generation, active.boot_id)
                )
                if outcome.applied:
                    self._events.deployment_event("health_ok", outcome, boot_id=active.boot_id)
            if passes_window(seen, self._window_ends):
                await self._finish(block.generation)
        else:
            await self._failed(active, result)
        return seen

    def _note_unwell(self, active: Daemon, seen: HealthCheck, previous: HealthCheck | None, *, in_window: bool) -> None:
        """Report once that the daemon hangs outside a window, where nothing is rolled back, and that it recovers."""
        settings = self._settings()
        before = self.unwell
        interval_s, threshold = settings.health.interval_s, settings.health.failures
        after = unwell_after(before, active.boot_id, seen, interval_s, previous=previous)
        self.unwell = None if in_window else after
        was = before is not None and before.boot_id == active.boot_id and before.failures >= threshold
        if self.unwell and self.unwell.failures >= threshold and not was:
            self._actions.on_hang(active, seen.reason)
        elif was and seen.ok:
            self._actions.on_recovery(active)

    async def _failed(self, active: Daemon, result: ProbeResult) -> None:
        """Count the failure; at the threshold the warm daemon is restored if it passes a probe now."""
        settings = self._settings()
        block = self._snapshot.deployment
        threshold = settings.health.failures
        restore: str | None = None
        old = self._snapshot.old
        old_is_gone = old is None
        refused = "there is no previous daemon"
        if old and block.health_fail_streak + 1 >= threshold:
            answer = await self._probe(old)
            self.healthy[old.boot_id] = answer.ok
            self.reasons[old.boot_id] = answer.reason
            old_is_gone = answer.gone
            refused = f"the previous daemon cannot serve: {answer.reason}"
            restore = old.boot_id if answer.ok else None
        outcome = await self._registry.update(
            lambda snap: record_health_failure(
                snap, block.generation, active.boot_id, reason=result.reason, threshold=threshold, restore=restore
            )
        )
        after = outcome.deployment
        if outcome.applied:  # at the threshold further failures change nothing, and are not journaled
            self._events.deployment_event(
                "health_failure",
                outcome,
                boot_id=active.boot_id,
                evidence=result.reason,
                streak=after.health_fail_streak,
            )
        if outcome.applied and after.state is State.IDLE:
            await self._actions.on_rollback(outcome, active, active.build, after.rollback_reason)
            return
        observed = (after.generation, after.active_boot_id, after.state)
        if observed != (block.generation, active.boot_id, State.SWITCHED) or after.health_fail_streak < threshold:
            return
        if outcome.applied:
            self._events.deployment_event("rollback_refused", outcome, boot_id=active.boot_id, evidence=refused)
        # also where an earlier router stored the streak: no other router would begin it
        reason = f"{result.reason}; {refused}"
        if await self._actions.on_nothing_to_restore(active, reason):
            return
        if old_is_gone or self._clock() >= self._window_ends + WINDOW_OVERTIME_S:
            await self._fail_window(block.generation, active, reason)

    async def _fail_window(self, generation: int, active: Daemon, reason: str) -> None:
        """End a window that can neither be passed nor rolled back, so that its verb gets a verdict."""
        outcome = await self._registry.update(lambda snap: fail_window(snap, generation, active.boot_id, reason=reason))
        if outcome.applied:
            self._events.deployment_event("window_failed", outcome, boot_id=active.boot_id, evidence=reason)

    async def _finish(self, generation: int) -> None:
        outcome = await self._registry.update(lambda snap: finish_deploy(snap, generation))
        self._events.deployment_event("finish", outcome)
