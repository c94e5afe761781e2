"""What happened to a service, one JSON line an event, for people who ask why."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import msgspec

from turnout.errors import TurnoutError
from turnout.system.files import PRIVATE
from turnout.system.flock import take

ROTATE_BYTES: Final = 4 << 20
_TEXT_CHARS: Final = 2048
_OWN: Final = ("ts", "event", "generation", "revision")
Scalar = str | int | float | bool | None


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """What every line of the journal has; its evidence stands beside it, under names of its own."""

    ts: float
    event: str
    generation: int
    revision: int


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the journal. ``ts`` is wall-clock seconds, for people only."""

    ts: float
    event: str
    generation: int
    revision: int
    evidence: Mapping[str, Scalar]


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the journal, which may have been rotated since."""

    inode: int = 0
    offset: int = 0


class Journal:
    """Appends to one file and keeps one older beside it (``.1``); opened anew for each event, so it owns no descriptor.

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

    def since(self, position: Position) -> tuple[tuple[Event, ...], Position]:
        """What was written after ``position`` (``Position()``: ever), oldest first, and where that ends.

        A line that is not whole yet is left for the next call; one that was torn by a crash is left out.
        """
        try:
            with self.path.open("rb") as file:
                inode = os.fstat(file.fileno()).st_ino
                rest = self._rest_of_older(position) if position.inode != inode else b""
                offset = position.offset if position.inode == inode else 0
                file.seek(offset)
                data = file.read(2 * self._rotate_bytes)
        except OSError:
            return (), position
        whole = data[: data.rfind(b"\n") + 1]
        events = (_parse(line) for line in (rest + whole).splitlines())
        return tuple(event for event in events if event), Position(inode, offset + len(whole))

    def _rest_of_older(self, position: Position) -> bytes:
        with suppress(OSError), self._older.open("rb") as file:
            if position.inode in {0, os.fstat(file.fileno()).st_ino}:
                file.seek(position.offset)
                return file.read(2 * self._rotate_bytes) + b"\n"
        return b""

    def read(self, limit: int) -> tuple[Event, ...]:
        """The newest events, at most ``limit``, oldest first. A line that was torn by a crash is left out."""
        events: list[Event] = []
        for path in (self.path, self._older):
            if len(events) >= limit:
                break
            try:
                lines = path.read_bytes().splitlines()
            except OSError:
                continue
            for line in reversed(lines):
                event = _parse(line)
                if event:
                    events.append(event)
                if len(events) >= limit:
                    break
        return tuple(reversed(events))

    def _append(self, line: bytes) -> int:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(self.path, flags, PRIVATE)
        try:
            size_bytes = os.fstat(fd).st_size
            if size_bytes and os.pread(fd, 1, size_bytes - 1) != b"\n":
                line = b"\n" + line  # a crash or a full disk tore the last one; do not lose this one in it too
            written = self._write(fd, line)  # open(2): with O_APPEND no other writer comes in between
            if written < len(line):
                raise OSError(f"only {written} of {len(line)} bytes were written to {self.path}")
            return size_bytes + written
        finally:
            os.close(fd)

    def _rotate(self) -> None:
        with suppress(OSError, TurnoutError):
            lock = take(self.path.with_name(f"{self.path.name}.lock"), timeout_s=0)
            if lock is None:  # somebody else is doing it
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


def _parse(line: bytes) -> Event | None:
    try:
        raw: Any = json.loads(line)
        if not isinstance(raw, dict):
            return None
        fields = cast("dict[str, Any]", raw)
        ts, event, generation, revision = (fields.pop(key) for key in _OWN)
        return Event(float(ts), str(event), int(generation), int(revision), fields)
    except (ValueError, TypeError, KeyError):
        return None
