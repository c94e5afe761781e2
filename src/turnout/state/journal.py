"""What happened to a service, one JSON line an event, for people who ask why."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeGuard, cast

import msgspec

from turnout.errors import TurnoutError
from turnout.system.files import open_private, open_regular, opened, read_part
from turnout.system.flock import take

ROTATE_BYTES: Final = 4 << 20
_TEXT_CHARS: Final = 2048
_LINE_BYTES: Final = 1 << 18  # 20 texts of 2048 characters, each of which JSON may spell in six bytes
_TS_MOST: Final = 1e11  # the year 5138
_INTEGER_MOST: Final = (1 << 63) - 1
_OWN: Final = ("ts", "event", "generation", "revision")
Scalar = str | int | float | bool | None


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """What every line of the journal has; its evidence stands beside it, under names of its own."""

    ts: float
    event: str
    generation: int
    revision: int


class JournalEvent(msgspec.Struct, frozen=True):
    """One line of the journal. ``ts`` is wall-clock seconds, for people only."""

    ts: float
    event: str
    generation: int
    revision: int
    evidence: Mapping[str, Scalar]


class Position(msgspec.Struct, frozen=True):
    """A place in the journal, which may have been rotated since."""

    inode: int = 0
    offset: int = 0


class Journal:
    """Appends to one file and keeps one older beside it (``.1``); opened for each event, so it owns no descriptor.

    Reading never raises: other programs may write into the file as well.

    A decision must not fail for its log: what cannot be written is counted in ``lost``.

    Args:
        path: the file; its directory must exist, else events are lost.
        rotate_bytes: the size from which it becomes the older one.
        append: write(2).
    """

    def __init__(
        self, path: Path, *, rotate_bytes: int = ROTATE_BYTES, append: Callable[[int, bytes], int] = os.write
    ) -> None:
        self.path = path
        self.lost = 0
        self._older = path.with_name(f"{path.name}.1")
        self._rotate_bytes = rotate_bytes
        self._write = append
        self._counting = threading.Lock()

    def write(self, event: str, *, generation: int, revision: int, **evidence: Scalar) -> None:
        """Add one event, in one write. Texts are cut at 2048 characters. Never raises for the system's sake."""
        line: dict[str, Scalar] = {"ts": time.time(), "event": event, "generation": generation, "revision": revision}
        line.update((key, _plain(value)) for key, value in evidence.items() if key not in _OWN)
        try:
            size_bytes = self._append(json.dumps(line, default=str).encode() + b"\n")
        except OSError:
            with self._counting:
                self.lost += 1
            return
        if size_bytes >= self._rotate_bytes:
            self._rotate()

    def since(self, position: Position) -> tuple[tuple[JournalEvent, ...], Position]:
        """What was written after ``position`` (``Position()``: ever), oldest first, and where that ends.

        A line that is not whole yet is left for the next call; one that is no event is left out.
        """
        try:
            with opened(open_regular(self.path)) as fd:
                inode = os.fstat(fd).st_ino
                rest = self._rest_of_older(position) if position.inode != inode else b""
                offset = position.offset if position.inode == inode else 0
                data = read_part(fd, offset, self._most_bytes)
        except OSError:
            return (), position
        whole = data[: data.rfind(b"\n") + 1]
        if not whole and len(data) == self._most_bytes:  # no line of ours is as long as that
            whole = data
        events = (_parse(line) for line in (rest + whole).split(b"\n"))
        return tuple(event for event in events if event), Position(inode, offset + len(whole))

    def _rest_of_older(self, position: Position) -> bytes:
        with suppress(OSError), opened(open_regular(self._older)) as fd:
            if position.inode in {0, os.fstat(fd).st_ino}:
                return read_part(fd, position.offset, self._most_bytes) + b"\n"
        return b""

    def read(self, limit: int) -> tuple[JournalEvent, ...]:
        """The newest events, at most ``limit``, oldest first. A line that is no event is left out."""
        events: list[JournalEvent] = []
        for path in (self.path, self._older):
            for line in reversed(self._lines(path) if len(events) < limit else []):
                event = _parse(line)
                if event:
                    events.append(event)
                if len(events) >= limit:
                    break
        return tuple(reversed(events))

    def unreadable(self) -> dict[Path, int]:
        """The number of lines of each file that are no events, without those that a crash or a full disk tore."""
        found: dict[Path, int] = {}
        for path in (self._older, self.path):
            lines = (line for line in self._lines(path) if line.strip() and not _is_torn(line))
            if count := sum(1 for line in lines if _parse(line) is None):
                found[path] = count
        return found

    @property
    def _most_bytes(self) -> int:
        return 2 * self._rotate_bytes

    def _lines(self, path: Path) -> list[bytes]:
        """The newest lines of a file; none where it cannot be read."""
        try:
            with opened(open_regular(path)) as fd:
                start = max(0, os.fstat(fd).st_size - self._most_bytes)
                lines = read_part(fd, start, self._most_bytes).split(b"\n")
        except OSError:
            return []
        return lines[1:] if start else lines

    def _append(self, line: bytes) -> int:
        with opened(open_private(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT)) as fd:
            size_bytes = os.fstat(fd).st_size
            if size_bytes and os.pread(fd, 1, size_bytes - 1) != b"\n":
                line = b"\n" + line  # a crash or a full disk tore the last one; do not lose this one in it too
            written = self._write(fd, line)  # open(2): with O_APPEND no other writer comes in between
            if written < len(line):
                raise OSError(f"only {written} of {len(line)} bytes were written to {self.path}")
            return size_bytes + written

    def _rotate(self) -> None:
        with suppress(OSError, TurnoutError):
            lock = take(self.path.with_name(f"{self.path.name}.lock"), timeout_s=0)
            if lock is None:  # another process is doing it
                return
            try:
                # looked at again: of two that saw it full, the second must not put a new file over the older one
                if self.path.stat().st_size >= self._rotate_bytes:
                    self.path.replace(self._older)
            finally:
                lock.release()


def _plain(value: Scalar) -> Scalar:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no such numbers
    return value[:_TEXT_CHARS] if isinstance(value, str) else value


def _parse(line: bytes) -> JournalEvent | None:
    """One line as an event; None where it is none. Evidence that is none of ours is left out. Never raises."""
    if len(line) > _LINE_BYTES:
        return None
    try:
        raw: Any = json.loads(line)
    except (ValueError, RecursionError):  # also: no UTF-8, a number of thousands of digits
        return None
    if not isinstance(raw, dict):
        return None
    fields = cast("dict[str, Any]", raw)
    ts, event, generation, revision = (fields.pop(key, None) for key in _OWN)
    if not (_is_number(ts) and abs(ts) <= _TS_MOST and isinstance(event, str)):
        return None
    if not (_is_whole(generation) and _is_whole(revision)):
        return None
    evidence = {key: _plain(value) for key, value in fields.items() if _is_evidence(value)}
    return JournalEvent(float(ts), event[:_TEXT_CHARS], generation, revision, evidence)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)  # NaN is compared away


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _INTEGER_MOST


def _is_evidence(value: object) -> TypeGuard[Scalar]:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int):
        return abs(value) <= _INTEGER_MOST
    return value is None or isinstance(value, str)


def _is_torn(line: bytes) -> bool:
    """Whether it is the beginning of one of our own lines."""
    try:
        json.loads(line)
    except json.JSONDecodeError:
        return line.startswith(b'{"ts": ')
    except (ValueError, RecursionError):
        return False
    return False
