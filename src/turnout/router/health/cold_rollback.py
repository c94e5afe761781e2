"""Back to a build whose daemon is gone: a new rollout, which the router has begun by a verb in a process of its own.

Decided in an observe window, when the failures are complete and the previous daemon does not pass a probe. What is
active stays active until the other daemon is healthy, always if it never is. Tried with the same back-off as a
restart, since the lifecycle lock may be taken or a keeper be missing; given up like one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from turnout.core.model import Daemon, Snapshot, State
from turnout.router.event_log import DaemonEvents
from turnout.router.health.restarter import NotBegun, Restart, Restarter, Started

# What the tries report, by the journal's events: they start no daemon again, but the build before.
_EVENTS: Final = {"died": "cold_rollback", "blocked": "rollback_blocked", "unblocked": "rollback_unblocked"}


class ColdRollback:
    """At most one at a time, for one service. Its one task belongs to the caller of :meth:`run`."""

    def __init__(
        self, clock: Callable[[], float], events: DaemonEvents, roll_back: Callable[[], Awaitable[Started | NotBegun]]
    ) -> None:
        self._events = events
        self._window: tuple[int, str] | None = None
        self._tries = Restarter(
            clock,
            self,
            start=lambda _hung: roll_back(),  # what hangs in a window is what it goes back from
            give_up=self._give_up,
            changed=lambda: None,  # the window itself keeps clients held
        )

    @property
    def pending(self) -> Restart | None:
        return self._tries.pending

    def on_snapshot(self, snapshot: Snapshot) -> None:
        """Drop the rollback where the window that needed it is over."""
        block = snapshot.deployment
        window = (block.generation, block.active_boot_id) if block.state is State.SWITCHED else None
        if self._window not in {None, window} or (self._window and not block.health_fail_streak):
            self._window = None
            self._tries.cancel()
        self._tries.on_snapshot(snapshot)

    def needed(self, snapshot: Snapshot, failed: Daemon, reason: str) -> None:
        """The active daemon has failed in its window, and the previous one cannot serve; once is enough."""
        block = snapshot.deployment
        self._window = (block.generation, failed.boot_id)
        self._tries.on_exit(failed, reason)

    async def run(self) -> None:
        """Roll back what needs it, until cancelled."""
        await self._tries.run()

    async def _give_up(self, boot_id: str, reason: str) -> None:
        self._events.daemon_event("rollback_given_up", boot_id, evidence=reason)

    def daemon_event(self, event: str, boot_id: str, **evidence: object) -> None:
        """Log an event of the tries as one of a rollback."""
        self._events.daemon_event(_EVENTS.get(event, event), boot_id, **evidence)
