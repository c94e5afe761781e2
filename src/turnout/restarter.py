"""Starts a daemon that died, or replaces one that hangs, with back-off; gives up on one that keeps doing so.

Runs in the router. The starting itself is a verb in a process of its own, since that needs the lifecycle lock; new
connections wait in the hold meanwhile.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Final, Protocol

from turnout.core.model import Daemon, Desired, Snapshot
from turnout.core.policy import RESTART_DELAYS_S, STEADY_AFTER_S

BUSY_AGAIN_S: Final = 0.5


class Started(Enum):
    """How an attempt ended."""

    YES = auto()
    NO = auto()
    BUSY = auto()  # another verb is at work on this service; that is no attempt


@dataclass(frozen=True, slots=True)
class Restart:
    """One that is due: attempt ``attempt`` of ``len(RESTART_DELAYS_S)``, at ``at`` on the world's clock.

    ``hung``: the daemon still runs, and is to be replaced; it serves, as well as it can, until its successor does.
    """

    boot_id: str
    attempt: int
    at: float
    reason: str
    hung: bool = False


class World(Protocol):
    """What the restarter needs of the router, and what a test gives it instead."""

    def now(self) -> float: ...
    async def start(self, hung: str) -> Started:
        """Start the daemon again, or the successor of the one named ``hung``."""
        ...

    async def give_up(self, boot_id: str, reason: str) -> None: ...
    def restart_changed(self) -> None: ...
    def say(self, event: str, boot_id: str, **evidence: object) -> None: ...


class Restarter:
    """Restarts one service's daemon. Its one task belongs to whoever runs :meth:`run`."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._snapshot = Snapshot()
        self._wake = asyncio.Event()
        self._tries = 0
        self._started_at = -STEADY_AFTER_S
        self._given_up = ""
        self.due: Restart | None = None

    def observe(self, snapshot: Snapshot) -> None:
        """Take notice of what the registry says now: a person's verb, or our own, may have made a restart needless."""
        self._snapshot = snapshot
        due = self.due
        active = snapshot.deployment.active_boot_id
        if due and (snapshot.deployment.desired is Desired.STOPPED or active not in {"", due.boot_id}):
            self._set(None)

    def forget(self) -> None:
        """Nothing is to be started any more."""
        if self.due:
            self._set(None)

    def died(self, daemon: Daemon, reason: str) -> None:
        """The active daemon has ended outside any window. One that was attached is not ours to start."""
        if self._is_ours(daemon) and not (self.due and self.due.boot_id == daemon.boot_id and not self.due.hung):
            self._world.say("died", daemon.boot_id, evidence=reason, restarts=self._tries)
            self._schedule(daemon.boot_id, reason)

    def hung(self, daemon: Daemon, reason: str) -> None:
        """The active daemon runs and fails its checks outside any window, and the operator wants it replaced then."""
        if self._is_ours(daemon) and not (self.due and self.due.boot_id == daemon.boot_id):
            self._world.say("replacing", daemon.boot_id, evidence=reason, restarts=self._tries)
            self._schedule(daemon.boot_id, reason, hung=True)

    def recovered(self, daemon: Daemon) -> None:
        """It passed a check again, so nobody need replace it."""
        if self.due and self.due.hung and self.due.boot_id == daemon.boot_id:
            self._set(None)

    def _is_ours(self, daemon: Daemon) -> bool:
        """Whether it may be started again; one that lived for a while begins its count anew."""
        if not daemon.owned or self._snapshot.deployment.desired is Desired.STOPPED or daemon.boot_id == self._given_up:
            return False
        if self._world.now() - self._started_at >= STEADY_AFTER_S:
            self._tries = 0
        return True

    async def run(self) -> None:
        """Restart what dies, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self.due:
                due = self.due
                if due.attempt > len(RESTART_DELAYS_S):
                    await self._give_up(due)
                    break
                if await self._changed_before(due.at):
                    continue
                await self._attempt(due)

    async def _attempt(self, due: Restart) -> None:
        tries, self._tries = (
            self._tries,
            due.attempt,
        )  # the new daemon may die before the verb is over
        self._started_at = self._world.now()
        started = await self._world.start(due.boot_id if due.hung else "")
        if started is Started.BUSY:
            self._tries = tries
        if self.due is not due:
            return
        if started is Started.YES:
            self._set(None)
        elif started is Started.NO:
            self._schedule(due.boot_id, due.reason, hung=due.hung)
        else:
            self._set(replace(due, at=self._world.now() + BUSY_AGAIN_S))

    def _schedule(self, boot_id: str, reason: str, *, hung: bool = False) -> None:
        delay_s = RESTART_DELAYS_S[min(self._tries, len(RESTART_DELAYS_S) - 1)]
        self._set(Restart(boot_id, self._tries + 1, self._world.now() + delay_s, reason, hung))

    async def _give_up(self, due: Restart) -> None:
        """A clear end: nothing is active, clients are told so at once, and the next `up` by a person begins anew."""
        self._tries = 0
        self._set(None)
        reason = f"given up after {len(RESTART_DELAYS_S)} restarts in a row: {due.reason}"
        if due.hung:  # it may come round, and half a service is better than none
            self._world.say("crash_loop", due.boot_id, evidence=reason)
            return
        self._given_up = due.boot_id
        await self._world.give_up(due.boot_id, reason)

    def _set(self, due: Restart | None) -> None:
        self.due = due
        self._wake.set()
        self._world.restart_changed()

    async def _changed_before(self, at: float) -> bool:
        """Wait until ``at``; True where what is due changed before that."""
        due = self.due
        while self.due is due and self._world.now() < at:
            self._wake.clear()
            try:
                async with asyncio.timeout(at - self._world.now()):
                    await self._wake.wait()
            except TimeoutError:
                break
        return self.due is not due
