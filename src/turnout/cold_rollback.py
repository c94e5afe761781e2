"""Back to a build whose daemon is gone: a new rollout, which the router has begun by a verb in a process of its own.

Decided in an observe window, when the failures are complete and the previous daemon does not pass a probe. What is
active stays active until the other one is healthy, and for ever if it never is. Tried with the same back-off as a
restart, since the lifecycle lock may be taken or a keeper be missing; given up like one.
"""

from __future__ import annotations

from typing import Protocol

from turnout.core.model import Daemon, Snapshot, State
from turnout.restarter import Restart, Restarter, Started


class World(Protocol):
    """What it needs of the router, and what a test gives it instead."""

    def now(self) -> float: ...
    async def roll_back(self) -> Started: ...
    def say(self, event: str, boot_id: str, **evidence: object) -> None: ...


class ColdRollback:
    """At most one at a time, for one service. Its one task belongs to whoever runs :meth:`run`.

    Args:
        world: the clock, the verb, the journal.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._window: tuple[int, str] | None = None
        self._tries = Restarter(self)

    @property
    def due(self) -> Restart | None:
        return self._tries.due

    def observe(self, snapshot: Snapshot) -> None:
        """Take notice of what the registry says now: it is over with the window that it was needed in."""
        block = snapshot.deployment
        window = (block.generation, block.active_boot_id) if block.state is State.SWITCHED else None
        if self._window not in {None, window} or (self._window and not block.health_fail_streak):
            self._window = None
            self._tries.forget()
        self._tries.observe(snapshot)

    def needed(self, snapshot: Snapshot, failed: Daemon, reason: str) -> None:
        """The active daemon has failed in its window, and the previous one cannot serve; once is enough."""
        block = snapshot.deployment
        self._window = (block.generation, failed.boot_id)
        self._tries.died(failed, reason)

    async def run(self) -> None:
        """Roll back what needs it, for ever."""
        await self._tries.run()

    # -- the world of the tries --------------------------------------------------------------------------------------

    def now(self) -> float:
        return self._world.now()

    async def start(self, hung: str) -> Started:  # noqa: ARG002  # what hangs in a window is what it goes back from
        return await self._world.roll_back()

    async def give_up(self, boot_id: str, reason: str) -> None:
        self._world.say("rollback_given_up", boot_id, evidence=reason)

    def restart_changed(self) -> None:
        """The window itself keeps clients held."""

    def say(self, event: str, boot_id: str, **evidence: object) -> None:
        if event == "died":
            event = "cold_rollback"
        self._world.say(event, boot_id, **evidence)
