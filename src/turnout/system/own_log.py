"""A log file of bounded size that a long-lived process writes as its standard output. Standard library only."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from pathlib import Path

from turnout.core.printable import clean
from turnout.system.directory_lock import names
from turnout.system.files import open_private

CHECK_EVERY_S = 5.0


class LogFile:
    """Keeps the log that descriptors 1 and 2 write to within its bound, with one earlier log beside it.

    A terminal, a pipe or another file is left alone. Nothing is raised: a log is no reason to stop.

    Args:
        path: the log; what it held is moved to ``PATH.1`` once it is too large.
        most_bytes: how large it may get, 1 or more; it is looked at now and then, so a little more.
    """

    def __init__(self, path: Path, most_bytes: int) -> None:
        self._path = path
        self._most_bytes = most_bytes
        self._ours = _is_file(2) and names(path, 2)

    def check(self, *, rotates: bool = True) -> None:
        """Begin a new log where this one is too large, or follow to the log that another process began.

        ``rotates``: of several processes that write it, only one moves it away.
        """
        if not self._ours:
            return
        try:
            if names(self._path, 2):
                if not rotates or os.fstat(2).st_size < self._most_bytes:
                    return
                self._path.replace(self._path.with_suffix(".log.1"))
            fd = open_private(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        except OSError:
            return
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        os.close(fd)


def log_line(text: str) -> None:
    """One line with its time, to standard error, which is the log file of a process in the background.

    What is not printable in ``text`` is spelled out: it stays one line.
    """
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S")
    with contextlib.suppress(OSError, ValueError):  # a full disk, a terminal that has gone: no reason to end
        os.write(2, f"{stamp} {clean(text)}\n".encode(errors="replace"))


def _is_file(fd: int) -> bool:
    try:
        return stat.S_ISREG(os.fstat(fd).st_mode)
    except OSError:
        return False
