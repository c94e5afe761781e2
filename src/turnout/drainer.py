"""Lets daemons that take no new connections go: drained first, then stopped, then forgotten. Also finds strays.

Runs in the router. What it may stop: daemons of our own that the registry marks as draining, and processes with a spawn
record that the registry does not know. Nothing else, and the keeper signals only what it can prove.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from turnout.config import Settings
from turnout.core.drain import DrainPolicy, DrainStep, decide
from turnout.core.model import Daemon, DrainCause, Snapshot

POLL_S = 0.05
STRAY_EVERY_S = 1.0


class World(Protocol):
    """What the drainer needs of the router, and what a test gives it instead."""

    def now(self) -> float: ...
    def connections(self, boot_id: str) -> int | None: ...
    def cut(self, boot_id: str) -> int: ...
    async def is_healthy(self, daemon: Daemon) -> bool: ...
    async def stop(self, boot_id: str) -> bool: ...
    async def forget(self, boot_id: str) -> None: ...
    async def strays(self) -> list[str]: ...
    def say(self, event: str, boot_id: str, **evidence: object) -> None: ...


class Drainer:
    """Drains one service's former daemons. Its one task belongs to whoever runs :meth:`run`."""

    def __init__(self, world: World, settings: Callable[[], Settings]) -> None:
        self._world = world
        self._settings = settings
        self._draining: dict[str, Daemon] = {}
        self._since: dict[str, float] = {}
        self._healthy: dict[str, bool] = {}
        self._stopping: dict[str, asyncio.Task[None]] = {}
        self._wake = asyncio.Event()

    def observe(self, snapshot: Snapshot) -> None:
        """Take notice of what the registry says now; a drain's clock starts here."""
        named = snapshot.deployment.named
        self._draining = {b: d for b, d in snapshot.daemons.items() if d.draining and b not in named}
        for gone in set(self._since) - set(self._draining):
            del self._since[gone]
            self._healthy.pop(gone, None)
        for boot_id in self._draining:
            self._since.setdefault(boot_id, self._world.now())
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
        if boot_id in self._stopping:
            return
        if daemon.drain_cause is DrainCause.FAILED and boot_id not in self._healthy:
            self._healthy[boot_id] = await self._world.is_healthy(daemon)
        if boot_id not in self._draining:
            return
        settings = self._settings()
        step = decide(
            DrainPolicy(settings.drain_grace_s, settings.drain_deadline_s),
            daemon.drain_cause,
            since=self._since[boot_id],
            now=self._world.now(),
            connections=self._world.connections(boot_id),
            healthy=self._healthy.get(boot_id, True),
        )
        if step is DrainStep.WAIT:
            return
        if step is DrainStep.CUT:
            self._world.say("cut", boot_id, connections=self._world.cut(boot_id))
        self._begin_stop(boot_id, daemon)

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
