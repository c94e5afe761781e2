"""Reads a log as it grows, through renames and truncations, and makes its text safe for a terminal."""

from __future__ import annotations

import codecs
import os
from pathlib import Path
from typing import Final, Self

from turnout.core.printable import clean_lines
from turnout.system.daemon_log import older, tail_of
from turnout.system.files import open_regular, read_part

_PART_BYTES: Final = 65536


class LogReader:
    """Reads a log file as it grows. Owns the open file; reads a renamed file to its end before it opens its successor.

    Args:
        path: the log; it must exist.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = open_regular(path)
        self._offset = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def tail(self, lines: int, *, bound_bytes: int) -> bytes:
        """Return the last lines, also those that were just cut off the file; :meth:`read` continues after them."""
        self._offset = size_bytes = os.fstat(self._fd).st_size
        data = read_part(self._fd, max(0, size_bytes - bound_bytes), min(bound_bytes, size_bytes))
        if len(data) < bound_bytes:
            data = tail_of(older(self.path), bound_bytes - len(data)) + data
        return b"".join(data.splitlines(keepends=True)[-lines:])

    def skip(self) -> None:
        """Have :meth:`read` begin at what is written from now on."""
        self._offset = os.fstat(self._fd).st_size

    def move(self, path: Path) -> None:
        """Read another log from its beginning; where that cannot be opened, the next call tries again."""
        try:
            fd = open_regular(path)
        except OSError:
            return
        os.close(self._fd)
        self.path, self._fd, self._offset = path, fd, 0

    def read(self) -> bytes:
        """What was written since the last call, a part at a time; empty where that is nothing for now."""
        try:
            if os.fstat(self._fd).st_size < self._offset:  # it was cut in place: what comes now stands at its beginning
                self._offset = 0
            data = read_part(self._fd, self._offset, _PART_BYTES)
            if not data and self._was_replaced():
                self.move(self.path)
                data = read_part(self._fd, self._offset, _PART_BYTES)
        except OSError:
            return b""
        self._offset += len(data)
        return data

    def _was_replaced(self) -> bool:
        """Whether another file has the name. A file that was only renamed still grows, while a process has it open."""
        try:
            there = self.path.stat()
        except OSError:
            return False
        mine = os.fstat(self._fd)
        return (there.st_dev, there.st_ino) != (mine.st_dev, mine.st_ino)


class SpelledOut:
    """Decodes parts of a log for a terminal; characters and line ends may be split between two parts."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self._held = ""

    def feed(self, data: bytes) -> str:
        text = self._held + self._decoder.decode(data)
        self._held = "\r" if text.endswith("\r") else ""
        return clean_lines(text.removesuffix("\r") if self._held else text)
