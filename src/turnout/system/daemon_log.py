"""Keeping the log of a process that prints without end within a bound. Standard library only: the keeper imports this.

The process writes into its log file itself: nobody copies its output, and it goes on when nobody of ours is alive. So
a file over the bound is cut in place: its end is kept beside it (``.1``), and it is truncated. With O_APPEND (open(2))
the process then writes on at the new end. What it wrote between the two steps is lost.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

BOUND_BYTES: Final = 8 * 1024 * 1024
KEPT_BYTES: Final = 4 * 1024 * 1024


def older(path: Path) -> Path:
    """Where the end of what was cut lies."""
    return path.with_name(f"{path.name}.1")


def bound(path: Path, *, bound_bytes: int = BOUND_BYTES, kept_bytes: int = KEPT_BYTES) -> int:
    """Cut the log if it has grown over the bound; never raises for the system's sake.

    Args:
        path: the log; one that is missing, or no regular file, is left alone.
        bound_bytes: how large it may be.
        kept_bytes: how much of its end is kept beside it, at most.

    Returns:
        Its size before, in bytes.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return 0
    try:
        size_bytes = os.fstat(fd).st_size
        if size_bytes > bound_bytes:
            try:
                _keep(fd, size_bytes, older(path), kept_bytes)
            finally:  # a full disk is the very reason to cut it
                os.ftruncate(fd, 0)
    except OSError:
        return 0
    else:
        return size_bytes
    finally:
        os.close(fd)


def _keep(fd: int, size_bytes: int, beside: Path, kept_bytes: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    out = os.open(beside, flags, 0o600)
    try:
        offset = max(0, size_bytes - kept_bytes)
        while offset < size_bytes:
            sent = os.sendfile(out, fd, offset, size_bytes - offset)  # within the kernel, sendfile(2)
            if not sent:
                return
            offset += sent
    finally:
        os.close(out)


def tail(path: Path, *, lines: int, bound_bytes: int = 16384) -> str:
    """The last lines of a log, those that were cut a moment ago included; empty where there is none."""
    data = _end(path, bound_bytes)
    if len(data) < bound_bytes:
        data = _end(older(path), bound_bytes - len(data)) + data
    return "\n".join(data.decode(errors="replace").splitlines()[-lines:])


def _end(path: Path, most_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - most_bytes))
            return file.read(most_bytes)
    except OSError:
        return b""
