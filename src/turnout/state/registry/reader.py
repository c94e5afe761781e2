"""Reading a registry file, whatever state it is in: whole, damaged, missing, or in the middle of being written."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import msgspec

from turnout.core.model import Snapshot
from turnout.errors import RegistryDamagedError, RegistryUnsupportedError, StateUnwritableError
from turnout.state.registry.commit import good_copy, keep_aside, next_good_copy
from turnout.state.registry.decoder import Decoded, EntryCache, NotARegistry, Repair, loads
from turnout.state.registry.merge import merge
from turnout.system.file_watcher import TWO_TICKS_NS
from turnout.system.files import Files, unwritable

SETTLE_S: Final = 1.0  # an in-place writer has this long to go on before its file counts as damaged
SETTLE_POLL_S: Final = 0.02
_SETTLE_LIMIT_S: Final = 5.0
_RECENT: Final = 2  # the file and its last good copy


class Fingerprint(msgspec.Struct, frozen=True):
    """Distinguishes a file's content from what it was before; all 0 where there is no file."""

    mtime_ns: int = 0
    ctime_ns: int = 0
    inode: int = 0
    size_bytes: int = 0

    @classmethod
    def of(cls, state: os.stat_result) -> Fingerprint:
        return cls(state.st_mtime_ns, state.st_ctime_ns, state.st_ino, state.st_size)


class Read(msgspec.Struct, frozen=True):
    """What the registry says.

    Args:
        snapshot: the whole of it.
        report: what was dropped, mended or put back to get there.
        fingerprint: that of the file which was read.
        source: "file"; "good" where the file is missing or damaged and the last good copy stands in; "empty" where
            there is neither.
        repairs: what the file lacks and the last good copy knew; :meth:`RegistryFile.settle` writes it back.
        kept: the last good copy says the same as the file.
        ahead: the deployment moved on past the one in the last good copy.
    """

    snapshot: Snapshot
    report: tuple[Repair, ...]
    fingerprint: Fingerprint
    source: Literal["file", "good", "empty"]
    repairs: tuple[str, ...] = ()
    kept: bool = True
    ahead: bool = False

    @property
    def settled(self) -> bool:
        """No program without the lock has written since the last event, or its write is dealt with."""
        return self.kept and not self.repairs


class _Good(msgspec.Struct, frozen=True):
    data: bytes
    decoded: Decoded
    fingerprint: Fingerprint

    @property
    def snapshot(self) -> Snapshot:
        return self.decoded.snapshot


class _Cached(msgspec.Struct, frozen=True):
    """What was read, and the states of the two files in which that still holds."""

    file: Fingerprint
    good: Fingerprint
    read: Read


class Loader:
    """Reads one registry file together with its last good copy. Opens and closes at each call.

    Args:
        path: the file as it was named, for messages.
        files: the calls to the system.
        clock: monotonic seconds.
        sleep: waits that many seconds.
        wall_ns: nanoseconds of the clock that stamps files.
    """

    def __init__(
        self,
        path: Path,
        files: Files,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.path = path
        self._files = files
        self._clock = clock
        self._sleep = sleep
        self._wall_ns = wall_ns
        self._good: _Good | None = None
        self._known_damaged = Fingerprint()
        self._last: _Cached | None = None
        self._cache: EntryCache = {}
        self._recent: tuple[tuple[bytes, Decoded], ...] = ()  # contents that were read last, and what they say

    def look(self, target: Path) -> Read:
        """What :meth:`load` says, without reading again what has not changed since."""
        last = self._last
        if last and last.file == self._state(target) and last.good == self._state(good_copy(target)):
            return last.read
        began_ns = self._wall_ns()
        good = self._state(good_copy(target))
        read, _ = self.load(target)
        # a file that was written within the last two ticks may change again behind the same time stamp
        settled = began_ns - max(read.fingerprint.ctime_ns, read.fingerprint.mtime_ns) > TWO_TICKS_NS
        cacheable = settled and read.source == "file" and good == self._state(good_copy(target))
        self._last = _Cached(read.fingerprint, good, read) if cacheable else None
        return read

    def _state(self, path: Path) -> Fingerprint:
        try:
            return Fingerprint.of(self._files.stat(path))
        except OSError:
            return Fingerprint()

    def load(self, target: Path, *, must_keep: bool = False) -> tuple[Read, bytes | None]:
        """Read until there is a registry, or none for sure; with the bytes that the file had."""
        last: tuple[Fingerprint, bytes] | None = None
        since = began = self._clock()
        while True:
            # the copy first: it is never newer than the file then, as long as no program writes without the lock
            good = self._last_good(target)
            data, fingerprint = self._bytes(target)
            if data is None:
                good = self._latest_good(target, good)
                source: Literal["good", "empty"] = "good" if good else "empty"
                why = ("the file was missing",) if good else ()
                missing = (Repair("the file", "missing; the last good copy stands in"),) if good else ()
                return Read(good.snapshot if good else Snapshot(), missing, fingerprint, source, why), None
            if good and data == good.data:  # our own last word: nothing to parse, nothing to merge
                return Read(good.snapshot, good.decoded.report, fingerprint, "file"), data
            try:
                decoded = self._loads(data)
            except NotARegistry as error:
                now = self._clock()
                if last != (fingerprint, data):
                    last, since = (fingerprint, data), now
                if fingerprint == self._known_damaged or now - since >= SETTLE_S or now - began >= _SETTLE_LIMIT_S:
                    return self._damaged(target, data, fingerprint, str(error), must_keep=must_keep), data
                self._sleep(SETTLE_POLL_S)
                continue
            if good and decoded.snapshot.deployment.revision == 0:
                good = self._latest_good(target, good)
            if good is None:
                return Read(decoded.snapshot, decoded.report, fingerprint, "file", kept=False), data
            snapshot, notes = merge(good.snapshot, decoded.snapshot)
            report = (*decoded.report, *(Repair("deployment", note) for note in notes))
            kept = good.snapshot == decoded.snapshot
            ahead = snapshot.deployment.revision > good.snapshot.deployment.revision
            return Read(snapshot, report, fingerprint, "file", notes, kept, ahead), data

    def newest_of_ours(self, target: Path) -> int | None:
        """The highest revision that turnout itself wrote; a writer that is in the middle has its copy ready."""
        good = self._latest_good(target, self._last_good(target))
        return good.snapshot.deployment.revision if good else None

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
        report = (Repair("the file", f"damaged ({why}); the last good copy stands in, {aside}"),)
        return Read(good.snapshot, report, fingerprint, "good", (f"the file was damaged ({why})",))

    def _loads(self, data: bytes) -> Decoded:
        """Read it; a content that was read a moment ago, or parts of it that were, are not read again."""
        for known, decoded in self._recent:
            if known == data:
                return decoded
        decoded = loads(data, cache=self._cache)
        self._recent = ((data, decoded), *self._recent[: _RECENT - 1])
        return decoded

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
            return _Good(data, self._loads(data), Fingerprint.of(state))
        except (OSError, NotARegistry, RegistryUnsupportedError):
            return None
