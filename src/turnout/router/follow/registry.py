"""One service's registry as the router follows it: looked at, applied, put right, and written in its turn.

No file is touched on the loop, where a call that hangs (NFS, FUSE) would stall every client. Each service has a thread
for each thing that can hang by itself (:class:`FileThreads`), and each thread has one call in flight.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from turnout.core.deployment import Change
from turnout.core.model import Snapshot
from turnout.core.outcome import Outcome
from turnout.errors import LockTimeoutError, TurnoutError
from turnout.planes.loop_priority import LoopPriority
from turnout.router.follow.file_threads import FileThreads, HangWarning
from turnout.router.follow.settings import ConfigLook, SettingsFollower, WrittenSettings
from turnout.state.registry.reader import Read
from turnout.system.file_watcher import Watcher
from turnout.system.inotify import Notice

POLL_S: Final = 0.02
HINTED_POLL_S: Final = 0.25  # where the kernel tells of changes, looking is only for what it may have missed
HINTS_AGAIN_S: Final = 1.0
SETTINGS_EVERY_S: Final = 1.0
BUSY_S: Final = 0.1  # a file that changed a moment ago may change again behind the same time stamp
UNREADABLE_AGAIN_S: Final = 1.0
KEEP_EVERY_S: Final = 1.0
REST_S: Final = 10.0  # longer than a write waits for the registry's lock
log = logging.getLogger("turnout.router")


class Peek(NamedTuple):
    """What a look by time stamp found: that the registry is to be read, new settings, a new source of hints."""

    changed: bool
    written: WrittenSettings | None
    notice: Notice | None


class RegistryWriter(Protocol):
    """Where events are written into a service's registry."""

    async def update(self, change: Change) -> Outcome:
        """Write an event, and apply what came of it.

        Raises:
            OSError, TurnoutError: it cannot be written now.
        """
        ...


class SnapshotHandler(Protocol):
    """The service that acts on its registry."""

    @property
    def decides(self) -> bool: ...  # whether this router leads: only then the file is put right

    def on_snapshot(self, snapshot: Snapshot) -> None: ...
    def on_poll(self, now: float) -> None: ...  # at each poll, with the loop's clock


class RegistryFollower:
    """Owns the poll and the kernel's hints; the loop and the executor belong to the router.

    Args:
        files: the threads that read and write.
        live: the service, whose settings are looked at with the same poll.
        loop_priority: notes hints and reads in progress, so that nothing keeps the loop meanwhile.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        files: FileThreads,
        live: SettingsFollower,
        handler: SnapshotHandler,
        loop_priority: LoopPriority,
    ) -> None:
        self._loop = loop
        self._files = files
        self._live = live
        self._handler = handler
        self._loop_priority = loop_priority
        self.snapshot = Snapshot()
        self.applied_revision = -1
        self._written_ns = 0
        self.writes_in_flight = 0  # of this router
        self._watcher = Watcher(live.service.registry.path)
        self._path = live.service.registry.path
        self._waiters: list[tuple[int, Callable[[int], None]]] = []
        self._applying = asyncio.Lock()
        self._busy = 0  # uninterrupted blocks: a write, and its journal entry
        self._idle = asyncio.Event()
        self._wake = asyncio.Event()
        self._notice: Notice | None = None
        self._look_at = math.inf
        self._kept_at = -math.inf
        self._busy_until = 0.0
        self._settings_at = 0.0
        self._file_at = 0.0
        self._hints_at = 0.0
        self._poll_at = 0.0
        self._peeking = False
        self._looking_at_file = False
        self._registry_hang = HangWarning(live.service.name, "")
        self._file_hang = HangWarning(live.service.name, "the directory of the configuration file, ")
        self._closed = False
        self._poller: asyncio.Handle = loop.call_soon(self._poll)

    async def run(self) -> None:
        """Look whenever there is news, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self.look()

    def look_soon(self) -> None:
        """Look at the registry at the next turn of the loop."""
        self._wake.set()

    def settings_changed(self) -> None:
        """Follow another registry where the settings name one."""
        path = self._live.service.registry.path
        if path != self._path:
            self._path = path
            self._watcher = Watcher(path)
            self._drop_notice()
            self._hints_at = 0.0

    def close(self) -> None:
        self._closed = True
        self._poller.cancel()
        self._drop_notice()

    # -- looking -----------------------------------------------------------------------------------------------------

    def _poll(self) -> None:
        """Check the files by time stamp: often while something happens or no inotify hint comes, else seldom."""
        now = self._loop.time()
        try:
            self._handler.on_poll(now)
            if now >= self._look_at:
                self._wake.set()
            elif not self._peeking:
                self._peek(now)
            if now >= self._file_at and not self._looking_at_file:
                self._file_at = now + SETTINGS_EVERY_S
                self.look_at_file()
            self._registry_hang.check(now)
            self._file_hang.check(now)
        finally:  # what fails in one poll must not end the next
            hinted = self._notice is not None and now >= self._busy_until
            self._poll_in(min(HINTED_POLL_S, max(POLL_S, self._look_at - now)) if hinted else POLL_S)

    def _poll_in(self, pause_s: float) -> None:
        self._poller.cancel()
        self._poll_at = self._loop.time() + pause_s
        self._poller = self._loop.call_later(pause_s, self._poll)

    def _changed(self) -> None:
        """Read the registry now, and look more often for a moment."""
        now = self._loop.time()
        self._busy_until = now + BUSY_S
        if self._poll_at > now + POLL_S:
            self._poll_in(POLL_S)
        self._wake.set()

    def _peek(self, now: float) -> None:
        """One look by time stamp, in the thread that reads: one is in flight at most."""
        with_settings = now >= self._settings_at
        if with_settings:
            self._settings_at = now + SETTINGS_EVERY_S
        with_hints = now >= self._hints_at and (self._notice is None or not self._notice.alive)
        if with_hints:
            self._hints_at = now + HINTS_AGAIN_S
        live, watcher, path = self._live, self._watcher, self._path

        def peek() -> Peek:
            written = live.look_at_settings() if with_settings else None
            return Peek(watcher.poll(), written, Notice.of(path) if with_hints else None)

        self._peeking = True
        self._registry_hang.call_began(path.parent, now)
        future = self._loop.run_in_executor(self._files.reading, peek)
        future.add_done_callback(lambda done: self._peeked(done, path))

    def _peeked(self, done: asyncio.Future[Peek], path: Path) -> None:
        self._peeking = False
        self._registry_hang.call_returned()
        if done.cancelled() or done.exception():  # no thread to be had: the next poll tries again
            return
        found = done.result()
        if found.notice:
            if self._closed or path != self._path:
                found.notice.close()
            else:
                self._take_notice(found.notice)
        if self._closed:
            return
        if found.written:
            self._live.take(found.written)
        if found.changed:
            self._changed()

    def look_at_file(self) -> None:
        """Have the configuration file looked at, in the thread of its directory."""
        if self._looking_at_file or self._closed:
            return
        self._looking_at_file = True
        settings = self._live.settings
        self._file_hang.call_began(Path(settings.source).parent, self._loop.time())
        future = self._loop.run_in_executor(self._files.configuration, self._live.begin_look())

        def looked(done: asyncio.Future[ConfigLook]) -> None:
            self._looking_at_file = False
            self._file_hang.call_returned()
            if not done.cancelled() and not done.exception() and not self._closed:
                self._live.take_file(settings, done.result())

        future.add_done_callback(looked)

    def _take_notice(self, notice: Notice) -> None:
        self._drop_notice()
        try:
            self._loop.add_reader(notice.fileno(), self._hinted)
            self._loop_priority.watch(notice.fileno())
        except OSError:  # epoll_ctl(2): no memory; the file is looked at more often until there are hints
            self._loop.remove_reader(notice.fileno())
            notice.close()
            return
        self._notice = notice

    def _hinted(self) -> None:
        if self._notice and self._notice.read():
            self._changed()

    def _drop_notice(self) -> None:
        if self._notice:
            self._loop.remove_reader(self._notice.fileno())
            self._loop_priority.forget(self._notice.fileno())
            self._notice.close()
            self._notice = None

    async def look(self) -> None:
        """Read the registry and apply it; a file that cannot be used leaves everything as it is."""
        async with self._applying:
            self._look_at = math.inf
            live, watcher = self._live, self._watcher

            def read() -> tuple[WrittenSettings | None, Read | TurnoutError]:
                written = live.look_at_settings()
                watcher.poll()  # what is read now is no news at the next look by time stamp
                try:
                    return written, live.registry_of(written).read()
                except TurnoutError as error:
                    return written, error
                except OSError as error:  # what was written must not be lost with it
                    return written, TurnoutError(f"the registry cannot be read: {error.strerror}")

            self._registry_hang.call_began(self._path.parent, self._loop.time())
            try:
                with self._loop_priority.preempting():
                    written, found = await self._loop.run_in_executor(self._files.reading, read)
            except OSError as error:  # no thread to be had
                written, found = None, TurnoutError(f"the registry cannot be read: {error.strerror}")
            self._registry_hang.call_returned()
            if written:
                live.take(written)
            if isinstance(found, TurnoutError):
                log.warning("%s: %s", live.service.name, found.message)
                self._look_at = self._loop.time() + UNREADABLE_AGAIN_S
                return
            self._apply(found.snapshot, found.fingerprint.ctime_ns)
            if not found.settled and self._handler.decides:
                with self.uninterrupted():
                    await self._settle(found)

    async def _settle(self, read: Read) -> None:
        """Put back what a writer without the lock undid of the deployment, and keep what it rightly said."""
        now = self._loop.time()
        if not (read.repairs or read.ahead) and now < self._kept_at + KEEP_EVERY_S:
            self._look_at = self._kept_at + KEEP_EVERY_S  # heartbeats come often, and each copy is synced to disk
            return
        try:
            foreign = await self._loop.run_in_executor(
                self._files.writing, lambda: self._live.service.registry.settle(lock_timeout_s=0)
            )
        except LockTimeoutError:  # a verb is writing, and merges
            self._look_at = now + POLL_S
        except (TurnoutError, OSError) as error:
            log.warning("%s: %s", self._live.service.name, error)
            self._look_at = now + UNREADABLE_AGAIN_S
        else:
            self._kept_at = now
            for repair in foreign.repairs:
                log.warning("%s: %s", self._live.service.name, repair)

    # -- applying ----------------------------------------------------------------------------------------------------

    def _apply(self, snapshot: Snapshot, written_ns: int) -> None:
        """Hand a snapshot on. ``written_ns``: the change time of its file, which a rename sets."""
        block = snapshot.deployment
        if block.revision < self.applied_revision:
            return  # a read that was overtaken by our own write
        is_new = block.revision != self.applied_revision
        self.snapshot = snapshot
        self.applied_revision = block.revision
        self._written_ns = written_ns
        self._handler.on_snapshot(snapshot)
        self._answer_waiters()
        if is_new:  # after the switch: the thread that writes the log takes the interpreter from the loop
            log.info(
                "%s: applied revision %d: generation %d %s, active %s",
                self._live.service.name,
                block.revision,
                block.generation,
                block.state,
                block.active_boot_id or "none",
            )

    def when_applied(self, revision: int, reply: Callable[[int], None]) -> None:
        """Call ``reply`` with the applied revision once it is ``revision`` or later; look at the registry now."""
        if self.applied_revision >= revision:
            reply(self.applied_revision)
            return
        self._waiters.append((revision, reply))
        del self._waiters[:-256]  # a verb that gave up cannot be distinguished from one that waits
        self._wake.set()

    def written_ago_s(self) -> float | None:
        """Seconds since the applied file was written; None where that is unknown."""
        return (time.time_ns() - self._written_ns) / 1e9 if self._written_ns else None

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
        registry = self._live.service.registry

        def write() -> tuple[Outcome, int]:
            return registry.update(change), time.time_ns()

        with self.uninterrupted():
            self.writes_in_flight += 1
            try:
                with self._loop_priority.preempting():
                    outcome, written_ns = await self._loop.run_in_executor(self._files.writing, write)
            except (OSError, TurnoutError):
                self._wake.set()  # the host may have put off what it saw meanwhile until this write is over
                raise
            finally:
                self.writes_in_flight -= 1
            if outcome.applied:
                async with self._applying:
                    self._apply(outcome.snapshot, written_ns)
            else:
                await self.look()
        return outcome

    @contextlib.contextmanager
    def uninterrupted(self) -> Generator[None]:
        """Delay the release of the lead until the block, with the journal entry that follows from it, is over."""
        self._busy += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._busy -= 1
            if not self._busy:
                self._idle.set()

    async def idle(self) -> None:
        """Wait until no block is uninterrupted; ten seconds at most, since a file system may hang."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REST_S):
                while self._busy:
                    await self._idle.wait()
