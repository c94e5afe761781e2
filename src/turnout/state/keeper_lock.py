"""The lock that says which process is the keeper of a home."""

from __future__ import annotations

import fcntl
import os
from functools import partial
from pathlib import Path
from typing import Final

from turnout.core.model import Identity
from turnout.errors import ConflictError
from turnout.state.home import Home
from turnout.system.directory_lock import is_locked, names
from turnout.system.files import Files, open_private, or_unwritable, undone_on_error
from turnout.system.flock import PROC, holder_pid
from turnout.system.process import machine_boot_id, own_identity, pid_namespace

_MOST_BYTES: Final = 4096


def take_keeper_lock(path: Path) -> int:
    """Become the one keeper of this home, for as long as this process lives (flock(2)).

    Returns the descriptor that is locked; the caller owns it.

    Raises:
        ConflictError: another keeper lives.
        StateUnwritableError: the lock file cannot be opened, or is not a file of this home.
        OSError: this process' identity cannot be written into it.
    """
    with or_unwritable("lock", path):
        fd = open_private(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = next(iter(os.pread(fd, 64, 0).decode(errors="replace").split()), "unknown")
        os.close(fd)
        raise ConflictError(f"a keeper already runs for {path.parent}: pid {holder}", hint="turnout status") from None
    # on a full disk too: a descriptor that stayed open would keep the next try from the lock
    with undone_on_error(partial(os.close, fd)):
        os.ftruncate(fd, 0)
        me = own_identity()
        os.pwrite(fd, f"{me.pid} {me.start_ticks}\n".encode(), 0)
    return fd


def restore_keeper_lock(path: Path, fd: int) -> int:
    """Make the lock file again where its name is gone or names another file. Only for the keeper, which has ``fd``.

    Returns the descriptor that is locked now: ``fd``, or another one, and then ``fd`` is closed.

    Raises:
        ConflictError: another keeper has the file by that name.
        OSError: it cannot be made.
    """
    if names(path, fd):
        return fd
    fresh = take_keeper_lock(path)
    os.close(fd)
    return fresh


def keeper_pid(home: Home, *, proc: Path = PROC) -> int | None:
    """The process that has the keeper's lock, on the file or on the directory; None: none, or it cannot be known."""
    return holder_pid(home.keeper_lock, proc=proc) or holder_pid(home.root, proc=proc)


def keeper_runs(home: Home) -> bool:
    """Whether a process has the keeper's lock: on the directory, or on the file where no directory can be locked."""
    return is_locked(home.root) or holder_pid(home.keeper_lock) is not None


def read_keeper(path: Path) -> Identity | None:
    """The keeper that wrote into the lock file last; None where that is missing or incomplete.

    Only while the kernel says that this pid holds the lock does it hold for this boot and pid namespace.
    """
    try:
        pid, start_ticks = (int(word) for word in Files().read(path, _MOST_BYTES)[0].split())
    except (OSError, ValueError):
        return None
    return Identity(pid, start_ticks, machine_boot_id(), pid_namespace()) if pid > 0 < start_ticks else None
