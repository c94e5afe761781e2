"""Pipes for splice(2), leased for a burst from a bounded pool."""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import Final

from turnout.planes.headroom import Headroom

PIPE_BYTES: Final = 1 << 20
MIN_PIPE_BYTES: Final = 65536  # 16 pages, the default of pipe(7); fewer are not worth it
NONBLOCK: Final = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE


class Pipe:
    """One pipe: what lies in it is counted, because EAGAIN does not tell a full pipe from an empty source."""

    __slots__ = ("held", "read_fd", "size", "write_fd")

    def __init__(self, read_fd: int, write_fd: int, size: int) -> None:
        self.read_fd = read_fd
        self.write_fd = write_fd
        self.size = size
        self.held = 0

    def close(self) -> None:
        os.close(self.read_fd)
        os.close(self.write_fd)


class PipePool:
    """Owns the pipes that are not leased. A leased one belongs to the direction that has it.

    Args:
        most: how many pipes there may be in all, 0 or more.
        kept: how many idle ones are kept for the next burst.
    """

    __slots__ = ("_headroom", "_idle", "_kept", "_most", "denied", "leased")

    def __init__(self, *, most: int = 512, kept: int = 32) -> None:
        self._most = most
        self._kept = kept
        self._idle: list[Pipe] = []
        self._headroom = Headroom()
        self.leased = 0
        self.denied = 0

    def lease(self) -> Pipe | None:
        """A pipe, empty; None where the limits of the pool, the user or the process are reached: then copy."""
        if self._idle:
            self.leased += 1
            return self._idle.pop()
        pipe = self.make() if self.leased < self._most else None
        if pipe is None:
            self.denied += 1
            return None
        self.leased += 1
        return pipe

    def give_back(self, pipe: Pipe) -> None:
        """Take a pipe back; one with bytes in it is closed, they belong to nobody else."""
        self.leased -= 1
        if pipe.held or len(self._idle) >= self._kept:
            pipe.close()
        else:
            self._idle.append(pipe)

    def close(self) -> None:
        for pipe in self._idle:
            pipe.close()
        self._idle.clear()

    def make(self) -> Pipe | None:
        """A new one of a size that is worth it; None where there is none to be had."""
        try:
            read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        if write_fd >= self._headroom.first and self._headroom.is_short(write_fd):
            os.close(read_fd)
            os.close(write_fd)
            return None
        # beyond fs.pipe-user-pages-soft an unprivileged user gets one or two pages and may not grow them (pipe(7))
        with contextlib.suppress(OSError):
            fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        size = fcntl.fcntl(write_fd, fcntl.F_GETPIPE_SZ)
        if size < MIN_PIPE_BYTES:
            os.close(read_fd)
            os.close(write_fd)
            return None
        return Pipe(read_fd, write_fd, size)
