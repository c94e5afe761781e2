"""One service's registry as the router follows it: looked at, applied, put right, and written in its turn."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Generator
from concurrent.futures import Executor
from typing import Final, Protocol

from turnout.core.model import Snapshot
from turnout.core.outcome import Outcome
from turnout.errors import LockTimeoutError, TurnoutError
from turnout.live_settings import LiveSettings
from turnout.planes.attention import Attention
from turnout.supervisor import Change
from turnout.system.loading import Read
from turnout.system.notice import Notice
from turnout.system.watcher import Watcher

POLL_S: Final = 0.02
HINTED_POLL_S: Final = 0.25  # where the kernel tells of changes, looking is only for what it may have missed
HINTS_AGAIN_S: Final = 1.0
SETTINGS_EVERY_S: Final = 1.0
BUSY_S: Final = 0.1  # a file that changed a moment ago may change again behind the same time stamp
UNREADABLE_AGAIN_S: Final = 1.0
KEEP_EVERY_S: Final = 1.0
log = logging.getLogger("turnout.router")


class Host(Protocol):
    """The service that acts on what the registry says."""

    @property
    def decides(self) -> bool:
        """Whether this router leads: only then the file is put right."""
        ...

    def observe(self, snapshot: Snapshot) -> None:
        """Act on what is applied now."""
        ...

    def polled(self, now: float) -> None:
        """Called at each poll; ``now``: the loop's clock, seconds."""
        ...


class Following:
    """Owns the poll and the kernel's hints; the loop and the executor belong to the router.

    Args:
        loop: the router's.
        executor: where files are read and written.
        live: the service, whose settings are looked at with the same poll.
        host: told what is applied.
        attention: told of hints and of looks under way, so that nothing keeps the loop meanwhile.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        executor: Executor,
        live: LiveSettings,
        host: Host,
        attention: Attention,
    ) -> None:
        self._loop = loop
        self._executor = executor
        self._live = live
        self._host = host
        self._attention = attention
        self.snapshot = Snapshot()
        self.applied_revision = -1
        self.deciding = 0  # writes of ours under way
        self._watcher = Watcher(live.service.registry.path)
        self._path = live.service.registry.path
        self._waiters: list[tuple[int, Callable[[int], None]]] = []
        self._applying = asyncio.Lock()
        self._busy = 0  # what must not be broken off: a write, and what is told of it
        self._idle = asyncio.Event()
        self._news = asyncio.Event()
        self._notice: Notice | None = None
        self._look_at = math.inf
        self._kept_at = -math.inf
        self._busy_until = 0.0
        self._settings_at = 0.0
        self._hints_at = 0.0
        self._poller: asyncio.Handle = loop.call_soon(self._poll)

    async def run(self) -> None:
        """Look whenever there is news, until cancelled."""
        while True:
            await self._news.wait()
            self._news.clear()
            await self.look()

    def look_soon(self) -> None:
        """Look at the registry at the next turn of the loop."""
        self._news.set()

    def settings_changed(self) -> None:
        """They may name another registry."""
        path = self._live.service.registry.path
        if path != self._path:
            self._path = path
            self._watcher = Watcher(path)
            self._drop_notice()
            self._hints_at = 0.0

    def close(self) -> None:
        self._poller.cancel()
        self._drop_notice()

    # -- looking -----------------------------------------------------------------------------------------------------

    def _poll(self) -> None:
        """Look by mtime: often while something happens or nobody gives a hint, else now and then."""
        now = self._loop.time()
        self._host.polled(now)
        if self._watcher.poll():
            self._busy_until = now + BUSY_S
            self._news.set()
        elif now >= self._look_at:
            self._news.set()
        if now >= self._settings_at:
            self._settings_at = now + SETTINGS_EVERY_S
            self._live.look()
        if now >= self._hints_at and (self._notice is None or not self._notice.alive):
            self._hints_at = now + HINTS_AGAIN_S
            self._watch_for_hints()
        hinted = self._notice is not None and now >= self._busy_until
        pause_s = min(HINTED_POLL_S, max(POLL_S, self._look_at - now)) if hinted else POLL_S
        self._poller.cancel()
        self._poller = self._loop.call_later(pause_s, self._poll)

    def _watch_for_hints(self) -> None:
        self._drop_notice()
        self._notice = Notice.of(self._live.service.registry.path)
        if self._notice:
            self._loop.add_reader(self._notice.fileno(), self._hinted)
            self._attention.watch(self._notice.fileno())

    def _hinted(self) -> None:
        if self._notice and self._notice.read():
            self._poll()

    def _drop_notice(self) -> None:
        if self._notice:
            self._loop.remove_reader(self._notice.fileno())
            self._attention.forget(self._notice.fileno())
            self._notice.close()
            self._notice = None

    async def look(self) -> None:
        """Read the registry and apply it; a file that cannot be used leaves everything as it is."""
        async with self._applying:
            self._look_at = math.inf
            self._live.look()
            try:
                with self._attention.hurry():
                    read = await self._loop.run_in_executor(self._executor, self._live.service.registry.read)
            except TurnoutError as error:
                log.warning("%s: %s", self._live.service.name, error.message)
                self._look_at = self._loop.time() + UNREADABLE_AGAIN_S
                return
            self._apply(read.snapshot)
            if not read.settled and self._host.decides:
                with self.unbroken():
                    await self._settle(read)

    async def _settle(self, read: Read) -> None:
        """Put back what a writer without the lock undid of the deployment, and keep what it rightly said."""
        now = self._loop.time()
        if not (read.repairs or read.ahead) and now < self._kept_at + KEEP_EVERY_S:
            self._look_at = self._kept_at + KEEP_EVERY_S  # heartbeats come often, and each copy is synced to disk
            return
        try:
            foreign = await self._loop.run_in_executor(
                self._executor, lambda: self._live.service.registry.settle(lock_timeout_s=0)
            )
        except LockTimeoutError:  # a verb is writing, and merges
            self._look_at = now + POLL_S
        except TurnoutError as error:
            log.warning("%s: %s", self._live.service.name, error.message)
            self._look_at = now + UNREADABLE_AGAIN_S
        else:
            self._kept_at = now
            for what in foreign.repairs:
                log.warning("%s: %s", self._live.service.name, what)

    # -- applying ----------------------------------------------------------------------------------------------------

    def _apply(self, snapshot: Snapshot) -> None:
        block = snapshot.deployment
        if block.revision < self.applied_revision:
            return  # a read that was overtaken by our own write
        if block.revision != self.applied_revision:
            log.info(
                "%s: applied revision %d: generation %d %s, active %s",
                self._live.service.name,
                block.revision,
                block.generation,
                block.state,
                block.active_boot_id or "none",
            )
        self.snapshot = snapshot
        self.applied_revision = block.revision
        self._host.observe(snapshot)
        self._answer_waiters()

    def when_applied(self, revision: int, reply: Callable[[int], None]) -> None:
        """Call ``reply`` with the applied revision once it is ``revision`` or later; look at the registry now."""
        if self.applied_revision >= revision:
            reply(self.applied_revision)
            return
        self._waiters.append((revision, reply))
        del self._waiters[:-256]  # verbs that gave up are not told apart from those that wait
        self._news.set()

    def written_ago_s(self) -> float | None:
        """Seconds since the file came to be as it is: a rename sets its change time (rename(2), inode(7))."""
        try:
            return (time.time_ns() - self._path.stat().st_ctime_ns) / 1e9
        except OSError:
            return None

    def _answer_waiters(self) -> None:
        waiting, self._waiters = self._waiters, []
        for revision, reply in waiting:
            if revision <= self.applied_revision:
                reply(self.applied_revision)
            else:
                self._waiters.append((revision, reply))

    # -- writing -----------------------------------------------------------------------------------------------------

    async def update(self, change: Change) -> Outcome:
        """Write an event, and apply what came of it."""
        with self.unbroken():
            self.deciding += 1
            try:
                with self._attention.hurry():
                    outcome = await self._loop.run_in_executor(
                        self._executor, lambda: self._live.service.registry.update(change)
                    )
            finally:
                self.deciding -= 1
            if outcome.applied:
                async with self._applying:
                    self._apply(outcome.snapshot)
            else:
                await self.look()
        return outcome

    @contextlib.contextmanager
    def unbroken(self) -> Generator[None]:
        """What a router that leaves waits for. What its caller then says of it comes before the wait is over."""
        self._busy += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._busy -= 1
            if not self._busy:
                self._idle.set()

    async def idle(self) -> None:
        """Until nothing is under way that must not be broken off; bounded by the time-out of the registry's lock."""
        while self._busy:
            await self._idle.wait()
