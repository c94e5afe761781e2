"""The registry file: read without a lock, changed under one, never half-written, and never silently empty."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from turnout.core.codec import Finding, NotARegistry, dumps, loads
from turnout.core.merge import merge
from turnout.core.model import Snapshot
from turnout.core.outcome import Outcome
from turnout.errors import ConflictError, RegistryDamagedError, RegistryUnsupportedError, StateUnwritableError
from turnout.system.commit import good_copy, keep_aside, next_good_copy, place, stamp
from turnout.system.files import Files, drop, sweep, unwritable
from turnout.system.flock import hold

SETTLE_S: Final = 1.0  # an in-place writer has this long to go on before its file counts as damaged
_SETTLE_POLL_S: Final = 0.02
_SETTLE_LIMIT_S: Final = 5.0
_ROUNDS: Final = 8
Change = Callable[[Snapshot], Outcome]


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """By what a file's content is told from what it was before; all 0 where there is no file."""

    mtime_ns: int = 0
    ctime_ns: int = 0
    inode: int = 0
    size_bytes: int = 0

    @classmethod
    def of(cls, state: os.stat_result) -> Fingerprint:
        return cls(state.st_mtime_ns, state.st_ctime_ns, state.st_ino, state.st_size)


@dataclass(frozen=True, slots=True)
class Read:
    """What the registry says.

    Args:
        snapshot: the whole of it.
        report: what was dropped, mended or put back to get there.
        fingerprint: that of the file which was read.
        source: "file"; "good" where the file is missing or damaged and the last good copy stands in; "empty" where
            there is neither.
    """

    snapshot: Snapshot
    report: tuple[Finding, ...]
    fingerprint: Fingerprint
    source: Literal["file", "good", "empty"]


@dataclass(frozen=True, slots=True)
class _Good:
    snapshot: Snapshot
    fingerprint: Fingerprint


class RegistryFile:
    """One registry file. Opens, reads and closes at each call; threads and processes may share it.

    Beside it lie ``FILE.lock``, ``FILE.good`` (the last good copy), at most five ``FILE.damaged-…``, and
    ``FILE.displaced-…`` where another program's content could not be merged. A link is followed: these lie beside what
    it points at.

    Args:
        path: the file; it need not exist.
        files: the calls to the system.
        lock_timeout_s: seconds that an update waits for another one.
        clock: monotonic seconds.
        sleep: waits that many seconds.
    """

    def __init__(
        self,
        path: Path,
        *,
        files: Files | None = None,
        lock_timeout_s: float = 8.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.path = path
        self._files = files or Files()
        self._lock_timeout_s = lock_timeout_s
        self._clock = clock
        self._sleep = sleep
        self._good: _Good | None = None
        self._known_damaged = Fingerprint()
        self._swept = False

    def __repr__(self) -> str:
        return f"RegistryFile({str(self.path)!r})"

    def read(self) -> Read:
        """The registry as it is; never waits for the lock, and up to a second for a writer that is in the middle.

        Raises:
            RegistryUnsupportedError: a higher major version wrote it.
            RegistryDamagedError: it is damaged, and there is no last good copy.
            StateUnwritableError: it cannot be read: permissions, a directory, over 64 MiB, an I/O error.
        """
        return self._load(self._target())[0]

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
        target = self._target()
        try:
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable("create the directory of", self.path, error) from error
        lock = target.with_name(f"{target.name}.lock")
        with hold(lock, timeout_s=self._lock_timeout_s, what=f"the registry {self.path}"):
            if not self._swept:
                sweep(self._files, target)
                self._swept = True
            for _ in range(_ROUNDS):
                read, before = self._load(target, must_keep=True)
                outcome = change(read.snapshot)
                if not outcome.applied:
                    return outcome
                written = self._write(target, read.snapshot, before, outcome, change)
                if written:
                    return written
        raise ConflictError(
            f"another program keeps writing {self.path}; nothing was changed", hint="stop it, or let it take FILE.lock"
        )

    # -- writing -----------------------------------------------------------------------------------------------------

    def _write(
        self, target: Path, base: Snapshot, before: bytes | None, outcome: Outcome, change: Change
    ) -> Outcome | None:
        """Put the outcome in place; None where another content had come and nothing was changed."""
        data = self._encode(outcome.snapshot)
        try:
            placed = place(self._files, target, data, before)
        except OSError as error:
            raise unwritable("write", self.path, error) from error
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
        """The outcome together with what somebody wrote in the meantime."""
        theirs = self._settled(target, displaced)
        if theirs is None:
            return outcome
        merged, _ = merge(outcome.snapshot, theirs, base=base)
        if merged.deployment.revision == outcome.deployment.revision:
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
            self._sleep(_SETTLE_POLL_S)

    def _put_aside(self, target: Path, displaced: Path) -> None:
        with suppress(OSError):
            self._files.rename(displaced, target.with_name(f"{target.name}.displaced-{stamp()}"))

    # -- reading -----------------------------------------------------------------------------------------------------

    def _load(self, target: Path, *, must_keep: bool = False) -> tuple[Read, bytes | None]:
        """Read until there is a registry, or none for sure; with the bytes that the file had."""
        last: tuple[Fingerprint, bytes] | None = None
        since = began = self._clock()
        while True:
            # the copy first: it is never newer than the file then, as long as nobody went behind our back
            good = self._last_good(target)
            data, fingerprint = self._bytes(target)
            if data is None:
                good = self._latest_good(target, good)
                source: Literal["good", "empty"] = "good" if good else "empty"
                missing = (Finding("the file", "missing; the last good copy stands in"),) if good else ()
                return Read(good.snapshot if good else Snapshot(), missing, fingerprint, source), None
            try:
                decoded = loads(data)
            except NotARegistry as error:
                now = self._clock()
                if last != (fingerprint, data):
                    last, since = (fingerprint, data), now
                if fingerprint == self._known_damaged or now - since >= SETTLE_S or now - began >= _SETTLE_LIMIT_S:
                    return self._damaged(target, data, fingerprint, str(error), must_keep=must_keep), data
                self._sleep(_SETTLE_POLL_S)
                continue
            if good and decoded.snapshot.deployment.revision == 0:
                good = self._latest_good(target, good)
            if good is None:
                return Read(decoded.snapshot, decoded.report, fingerprint, "file"), data
            snapshot, notes = merge(good.snapshot, decoded.snapshot)
            report = (*decoded.report, *(Finding("deployment", note) for note in notes))
            return Read(snapshot, report, fingerprint, "file"), data

    def _damaged(self, target: Path, data: bytes, fingerprint: Fingerprint, why: str, *, must_keep: bool) -> Read:
        try:
            aside = f"a copy is kept as {keep_aside(self._files, target, data).name}"
        except OSError as error:
            if must_keep:
                raise unwritable("keep a copy of the damaged", self.path, error) from error
            aside = "no copy of it could be kept"
        self._known_damaged = fingerprint
        good = self._latest_good(target, self._last_good(target))
        if good is None:
            raise RegistryDamagedError(
                f"{self.path} is damaged ({why}), and there is no last good copy; {aside}",
                hint="put a backup in its place, or remove it to start anew",
            )
        report = (Finding("the file", f"damaged ({why}); the last good copy stands in, {aside}"),)
        return Read(good.snapshot, report, fingerprint, "good")

    def _bytes(self, target: Path) -> tuple[bytes | None, Fingerprint]:
        try:
            data, state = self._files.read(target)
        except FileNotFoundError:
            return None, Fingerprint()
        except OSError as error:
            failed = unwritable("read", self.path, error)
            raise StateUnwritableError(failed.message, hint=failed.hint or "is that the registry's path?") from error
        return data, Fingerprint.of(state)

    def _last_good(self, target: Path) -> _Good | None:
        path = good_copy(target)
        cached = self._good
        try:
            if cached and cached.fingerprint == Fingerprint.of(self._files.stat(path)):
                return cached
        except OSError:
            return None
        self._good = found = self._good_at(path)
        return found

    def _latest_good(self, target: Path, good: _Good | None) -> _Good | None:
        """The file is of no use: what a writer had ready when it died may be newer than the last good copy."""
        upcoming = self._good_at(next_good_copy(target))
        if upcoming and (good is None or upcoming.snapshot.deployment.revision > good.snapshot.deployment.revision):
            return upcoming
        return good

    def _good_at(self, path: Path) -> _Good | None:
        try:
            data, state = self._files.read(path)
            return _Good(loads(data).snapshot, Fingerprint.of(state))
        except (OSError, NotARegistry, RegistryUnsupportedError):
            return None

    def _target(self) -> Path:
        return Path(os.path.realpath(self.path))
