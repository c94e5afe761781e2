"""The lock that says which of a home's routers decides. Whoever has it leads; it goes when its process dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path


class LeadLock:
    """Owns the descriptor that is locked (flock(2)); not inherited by anything that is started."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1

    @property
    def held(self) -> bool:
        return self._fd >= 0

    def try_take(self) -> bool:
        """Take it if nobody has it; never waits. What cannot be opened is as good as held by somebody."""
        if self.held:
            return True
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            return False
        self._fd = fd
        with contextlib.suppress(OSError):  # a full disk: the lock is what counts, the name in it is for people
            os.pwrite(fd, f"{os.getpid():<19}\n".encode(), 0)
        return True

    def holder(self) -> str:
        """The pid of whoever took it last, in text, for a message."""
        try:
            return self._path.read_text(encoding="ascii", errors="replace").strip() or "unknown"
        except OSError:
            return "unknown"

    def release(self) -> None:
        if self.held:
            os.close(self._fd)
            self._fd = -1
