"""The registry file: read without a lock, changed under one, never half-written, and never silently empty."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec

from turnout.core.deployment import Change
from turnout.core.model import Snapshot
from turnout.core.outcome import Outcome, Reason
from turnout.errors import ConflictError, RegistryDamagedError, RegistryUnsupportedError, StateUnwritableError
from turnout.state.registry.commit import keep_aside, keep_good, place, stamp
from turnout.state.registry.decoder import NotARegistry, loads
from turnout.state.registry.encoder import dumps
from turnout.state.registry.merge import merge
from turnout.state.registry.reader import SETTLE_POLL_S, SETTLE_S, Fingerprint, Loader, Read
from turnout.system.files import Files, drop, or_unwritable, sweep
from turnout.system.flock import hold

_ROUNDS: Final = 8


class Foreign(msgspec.Struct, frozen=True):
    """A write of another program without the lock, as it was dealt with.

    Args:
        snapshot: the registry as it stands now.
        repairs: a line for each thing that had to be put back.
        followed: the writer moved the deployment on, deliberately, and that was taken over.
    """

    snapshot: Snapshot
    repairs: tuple[str, ...] = ()
    followed: bool = False


class RegistryFile:
    """One registry file. Opens, reads and closes at each call; threads and processes may share it.

    Beside it lie ``FILE.lock``, ``FILE.good`` (the last good copy), at most five ``FILE.damaged-…``, and
    ``FILE.displaced-…`` where another program's content could not be merged. A link is followed: these lie beside what
    it points at.

    Args:
        path: the file; it need not exist.
        files: the calls to the system.
        lock_timeout_s: seconds that an update waits for another one.
        tell: called, under the lock, with each repair that was written and each foreign deployment that was followed.
        clock: monotonic seconds.
        sleep: waits that many seconds.
        view: given each snapshot that was read, returns it as this home sees it (:mod:`turnout.state.copied_home`).
    """

    def __init__(
        self,
        path: Path,
        *,
        files: Files | None = None,
        lock_timeout_s: float = 8.0,
        tell: Callable[[Foreign], None] = lambda _foreign: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        view: Callable[[Snapshot], Snapshot] = lambda snapshot: snapshot,
    ) -> None:
        self.path = path
        self._files = files or Files()
        self._lock_timeout_s = lock_timeout_s
        self._tell = tell
        self._clock = clock
        self._sleep = sleep
        self._view = view
        self._seen: tuple[Read, Read] | None = None  # what was read last, and as this home sees it
        self._loader = Loader(path, self._files, clock=clock, sleep=sleep)
        self._swept = False

    def __repr__(self) -> str:
        return f"RegistryFile({str(self.path)!r})"

    def read(self) -> Read:
        """The registry as it is; never waits for the lock, and up to a second for a writer that is in the middle.

        A file that has not changed is not read again: that costs two calls of stat(2).

        Raises:
            RegistryUnsupportedError: a higher major version wrote it.
            RegistryDamagedError: it is damaged, and there is no last good copy.
            StateUnwritableError: it cannot be read: permissions, a directory, over 64 MiB, an I/O error.
        """
        read, last = self._loader.look(self._target()), self._seen
        if last is None or last[0] is not read:
            snapshot = self._view(read.snapshot)
            seen = read if snapshot is read.snapshot else msgspec.structs.replace(read, snapshot=snapshot)
            last = self._seen = (read, seen)
        return last[1]

    def update(self, change: Change) -> Outcome:
        """Apply one event under the lock; what it refuses leaves the file byte-identical.

        Args:
            change: an event of :mod:`turnout.core.deployment`. It is called again where a writer without the lock came
                in between, so it must not do anything but decide.

        Returns:
            The event's outcome, with what was written; ``durable`` False where only the last sync failed.

        Raises:
            LockTimeoutError: another process held the lock all the time.
            ConflictError: another program never stopped writing.
            RegistryUnsupportedError, RegistryDamagedError: as :meth:`read`.
            StateUnwritableError: permissions, a full disk, an I/O error. All of them: nothing was changed.
        """

        def decide(snapshot: Snapshot) -> Outcome:
            return change(self._view(snapshot))

        with self._locked(self._lock_timeout_s) as target:
            for _ in range(_ROUNDS):
                read, before = self._loader.load(target, must_keep=True)
                outcome = decide(read.snapshot)
                if not outcome.applied:
                    return outcome
                followed = self._is_followed(target, read)
                written = self._write(target, read.snapshot, before, outcome, decide)
                if written:
                    self._say(read.snapshot, read.repairs, followed=followed)
                    return written
        raise self._overrun()

    def settle(self, *, lock_timeout_s: float | None = None) -> Foreign:
        """Make the file and its last good copy say the same again, after a write without the lock.

        What the file lacks of the deployment is written back; what is rightly new in it goes into the good copy, so
        that it outlives the next damage. Does nothing where :attr:`Read.settled`.

        Args:
            lock_timeout_s: seconds to wait for the lock instead of those given at first; 0 tries once.

        Raises:
            LockTimeoutError: a writer is at work; it will have merged when it is done.
            ConflictError, RegistryUnsupportedError, RegistryDamagedError, StateUnwritableError: as :meth:`update`.
        """
        with self._locked(self._lock_timeout_s if lock_timeout_s is None else lock_timeout_s) as target:
            for _ in range(_ROUNDS):
                read, before = self._loader.load(target, must_keep=True)
                if read.settled:
                    return Foreign(read.snapshot)
                followed = self._is_followed(target, read)
                snapshot: Snapshot | None = read.snapshot
                if read.repairs:
                    written = self._write(target, read.snapshot, before, _as_it_is(read.snapshot), _as_it_is)
                    snapshot = written.snapshot if written else None
                else:
                    with or_unwritable("write the last good copy of", self.path):
                        keep_good(self._files, target, self._encode(read.snapshot))
                if snapshot:
                    return self._say(snapshot, read.repairs, followed=followed)
        raise self._overrun()

    def repair(self, content: bytes | None = None) -> Foreign:
        """Write the registry again as it was understood; a copy of what could not be understood whole is kept aside.

        Args:
            content: a mended or an older registry to take daemons and workspaces from, as the last writer's; the
                deployment is not set back by it. None: only what is there.

        Raises:
            NotARegistry: ``content`` is none.
            LockTimeoutError, ConflictError, RegistryUnsupportedError, RegistryDamagedError, StateUnwritableError: as
                :meth:`update`.
        """
        given = loads(content).snapshot if content is not None else None
        with self._locked(self._lock_timeout_s) as target:
            for _ in range(_ROUNDS):
                try:
                    read, before = self._loader.load(target, must_keep=True)
                except RegistryDamagedError:
                    if given is None:
                        raise
                    read, before = Read(Snapshot(), (), Fingerprint(), "empty"), self._files.read(target)[0]
                snapshot = merge(read.snapshot, given)[0] if given else read.snapshot
                if snapshot == read.snapshot and read.kept and not read.report and before is not None:
                    return Foreign(snapshot)
                if before is not None and read.report and read.source == "file":
                    with or_unwritable("keep a copy of", self.path):
                        keep_aside(self._files, target, before)
                written = self._write(target, read.snapshot, before, _as_it_is(snapshot), _as_it_is)
                if written:
                    done = tuple(f"{finding.where}: {finding.what}" for finding in read.report)
                    taken = ("daemons and workspaces were taken from the copy",) if given else ()
                    return self._say(written.snapshot, (*done, *taken), followed=False)
        raise self._overrun()

    @contextmanager
    def _locked(self, timeout_s: float) -> Generator[Path]:
        target = self._target()
        with or_unwritable("create the directory of", self.path):
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = target.with_name(f"{target.name}.lock")
        with hold(lock, timeout_s=timeout_s, guarded=f"the registry {self.path}", like=target):
            if not self._swept:
                sweep(self._files, target)
                self._swept = True
            yield target

    def _overrun(self) -> ConflictError:
        return ConflictError(
            f"another program keeps writing {self.path}; nothing was changed", hint="stop it, or let it take FILE.lock"
        )

    def _say(self, snapshot: Snapshot, repairs: tuple[str, ...], *, followed: bool) -> Foreign:
        foreign = Foreign(snapshot, repairs, followed)
        if repairs or followed:
            self._tell(foreign)
        return foreign

    def _is_followed(self, target: Path, read: Read) -> bool:
        """Whether the file's deployment is newer than any that turnout wrote: a writer of ours leaves FILE.good.new."""
        ours = self._loader.newest_of_ours(target)
        return ours is not None and read.snapshot.deployment.revision > ours

    def _write(
        self, target: Path, base: Snapshot, before: bytes | None, outcome: Outcome, change: Change
    ) -> Outcome | None:
        """Put the outcome in place; None where another content had come and nothing was changed."""
        data = self._encode(outcome.snapshot)
        with or_unwritable("write", self.path):
            placed = place(self._files, target, data, before)
        if placed is None:
            return None
        durable, displaced = placed.durable, placed.displaced
        for _ in range(_ROUNDS):
            if displaced is None:
                break
            ours = outcome.snapshot
            outcome = self._with_theirs(target, base, outcome, displaced, change)
            if outcome.snapshot == ours:
                drop(self._files, displaced)
                break
            base, before = ours, data
            try:
                data = self._encode(outcome.snapshot)
                placed = place(self._files, target, data, before)
            except (OSError, StateUnwritableError):
                placed = None
            if placed is None:  # the file is gone or cannot be written any more: the event counts, theirs is kept aside
                self._put_aside(target, displaced)
                return replace(outcome, durable=False)
            drop(self._files, displaced)
            durable, displaced = placed.durable, placed.displaced
        return outcome if durable else replace(outcome, durable=False)

    def _encode(self, snapshot: Snapshot) -> bytes:
        try:
            return dumps(snapshot)
        except RecursionError as error:  # reading stands more than writing
            raise StateUnwritableError(
                f"cannot write {self.path}: another program's data in it is nested too deeply; nothing was changed",
                hint="remove that data from the file",
            ) from error

    def _with_theirs(self, target: Path, base: Snapshot, outcome: Outcome, displaced: Path, change: Change) -> Outcome:
        """The outcome together with what another program wrote in the meantime."""
        theirs = self._settled(target, displaced)
        if theirs is None:
            return outcome
        merged, notes = merge(outcome.snapshot, theirs, base=base)
        moved_on = merged.deployment.revision != outcome.deployment.revision
        self._say(merged, notes, followed=moved_on)
        if not moved_on:
            return replace(outcome, snapshot=merged)
        return change(merged)  # theirs is a deliberate, newer deployment: the event meets that one

    def _settled(self, target: Path, displaced: Path) -> Snapshot | None:
        """What the displaced file says once its writer is done; None where that never becomes a registry."""
        until = self._clock() + SETTLE_S
        while True:
            try:
                data, _ = self._files.read(displaced)
                return loads(data).snapshot
            except OSError:
                return None
            except RegistryUnsupportedError:
                self._put_aside(target, displaced)
                return None
            except NotARegistry:
                if self._clock() >= until:
                    self._put_aside(target, displaced)
                    return None
            self._sleep(SETTLE_POLL_S)

    def _put_aside(self, target: Path, displaced: Path) -> None:
        with suppress(OSError):
            self._files.rename(displaced, target.with_name(f"{target.name}.displaced-{stamp()}"))

    def _target(self) -> Path:
        return Path(os.path.realpath(self.path))


def _as_it_is(snapshot: Snapshot) -> Outcome:
    return Outcome(applied=True, reason=Reason.APPLIED, snapshot=snapshot)
