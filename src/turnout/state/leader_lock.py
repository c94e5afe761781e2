"""The leader's lock: of a home's routers the holder decides. The kernel releases it when the process dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from pathlib import Path

from turnout.system.directory_lock import NO_LOCK, lock_directory, names, unlock
from turnout.system.files import Files, open_private
from turnout.system.home_identity import HomeIdentity


class LeaderLock:
    """Owns the descriptors that are locked (flock(2)); not inherited by anything that is started.

    Args:
        path: the lock file; it is made where it is missing.
        directory: locked as well, since the lock file may be deleted while it is held.
    """

    def __init__(self, path: Path, directory: Path) -> None:
        self._path = path
        self._directory = directory
        self._fd = -1
        self._changing = threading.Lock()  # a router restores it in a thread, and releases it in its loop
        self._directory_fd = NO_LOCK
        self._directory_seen: HomeIdentity | None = None  # as it was when the lock was taken

    @property
    def held(self) -> bool:
        return self._fd >= 0

    def try_take(self) -> bool:
        """Take it if it is free; never waits. A lock that cannot be opened counts as held."""
        if self.held:
            return True
        try:
            directory_fd = lock_directory(self._directory)
        except BlockingIOError:
            return False
        fd = self._lock_file()
        if fd < 0:
            unlock(directory_fd)
            return False
        self._fd, self._directory_fd = fd, directory_fd
        self._directory_seen = HomeIdentity.of(self._directory)
        return True

    def restore(self) -> bool:
        """Make the lock file again where its name is gone or names another file; whether that was needed and done."""
        if not self.held or names(self._path, self._fd) or HomeIdentity.of(self._directory) != self._directory_seen:
            return False  # also where the directory is another home's by now
        fd = self._lock_file()
        if fd < 0:
            return False
        with self._changing:
            restored = self.held  # else it was released while the file system answered
            if restored:
                fd, self._fd = self._fd, fd
        os.close(fd)
        return restored

    def _lock_file(self) -> int:
        """The lock file, locked; -1: it cannot be opened, or another process has it."""
        try:
            fd = open_private(self._path, os.O_RDWR | os.O_CREAT)
        except OSError:
            return -1
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            return -1
        with contextlib.suppress(OSError):  # a full disk: the lock is what counts, the name in it is for people
            os.pwrite(fd, f"{os.getpid():<19}\n".encode(), 0)
        return fd

    def holder(self) -> str:
        """The pid of the process that took it last, in text, for a message."""
        try:
            return Files().read(self._path, 4096)[0].decode(errors="replace").strip() or "unknown"
        except OSError:
            return "unknown"

    def release(self) -> None:
        with self._changing:
            fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
            unlock(self._directory_fd)
            self._directory_fd = NO_LOCK
