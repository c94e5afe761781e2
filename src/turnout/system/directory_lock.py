"""A lock on a directory of a home (flock(2)), which no cleaner of old files can remove while it is held.

A lock file that is deleted while it is locked protects nothing: the next process creates another and locks that. So
the two locks of which there must be one holder, the keeper's and that of the router that leads, are taken on a
directory too. Standard library only.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final

NO_LOCK: Final = -1  # this file system locks no directory (NFS): the lock file alone counts


def lock_directory(path: Path) -> int:
    """Lock the directory, without waiting. The descriptor is the caller's; NO_LOCK: it cannot be locked here.

    Raises BlockingIOError: another process has it locked.
    """
    return _lock(path, fcntl.LOCK_EX)


def is_locked(path: Path) -> bool:
    """Whether a process has the directory locked; changes nothing."""
    try:
        unlock(_lock(path, fcntl.LOCK_SH))  # shared: two processes that only look do not find each other
    except BlockingIOError:
        return True
    return False


def _lock(path: Path, how: int) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return NO_LOCK
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise
    except OSError:
        os.close(fd)
        return NO_LOCK
    return fd


def unlock(fd: int) -> None:
    if fd != NO_LOCK:
        os.close(fd)


def names(path: Path, fd: int) -> bool:
    """Whether ``path`` leads to what is open as ``fd``: it may have been removed, and made again by another process."""
    try:
        here, there = os.fstat(fd), path.stat()
    except OSError:
        return False
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)
