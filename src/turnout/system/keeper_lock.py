"""The lock that says which process is the keeper of a home."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from turnout.errors import ConflictError


def take_keeper_lock(path: Path) -> int:
    """Become the one keeper of this home, for as long as this process lives (flock(2)).

    Answers the descriptor that is locked; the caller owns it.

    Raises:
        ConflictError: another keeper lives.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        raise ConflictError(f"a keeper already runs for {path.parent}: pid {holder}", hint="turnout status") from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd
