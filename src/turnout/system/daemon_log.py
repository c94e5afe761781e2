"""Keeps the log of a process that prints without end within a bound. Standard library only: the keeper imports this.

The process writes into its log file itself: no process copies its output, and it goes on without the keeper. So
a file over the bound is cut in place: its end is kept beside it (``.1``), and it is truncated. With O_APPEND (open(2))
the process then writes on at the new end. What it wrote between the two steps is lost.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from turnout.system.files import open_private, open_regular, opened, read_part

BOUND_BYTES: Final = 8 * 1024 * 1024
KEPT_BYTES: Final = 4 * 1024 * 1024


def older(path: Path) -> Path:
    """Where the end of what was cut lies."""
    return path.with_name(f"{path.name}.1")


def bound(path: Path, *, bound_bytes: int = BOUND_BYTES, kept_bytes: int = KEPT_BYTES) -> int:
    """Cut the log if it has grown over the bound; never raises for the system's sake.

    Args:
        path: the log; a missing file, or what is no regular file, is left alone.
        bound_bytes: how large it may be.
        kept_bytes: how much of its end is kept beside it, at most.

    Returns:
        Its size before, in bytes.
    """
    try:
        with opened(open_private(path, os.O_RDWR)) as fd:
            size_bytes = os.fstat(fd).st_size
            if size_bytes > bound_bytes:
                try:
                    _keep(fd, size_bytes, older(path), kept_bytes)
                finally:  # a full disk is the very reason to cut it
                    os.ftruncate(fd, 0)
            return size_bytes
    except OSError:
        return 0


def oversized(directory: Path, *, bound_bytes: int = BOUND_BYTES) -> list[Path]:
    """The logs in a directory that are over the bound; none where it cannot be read."""
    try:
        with os.scandir(directory) as entries:
            return [
                directory / entry.name
                for entry in entries
                if entry.name.endswith(".log") and entry.stat(follow_symlinks=False).st_size > bound_bytes
            ]
    except OSError:
        return []


def _keep(fd: int, size_bytes: int, beside: Path, kept_bytes: int) -> None:
    with opened(open_private(beside, os.O_WRONLY | os.O_CREAT)) as out:
        os.ftruncate(out, 0)
        offset = max(0, size_bytes - kept_bytes)
        # within the kernel, sendfile(2)
        while offset < size_bytes and (sent := os.sendfile(out, fd, offset, size_bytes - offset)):
            offset += sent


def tail(path: Path, *, lines: int, bound_bytes: int = 16384) -> str:
    """The last lines of a log, those that were cut a moment ago included; empty where there is none."""
    data = tail_of(path, bound_bytes)
    if len(data) < bound_bytes:
        data = tail_of(older(path), bound_bytes - len(data)) + data
    return "\n".join(data.decode(errors="replace").splitlines()[-lines:])


def tail_of(path: Path, most_bytes: int) -> bytes:
    """The last bytes of a file; none where it cannot be read."""
    try:
        with opened(open_regular(path)) as fd:
            return read_part(fd, max(0, os.fstat(fd).st_size - most_bytes), most_bytes)
    except OSError:
        return b""
