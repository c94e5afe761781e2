"""Lets daemons that take no new connections go: drained first, then stopped, then forgotten. Also finds strays.

Runs in the router. What it may stop: daemons of our own that the registry marks as draining, and processes with a spawn
record that the registry does not know. Nothing else, and the keeper signals only what it can prove. Of a daemon that a
rollout under way retired only the connections are ended here: its verb stops it, and goes on when it is gone.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from turnout.config import Settings
from turnout.core.drain import Decision, DrainPolicy, DrainStep, Remaining, decide
from turnout.core.model import Daemon, DrainCause, Snapshot
from turnout.planes.plane import Carried

POLL_S = 0.05
STRAY_EVERY_S = 1.0
MANY = 500  # from so many connections on they are looked at less often: each look walks them all


class World(Protocol):
    """What the drainer needs of the router, and what a test gives it instead."""

    def now(self) -> float: ...
    def carried(self, boot_id: str) -> Sequence[Carried] | None: ...
    def cut(self, boot_id: str, ids: Collection[int] | None = None) -> int: ...
    async def is_healthy(self, daemon: Daemon) -> bool: ...
    async def stop(self, boot_id: str) -> bool: ...
    async def forget(self, boot_id: str) -> None: ...
    async def strays(self) -> list[str]: ...
    def say(self, event: str, boot_id: str, **evidence: object) -> None: ...


@dataclass(slots=True)
class Drain:
    """What is known of one daemon's drain; times on the world's clock."""

    since: float
    most: int = 0
    healthy: bool | None = None
    hastened: bool = False
    look_at: float = 0.0
    # for each connection its bytes, and when the last of them came
    moved: dict[int, tuple[int, float]] = field(default_factory=dict[int, tuple[int, float]])
    decision: Decision = field(default_factory=lambda: Decision(DrainStep.WAIT))

    def look(self, carried: Sequence[Carried], now: float) -> list[Remaining]:
        """The connections, each with the time since its byte counts last moved."""
        moved: dict[int, tuple[int, float]] = {}
        for one in carried:
            count = one.bytes_in + one.bytes_out
            known = self.moved.get(one.id)
            # at the first look nobody knows how long it has been idle: it counts from here
            moved[one.id] = known if known and known[0] == count else (count, now)
        self.moved = moved
        self.most = max(self.most, len(carried))
        return [Remaining(one.id, now - moved[one.id][1], one.answered, one.half_sent) for one in carried]


class Drainer:
    """Drains one service's former daemons. Its one task belongs to whoever runs :meth:`run`."""

    def __init__(self, world: World, settings: Callable[[], Settings]) -> None:
        self._world = world
        self._settings = settings
        self._draining: dict[str, Daemon] = {}
        self._retired = ""
        self.drains: dict[str, Drain] = {}
        self._stopping: dict[str, asyncio.Task[None]] = {}
        self._wake = asyncio.Event()

    def observe(self, snapshot: Snapshot) -> None:
        """Take notice of what the registry says now; a drain's clock starts here."""
        self._retired = snapshot.deployment.retired_boot_id
        named = snapshot.deployment.named - {self._retired}
        self._draining = {b: d for b, d in snapshot.daemons.items() if d.draining and b not in named}
        for gone in set(self.drains) - set(self._draining):
            del self.drains[gone]
        for boot_id in self._draining:
            drain = self.drains.setdefault(boot_id, Drain(self._world.now()))
            drain.look_at = 0.0
        if self._draining:
            self._wake.set()

    async def run(self) -> None:
        """Drain for ever; look for strays once a second."""
        stray_at = self._world.now()
        try:
            while True:
                self._wake.clear()
                for boot_id, daemon in list(self._draining.items()):
                    await self._consider(boot_id, daemon)
                if self._world.now() >= stray_at:
                    stray_at = self._world.now() + STRAY_EVERY_S
                    for boot_id in await self._world.strays():
                        self._begin_stop(boot_id, None)
                await self._pause(POLL_S if self._draining else STRAY_EVERY_S)
        finally:
            for task in self._stopping.values():
                task.cancel()

    async def _pause(self, limit_s: float) -> None:
        if self._draining:
            await asyncio.sleep(limit_s)
            return
        try:
            async with asyncio.timeout(limit_s):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _consider(self, boot_id: str, daemon: Daemon) -> None:
        drain = self.drains.get(boot_id)
        if drain is None or boot_id in self._stopping or self._world.now() < drain.look_at:
            return
        if daemon.drain_cause is DrainCause.FAILED and drain.healthy is None:
            drain.healthy = await self._world.is_healthy(daemon)
        if boot_id not in self._draining:
            return
        carried = self._world.carried(boot_id)
        remaining = None if carried is None else drain.look(carried, self._world.now())
        if len(remaining or ()) > MANY:
            drain.look_at = self._world.now() + 5 * POLL_S
        drain.decision = decide(
            self.policy,
            self._cause(boot_id, daemon, drain),
            since=drain.since,
            now=self._world.now(),
            remaining=remaining,
            most=drain.most,
            healthy=drain.healthy is not False,
        )
        if drain.decision.cut != ():
            cut = self._world.cut(boot_id, drain.decision.cut)
            self._world.say("cut", boot_id, connections=cut, left=len(remaining or ()) - cut)
        if drain.decision.step is DrainStep.STOP:
            if boot_id == self._retired:
                drain.look_at = math.inf  # until the registry says something new of it
            else:
                self._begin_stop(boot_id, daemon)

    @property
    def policy(self) -> DrainPolicy:
        settings = self._settings()
        return DrainPolicy(settings.drain_grace_s, settings.drain_deadline_s, retired_s=settings.retire_s)

    def _cause(self, boot_id: str, daemon: Daemon, drain: Drain) -> DrainCause:
        """Of more daemons than may drain at once the oldest is hastened."""
        waiting = [one for one, other in self._draining.items() if other.drain_cause is DrainCause.REPLACED]
        waiting.sort(key=lambda one: self.drains[one].since)
        too_many = waiting[: max(0, len(waiting) - self._settings().drain_max)]
        if boot_id in too_many and not drain.hastened:
            drain.hastened = True
            self._world.say("hastened", boot_id, draining=len(waiting), most=self._settings().drain_max)
        return DrainCause.HASTENED if drain.hastened and boot_id in waiting else daemon.drain_cause

    def explain(self, boot_id: str) -> tuple[Drain, Mapping[int, float]] | None:
        """A drain as it stands, and for how many seconds each connection has been idle."""
        drain = self.drains.get(boot_id)
        now = self._world.now()
        return (drain, {number: now - at for number, (_, at) in drain.moved.items()}) if drain else None

    def _begin_stop(self, boot_id: str, daemon: Daemon | None) -> None:
        if boot_id in self._stopping:
            return
        task = asyncio.ensure_future(self._stop(boot_id, daemon))
        self._stopping[boot_id] = task
        task.add_done_callback(lambda _: self._stopping.pop(boot_id, None))

    async def _stop(self, boot_id: str, daemon: Daemon | None) -> None:
        """Stop a daemon of ours and wait until it is gone; then what is left of its connections, and its entry."""
        if daemon is None or daemon.owned:
            self._world.say("stopping" if daemon else "stopping_stray", boot_id)
            if not await self._world.stop(boot_id):
                return  # no keeper at the moment: it is tried again
        self._world.cut(boot_id)
        if daemon:
            self._draining.pop(boot_id, None)
            await self._world.forget(boot_id)
            self._world.say("gone", boot_id)
