"""Lets daemons that take no new connections go: drained first, then stopped, then forgotten. Also finds strays.

Runs in the router. What it may stop: daemons of our own that the registry marks as draining, and processes with a spawn
record that the registry does not know. Nothing else, and the keeper signals only what it can prove. Of a daemon that a
rollout under way retired only the connections are ended here: its verb stops it, and goes on when it is gone. A daemon
whose entry another program removed is no stray while clients are connected to it: it is drained.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from turnout.config.settings import Settings
from turnout.core.drain import Decision, DrainPolicy, Remaining, decide
from turnout.core.membership import forget_daemon
from turnout.core.model import Daemon, DrainCause, Snapshot
from turnout.errors import TurnoutError
from turnout.planes.plane import ConnectionInfo
from turnout.router.event_log import DaemonEvents
from turnout.router.follow.registry import RegistryWriter
from turnout.system.probes.probe import ProbeResult

POLL_S = 0.05
STRAY_EVERY_S = 1.0
FORGET_AGAIN_S = 1.0
MANY = 500  # from so many connections on they are looked at less often: each look walks them all
log = logging.getLogger("turnout.router")


class _Actions(Protocol):
    """:class:`turnout.router.drain.actions.DrainActions`, as far as the drainer calls them."""

    # None: a draining router has some, which it alone can list
    def carried(self, boot_id: str) -> Sequence[ConnectionInfo] | None: ...
    def cut(self, boot_id: str, ids: Collection[int] | None = None) -> int: ...  # how many; without ids, all
    async def stop(self, boot_id: str) -> bool: ...  # True once the daemon is gone; False: there is no keeper now
    async def strays(self) -> list[str]: ...


@dataclass(slots=True)
class Drain:
    """What is known of one daemon's drain; times on the drainer's clock."""

    since: float
    most: int = 0
    healthy: bool | None = None
    hastened: bool = False
    look_at: float = 0.0
    # for each connection its bytes, and when the last of them came
    moved: dict[int, tuple[int, float]] = field(default_factory=dict[int, tuple[int, float]])
    decision: Decision = field(default_factory=lambda: Decision(stop=False))

    def look(self, carried: Sequence[ConnectionInfo], now: float) -> list[Remaining]:
        """The connections, each with the time since its byte counts last moved."""
        moved: dict[int, tuple[int, float]] = {}
        for connection in carried:
            count = connection.bytes_in + connection.bytes_out
            known = self.moved.get(connection.id)
            # how long it has been idle before the first look is unknown: that counts from here
            moved[connection.id] = known if known and known[0] == count else (count, now)
        self.moved = moved
        self.most = max(self.most, len(carried))
        return [Remaining(one.id, now - moved[one.id][1], one.answered, one.half_sent) for one in carried]


class Drainer:
    """Drains one service's former daemons. Its one task belongs to the caller of :meth:`run`."""

    def __init__(
        self,
        clock: Callable[[], float],
        settings: Callable[[], Settings],
        probe: Callable[[Daemon], Awaitable[ProbeResult]],
        registry: RegistryWriter,
        events: DaemonEvents,
        actions: _Actions,
    ) -> None:
        self._clock = clock
        self._probe = probe
        self._registry = registry
        self._events = events
        self._actions = actions
        self._settings = settings
        self._draining: dict[str, Daemon] = {}
        self._pruned: dict[str, Daemon] = {}  # they have connections, and the registry has lost their entries
        self._served: dict[str, Daemon] = {}  # daemons that were active or drained, as last seen in the registry
        self._announced: set[str] = set()  # the journal has their stop, which may take several attempts
        self._listed: frozenset[str] = frozenset()
        self._retired = ""
        self.drains: dict[str, Drain] = {}
        self._stopping: dict[str, asyncio.Task[None]] = {}
        self._wake = asyncio.Event()

    def on_snapshot(self, snapshot: Snapshot) -> None:
        """Begin, change and end drains as the registry has them now."""
        self._retired = snapshot.deployment.retired_boot_id
        named = snapshot.deployment.named - {self._retired}
        self._draining = {b: d for b, d in snapshot.daemons.items() if d.draining and b not in named}
        active = snapshot.active
        self._served.update(self._draining | ({active.boot_id: active} if active else {}))
        known = snapshot.daemons.keys() | snapshot.deployment.named
        self._pruned = {b: d for b, d in self._pruned.items() if b not in known}
        self._draining |= self._pruned
        self._listed = frozenset(known)
        for gone in set(self.drains) - set(self._draining):
            del self.drains[gone]
        for boot_id in self._draining:
            self.drains.setdefault(boot_id, Drain(self._clock())).look_at = 0.0
        if self._draining:
            self._wake.set()

    async def run(self) -> None:
        """Drain, and look for strays once a second, until cancelled."""
        stray_at = self._clock()
        try:
            while True:
                self._wake.clear()
                for boot_id, daemon in list(self._draining.items()):
                    await self._consider(boot_id, daemon)
                if self._clock() >= stray_at:
                    stray_at = self._clock() + STRAY_EVERY_S
                    strays = await self._actions.strays()
                    for boot_id in strays:
                        self._consider_stray(boot_id)
                    self._forget_served(strays)
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

    def _consider_stray(self, boot_id: str) -> None:
        """Stop a process that the registry does not know, unless clients are still connected to it: then drain it."""
        served = self._served.get(boot_id)
        if boot_id in self._pruned:
            return
        if served is None or self._actions.carried(boot_id) == []:
            self._begin_stop(boot_id, None)
            return
        cause = served.drain_cause if served.draining else DrainCause.REPLACED
        self._pruned[boot_id] = self._draining[boot_id] = replace(served, draining=True, drain_cause=cause)
        self.drains.setdefault(boot_id, Drain(self._clock()))

    def _forget_served(self, strays: Collection[str]) -> None:
        """Keep what may still be pruned: daemons that the registry names or that run unknown to it."""
        kept = self._listed | set(strays) | set(self._draining)
        self._served = {boot_id: daemon for boot_id, daemon in self._served.items() if boot_id in kept}
        self._announced &= kept

    async def _consider(self, boot_id: str, daemon: Daemon) -> None:
        drain = self.drains.get(boot_id)
        if drain is None or boot_id in self._stopping or self._clock() < drain.look_at:
            return
        if daemon.drain_cause is DrainCause.FAILED and drain.healthy is None:
            drain.healthy = (await self._probe(daemon)).ok
        if boot_id not in self._draining:
            return
        carried = self._actions.carried(boot_id)
        remaining = None if carried is None else drain.look(carried, self._clock())
        if len(remaining or ()) > MANY:
            drain.look_at = self._clock() + 5 * POLL_S
        drain.decision = decide(
            self.policy,
            self._cause(boot_id, daemon, drain),
            since=drain.since,
            now=self._clock(),
            remaining=remaining,
            most=drain.most,
            healthy=drain.healthy is not False,
        )
        if drain.decision.cut != ():
            cut = self._actions.cut(boot_id, drain.decision.cut)
            self._events.daemon_event("cut", boot_id, connections=cut, left=len(remaining or ()) - cut)
        if drain.decision.stop:
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
        waiting = [boot for boot, other in self._draining.items() if other.drain_cause is DrainCause.REPLACED]
        waiting.sort(key=lambda boot: self.drains[boot].since)
        too_many = waiting[: max(0, len(waiting) - self._settings().drain_max)]
        if boot_id in too_many and not drain.hastened:
            drain.hastened = True
            self._events.daemon_event("hastened", boot_id, draining=len(waiting), most=self._settings().drain_max)
        return DrainCause.HASTENED if drain.hastened and boot_id in waiting else daemon.drain_cause

    def drained(self) -> Sequence[str]:
        """The boots that may be stopped: their connections have ended, or have had the time that they get."""
        return [boot_id for boot_id, drain in self.drains.items() if drain.decision.stop]

    def explain(self, boot_id: str) -> tuple[Drain, Mapping[int, float]] | None:
        """A drain as it stands, and for how many seconds each connection has been idle."""
        drain = self.drains.get(boot_id)
        now = self._clock()
        return (drain, {number: now - at for number, (_, at) in drain.moved.items()}) if drain else None

    def _begin_stop(self, boot_id: str, daemon: Daemon | None) -> None:
        if boot_id in self._stopping:
            return
        task = asyncio.ensure_future(self._stop(boot_id, daemon))
        self._stopping[boot_id] = task
        task.add_done_callback(lambda _: self._stopping.pop(boot_id, None))

    async def _stop(self, boot_id: str, daemon: Daemon | None) -> None:
        """Stop a daemon of ours and wait until it is gone; then end what is left of its connections, and its entry."""
        if daemon is None or daemon.owned:
            if boot_id not in self._announced:
                self._announced.add(boot_id)
                self._events.daemon_event("stopping" if daemon else "stopping_stray", boot_id)
            if not await self._actions.stop(boot_id):
                return  # no keeper at the moment: it is tried again
        self._actions.cut(boot_id)
        if daemon:
            self._pruned.pop(boot_id, None)
            try:
                await self._registry.update(lambda snap: forget_daemon(snap, boot_id))
            except (OSError, TurnoutError) as error:  # a full disk, a held lock: it is tried again
                log.warning("cannot forget %s: %s", boot_id, error)
                await asyncio.sleep(FORGET_AGAIN_S)
                return
            self._draining.pop(boot_id, None)
            self._events.daemon_event("gone", boot_id)
