"""Pipes for splice(2), leased for a burst from a bounded pool."""

from __future__ import annotations

import contextlib
import fcntl
import os
from dataclasses import dataclass
from typing import Final

from turnout.planes.fd_reserve import FdReserve

PIPE_BYTES: Final = 1 << 20
MIN_PIPE_BYTES: Final = 65536  # 16 pages, the default of pipe(7); fewer are not worth it
NONBLOCK: Final = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE


@dataclass(slots=True, eq=False)
class Pipe:
    """One pipe: ``held`` counts its bytes, because EAGAIN does not distinguish a full pipe from an empty source."""

    read_fd: int
    write_fd: int
    size: int
    held: int = 0

    def close(self) -> None:
        os.close(self.read_fd)
        os.close(self.write_fd)


class PipePool:
    """Owns the pipes that are not leased. A leased one belongs to the direction that has it.

    ``max_pipes``: maximum number of pipes, 0 or more. ``max_idle``: how many idle ones are kept for the next burst.
    """

    def __init__(self, *, max_pipes: int = 512, max_idle: int = 32) -> None:
        self._max_pipes = max_pipes
        self._max_idle = max_idle
        self._idle: list[Pipe] = []
        self._fd_reserve = FdReserve()
        self.leased = 0
        self.denied = 0

    def lease(self) -> Pipe | None:
        """A pipe, empty; None where the limits of the pool, the user or the process are reached: then copy."""
        if self._idle:
            pipe: Pipe | None = self._idle.pop()
        else:
            pipe = self.make() if self.leased < self._max_pipes else None
        if pipe is None:
            self.denied += 1
        else:
            self.leased += 1
        return pipe

    def give_back(self, pipe: Pipe) -> None:
        """Take a pipe back; one with bytes in it is closed: no other connection may get them."""
        self.leased -= 1
        if pipe.held or len(self._idle) >= self._max_idle:
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
        size = 0
        if write_fd < self._fd_reserve.first or not self._fd_reserve.check(write_fd):
            # beyond fs.pipe-user-pages-soft an unprivileged user gets one or two pages and may not grow them (pipe(7))
            with contextlib.suppress(OSError):
                fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            size = fcntl.fcntl(write_fd, fcntl.F_GETPIPE_SZ)
        pipe = Pipe(read_fd, write_fd, size)
        if size >= MIN_PIPE_BYTES:
            return pipe
        pipe.close()
        return None
