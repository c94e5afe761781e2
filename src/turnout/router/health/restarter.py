"""Starts a daemon that died, or replaces one that hangs, with back-off; gives up on one that keeps doing so.

What could not even begin (a full disk, no process to be had, a command that is not found) is no crash of the daemon: it
is tried again for as long as it lasts, less and less often, and the daemon comes back by itself.

Runs in the router. The starting itself is a verb in a process of its own, since that needs the lifecycle lock; new
connections wait in the hold meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from enum import Enum, auto
from typing import Final

import msgspec

from turnout.core.backoff import RESTART_DELAYS_S, STEADY_AFTER_S, not_begun_delay_s, same_cause
from turnout.core.model import Daemon, Desired, Snapshot
from turnout.errors import TurnoutError
from turnout.router.event_log import DaemonEvents

BUSY_AGAIN_S: Final = 0.5


class Started(Enum):
    """How an attempt ended."""

    YES = auto()
    NO = auto()
    BUSY = auto()  # another verb is at work on this service; that is no attempt


class NotBegun(msgspec.Struct, frozen=True):
    """An attempt that started nothing, and why."""

    reason: str


class Blocked(msgspec.Struct, frozen=True):
    """Attempts in a row that could not begin: how many, since when (the restarter's clock), and why the last one."""

    reason: str
    since: float
    attempts: int = 1


class Restart(msgspec.Struct, frozen=True):
    """One that is due: attempt ``attempt`` of ``len(RESTART_DELAYS_S)``, at ``at`` on the restarter's clock.

    ``blocked``: why it has not even begun yet.
    ``hung``: the daemon still runs, and is to be replaced; it serves, as well as it can, until its successor does.
    """

    boot_id: str
    attempt: int
    at: float
    reason: str
    hung: bool = False
    blocked: Blocked | None = None


class Restarter:
    """Restarts one service's daemon. Its one task belongs to the caller of :meth:`run`.

    Args:
        start: starts the daemon again, or the successor of the daemon that hangs, which it is given ("": none).
        give_up: takes a daemon that keeps crashing out of service; given its boot id and the reason.
        changed: called when a restart becomes pending, or no longer is.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        events: DaemonEvents,
        start: Callable[[str], Awaitable[Started | NotBegun]],
        give_up: Callable[[str, str], Awaitable[None]],
        changed: Callable[[], None],
    ) -> None:
        self._clock = clock
        self._events = events
        self._start = start
        self._on_give_up = give_up
        self._changed = changed
        self._snapshot = Snapshot()
        self._wake = asyncio.Event()
        self._tries = 0
        self._started_at = -STEADY_AFTER_S
        self._given_up = ""
        self.pending: Restart | None = None

    def on_snapshot(self, snapshot: Snapshot) -> None:
        """Drop the pending restart where a verb has made it needless."""
        self._snapshot = snapshot
        due = self.pending
        active = snapshot.deployment.active_boot_id
        if due and (snapshot.deployment.desired is Desired.STOPPED or active not in {"", due.boot_id}):
            self._set(None)

    def cancel(self) -> None:
        """Drop the pending restart."""
        if self.pending:
            self._set(None)

    def on_exit(self, daemon: Daemon, reason: str) -> None:
        """The active daemon has ended outside any window. One that was attached is not ours to start."""
        if self._is_ours(daemon) and not (
            self.pending and self.pending.boot_id == daemon.boot_id and not self.pending.hung
        ):
            self._events.daemon_event("died", daemon.boot_id, evidence=reason, restarts=self._tries)
            self._schedule(daemon.boot_id, reason)

    def on_hang(self, daemon: Daemon, reason: str) -> None:
        """The active daemon runs and fails its checks outside any window, and the operator wants it replaced then."""
        if self._is_ours(daemon) and not (self.pending and self.pending.boot_id == daemon.boot_id):
            self._events.daemon_event("replacing", daemon.boot_id, evidence=reason, restarts=self._tries)
            self._schedule(daemon.boot_id, reason, hung=True)

    def on_recovery(self, daemon: Daemon) -> None:
        """The daemon passed a check again, so it need not be replaced."""
        if self.pending and self.pending.hung and self.pending.boot_id == daemon.boot_id:
            self._set(None)

    def _is_ours(self, daemon: Daemon) -> bool:
        """Whether the daemon may be started again; the count of one that lived for a while begins at zero."""
        if not daemon.owned or self._snapshot.deployment.desired is Desired.STOPPED or daemon.boot_id == self._given_up:
            return False
        if self._clock() - self._started_at >= STEADY_AFTER_S:
            self._tries = 0
        return True

    async def run(self) -> None:
        """Restart what dies, until cancelled."""
        while True:
            if not self.pending:  # else the last attempt ended in an error, and is made again
                await self._wake.wait()
            self._wake.clear()
            while self.pending:
                due = self.pending
                if due.attempt > len(RESTART_DELAYS_S):
                    await self._give_up(due)
                    break
                if await self._changed_before(due.at):
                    continue
                await self._attempt(due)

    async def _attempt(self, due: Restart) -> None:
        tries, self._tries = self._tries, due.attempt  # the new daemon may die before the verb is over
        self._started_at = self._clock()
        started = await self._start(due.boot_id if due.hung else "")
        if started is Started.BUSY or isinstance(started, NotBegun):
            self._tries = tries
        if due.blocked and started in {Started.YES, Started.NO}:
            lasted_s = round(self._clock() - due.blocked.since)
            self._events.daemon_event("unblocked", due.boot_id, evidence=due.blocked.reason, after_s=lasted_s)
        if self.pending is not due:
            return
        if isinstance(started, NotBegun):
            self._set(self._blocked(due, started.reason))
        elif started is Started.YES:
            self._set(None)
        elif started is Started.NO:
            self._schedule(due.boot_id, due.reason, hung=due.hung)
        else:
            self._set(msgspec.structs.replace(due, at=self._clock() + BUSY_AGAIN_S))

    def _blocked(self, due: Restart, reason: str) -> Restart:
        """The same attempt, a little later; logged where that begins, and where its reason changes."""
        now, before = self._clock(), due.blocked
        if before is None or not same_cause(before.reason, reason):
            self._events.daemon_event("blocked", due.boot_id, evidence=reason)
        blocked = Blocked(reason, before.since if before else now, before.attempts + 1 if before else 1)
        return msgspec.structs.replace(due, at=now + not_begun_delay_s(blocked.attempts), blocked=blocked)

    def _schedule(self, boot_id: str, reason: str, *, hung: bool = False) -> None:
        delay_s = RESTART_DELAYS_S[min(self._tries, len(RESTART_DELAYS_S) - 1)]
        self._set(Restart(boot_id, self._tries + 1, self._clock() + delay_s, reason, hung))

    async def _give_up(self, due: Restart) -> None:
        """Take the daemon out of service, so that clients are reset at once; the next `up` starts afresh."""
        self._tries = 0
        self._set(None)
        reason = f"given up after {len(RESTART_DELAYS_S)} restarts in a row: {due.reason}"
        if due.hung:  # it may come round, and half a service is better than none
            self._events.daemon_event("crash_loop", due.boot_id, evidence=reason)
            return
        self._given_up = due.boot_id
        try:
            await self._on_give_up(due.boot_id, reason)
        except (OSError, TurnoutError):  # a full disk, a held lock: clients would be held for a daemon that never comes
            self._given_up = ""
            self._set(due)
            raise

    def _set(self, due: Restart | None) -> None:
        self.pending = due
        self._wake.set()
        self._changed()

    async def _changed_before(self, at: float) -> bool:
        """Wait until ``at``; True where what is due changed before that."""
        due = self.pending
        while self.pending is due and self._clock() < at:
            self._wake.clear()
            try:
                async with asyncio.timeout(at - self._clock()):
                    await self._wake.wait()
            except TimeoutError:
                break
        return self.pending is not due
