"""Takes a file lock with a deadline, and names the process that has it.

The locks are filelock's, and so of flock(2): the kernel lets go of them when the holder dies, however it dies. A lock
is known by device and inode of its file, in proc_locks(5) too: two file systems number their files alike.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from turnout.errors import LockTimeoutError
from turnout.system.files import PRIVATE, open_private, opened, or_unwritable
from turnout.system.process import command_of

if TYPE_CHECKING:
    from filelock import FileLock

PROC: Final = Path("/proc")
# What hold() has, by lock file and thread. A thread that asks for what it has itself was interrupted (Ctrl-C) after it
# took the lock and before its with block began, or while that was left: no other code would ever release it.
_held: dict[tuple[str, int], FileLock] = {}
_FIRST_PAUSE_S: Final = 0.001
_LONGEST_PAUSE_S: Final = 0.02


def take(
    path: Path,
    *,
    timeout_s: float,
    on_wait: Callable[[], None] | None = None,
    like: Path | None = None,
    any_owner: bool = False,
) -> FileLock | None:
    """Take the lock ``path``, or return None when it was not free within ``timeout_s`` seconds.

    The caller owns what is returned and must ``release()`` it. Waits poll: flock(2) knows no deadline.

    Args:
        path: the lock file; it is made where it is missing, and stays.
        timeout_s: seconds; 0 tries once.
        on_wait: called once when the lock turns out to be held.
        like: whose owner a lock file that root makes gets (:func:`open_private`).
        any_owner: the lock file may belong to any user.

    Raises:
        StateUnwritableError: the lock file cannot be made or opened.
    """
    deadline = time.monotonic() + timeout_s
    pause_s = _FIRST_PAUSE_S
    while True:
        with or_unwritable("lock", path):
            lock = _try(path, like, any_owner=any_owner)
        if lock:
            return lock
        if on_wait:
            on_wait()
            on_wait = None
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            return None
        time.sleep(min(pause_s, left_s))
        pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)


def is_free(path: Path) -> bool:
    """Whether no process holds the lock ``path``; changes nothing, and makes no file.

    Raises OSError: the file is there and cannot be opened, or is no file.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return True
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        # shared: two processes that only look are no holders to each other
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


@contextmanager
def hold(path: Path, *, timeout_s: float, guarded: str, like: Path | None = None) -> Generator[None]:
    """Hold the lock ``path`` for a with block.

    Args:
        path: the lock file.
        timeout_s: how long to wait for it, in seconds.
        guarded: the name of what it guards, for the message.
        like: whose owner a lock file that root makes gets; it may belong to any user then.

    Raises:
        LockTimeoutError: another process held it all that time; the message names it.
        StateUnwritableError: the lock file cannot be made or opened.
    """
    key = str(path), threading.get_ident()
    if abandoned := _held.pop(key, None):
        abandoned.release(force=True)
    lock = take(path, timeout_s=timeout_s, like=like, any_owner=like is not None)
    if lock is None:
        pid = holder_pid(path)
        holder = f"pid {pid} ({command_of(pid) or 'command unknown'})" if pid else "another process"
        message = f"{guarded} was locked by {holder} for {timeout_s:g} s; nothing was changed"
        raise LockTimeoutError(message, hint=advice(pid))
    _held[key] = lock
    try:
        yield
    finally:
        lock.release()
        if _held.get(key) is lock:
            del _held[key]


def _try(path: Path, like: Path | None, *, any_owner: bool) -> FileLock | None:
    """Try once. Ctrl-C waits meanwhile: between flock(2) and the note of its descriptor the lock would be lost."""
    from filelock import FileLock, Timeout  # noqa: PLC0415  # verbs that only read take no lock, and are quick without

    # Made and proven here; filelock follows no link either (since 3.20.1), whatever is put in its place meanwhile.
    os.close(open_private(path, os.O_RDWR | os.O_CREAT, like=like, any_owner=any_owner))
    # not thread-local: the owner of the lock may release it from another thread
    lock = FileLock(str(path), mode=PRIVATE, thread_local=False)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        lock.acquire(timeout=0)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    except Timeout:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return None
    except BaseException:  # Ctrl-C came with the lock in hand: the code that undoes the rest may need it
        lock.release(force=True)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        raise
    return lock


def holder_pid(path: Path, *, proc: Path = PROC) -> int | None:
    """The process that holds the flock on ``path``; None where none does or it cannot be known (proc_locks(5)).

    An inode number alone proves nothing: another file system has the same one for another home's lock.
    """
    with suppress(OSError, ValueError):
        with opened(os.open(path, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)) as fd:
            state, devices = os.fstat(fd), _devices(fd, proc)
        for line in (proc / "locks").read_text().splitlines():
            words = line.split()
            if "->" in words or len(words) < 6 or words[1] != "FLOCK":  # "->" waits, it does not hold
                continue
            major, minor, inode = words[5].split(":")
            if int(inode) == state.st_ino and (int(major, 16), int(minor, 16)) in devices and int(words[4]) > 0:
                return int(words[4])
    return None


def _devices(fd: int, proc: Path) -> set[tuple[int, int]]:
    """The device of an open file as proc_locks(5) may show it: that of stat(2), or that of its file system.

    They differ on btrfs and overlayfs, where stat(2) gives a subvolume or a layer a number of its own. The kernel uses
    such a number once, so neither names another file system. proc_pid_mountinfo(5) has that of the file system.
    """
    device = os.fstat(fd).st_dev
    devices = {(os.major(device), os.minor(device))}
    with suppress(OSError, ValueError, StopIteration):
        info = (proc / f"self/fdinfo/{fd}").read_text().splitlines()
        mount = next(line.split()[1] for line in info if line.startswith("mnt_id:"))
        for line in (proc / "self/mountinfo").read_text(errors="replace").splitlines():
            words = line.split(maxsplit=3)
            if words[0] == mount:
                major, minor = words[2].split(":")
                devices.add((int(major), int(minor)))
    return devices


def advice(pid: int | None, *, proc: Path = PROC) -> str:
    """What to do about a lock that ``pid`` does not let go of."""
    if pid:
        with suppress(OSError, IndexError):
            # proc_pid_stat(5): the name in parentheses may hold spaces and parentheses; the state comes behind the last
            if (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] in {"T", "t"}:
                return f"that process is stopped: kill -CONT {pid} lets it go on"
    return "try again when it is done, or wait longer: --lock-timeout S"
