"""The lock that says which process is the keeper of a home."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from turnout.core.model import Identity
from turnout.errors import ConflictError
from turnout.system.process import machine_boot_id, own_identity, pid_namespace


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
        holder = next(iter(os.pread(fd, 64, 0).decode(errors="replace").split()), "unknown")
        os.close(fd)
        raise ConflictError(f"a keeper already runs for {path.parent}: pid {holder}", hint="turnout status") from None
    os.ftruncate(fd, 0)
    me = own_identity()
    os.pwrite(fd, f"{me.pid} {me.start_ticks}\n".encode(), 0)
    return fd


def read_keeper(path: Path) -> Identity | None:
    """The keeper that has the lock, or had it last, by its own word; None where that is missing or incomplete.

    Only while the kernel says that this pid holds the lock does it hold for this boot and pid namespace.
    """
    try:
        pid, start_ticks = (int(word) for word in path.read_bytes().split())
    except (OSError, ValueError):
        return None
    return Identity(pid, start_ticks, machine_boot_id(), pid_namespace()) if pid > 0 < start_ticks else None
