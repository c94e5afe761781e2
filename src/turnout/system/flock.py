"""Taking a file lock with a deadline, and naming whoever has it.

The locks are filelock's (flock(2)): the kernel lets go of them when the holder dies, however it dies.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from turnout.errors import LockTimeoutError
from turnout.system.files import PRIVATE, unwritable

if TYPE_CHECKING:
    from filelock import FileLock

PROC: Final = Path("/proc")
# What hold() has, by lock file and thread. A thread that asks for what it has itself was interrupted (Ctrl-C) after it
# took the lock and before its with block began, or while that was left: nobody else would ever let go of it.
_held: dict[tuple[str, int], FileLock] = {}
_FIRST_PAUSE_S: Final = 0.001
_LONGEST_PAUSE_S: Final = 0.02
_COMMAND_CHARS: Final = 80


def take(path: Path, *, timeout_s: float, on_wait: Callable[[], None] | None = None) -> FileLock | None:
    """Take the lock ``path``, or return None when it was not free within ``timeout_s`` seconds.

    The caller owns what is returned and must ``release()`` it. Waits poll: flock(2) knows no deadline.

    Args:
        path: the lock file; it is made where it is missing, and stays.
        timeout_s: seconds; 0 tries once.
        on_wait: called once when the lock turns out to be held.

    Raises:
        StateUnwritableError: the lock file cannot be made or opened.
    """
    from filelock import FileLock, Timeout  # noqa: PLC0415  # verbs that only read take no lock, and are quick without

    # not thread-local: whoever owns the lock may let go of it from another thread
    lock = FileLock(str(path), mode=PRIVATE, thread_local=False)
    deadline = time.monotonic() + timeout_s
    pause_s = _FIRST_PAUSE_S
    while True:
        try:
            _acquire(lock)
        except Timeout:  # an OSError itself, so it comes first
            pass
        except OSError as error:
            raise unwritable("lock", path, error) from error
        except BaseException:  # Ctrl-C came with the lock in hand: whoever undoes the rest may need it
            lock.release(force=True)
            raise
        else:
            return lock
        if on_wait:
            on_wait()
            on_wait = None
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            return None
        time.sleep(min(pause_s, left_s))
        pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)


@contextmanager
def hold(path: Path, *, timeout_s: float, what: str) -> Generator[None]:
    """Hold the lock ``path`` for a with block.

    Args:
        path: the lock file.
        timeout_s: how long to wait for it, in seconds.
        what: what it guards, for the message.

    Raises:
        LockTimeoutError: somebody else held it all that time; the message names the process.
        StateUnwritableError: the lock file cannot be made or opened.
    """
    key = str(path), threading.get_ident()
    if abandoned := _held.pop(key, None):
        abandoned.release(force=True)
    lock = take(path, timeout_s=timeout_s)
    if lock is None:
        pid = holder_pid(path)
        who = f"pid {pid} ({command_of(pid) or 'command unknown'})" if pid else "another process"
        raise LockTimeoutError(f"{what} was locked by {who} for {timeout_s:g} s; nothing was changed", hint=advice(pid))
    _held[key] = lock
    try:
        yield
    finally:
        lock.release()
        if _held.get(key) is lock:
            del _held[key]


def _acquire(lock: FileLock) -> None:
    """Try once. Ctrl-C waits meanwhile: between flock(2) and the note of its descriptor the lock would be lost."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        lock.acquire(timeout=0)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def holder_pid(path: Path, *, proc: Path = PROC) -> int | None:
    """The process that holds the flock on ``path``; None where nobody does or it cannot be known (proc_locks(5))."""
    with suppress(OSError, ValueError):
        state = path.stat()
        device = f"{os.major(state.st_dev):02x}:{os.minor(state.st_dev):02x}"
        elsewhere: int | None = None
        for line in (proc / "locks").read_text().splitlines():
            words = line.split()
            if "->" in words or len(words) < 6 or words[1] != "FLOCK":  # "->" waits, it does not hold
                continue
            where, _, inode = words[5].rpartition(":")
            if int(inode) != state.st_ino or int(words[4]) <= 0:
                continue
            if where == device:
                return int(words[4])
            elsewhere = int(words[4])  # btrfs and overlayfs show another device here than in stat(2)
        return elsewhere
    return None


def command_of(pid: int, *, proc: Path = PROC) -> str:
    """A process's command line, shortened; empty where it cannot be read."""
    with suppress(OSError):
        words = (proc / str(pid) / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        line = " ".join(" ".join(word.decode(errors="replace").split()) for word in words)
        return line if len(line) <= _COMMAND_CHARS else line[: _COMMAND_CHARS - 1] + "…"
    return ""


def advice(pid: int | None, *, proc: Path = PROC) -> str:
    """What to do about a lock that ``pid`` does not let go of."""
    if pid:
        with suppress(OSError, IndexError):
            # proc_pid_stat(5): the name in parentheses may hold spaces and parentheses; the state comes behind the last
            if (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] in {"T", "t"}:
                return f"that process is stopped: kill -CONT {pid} lets it go on"
    return "try again when it is done, or wait longer: --lock-timeout S"
