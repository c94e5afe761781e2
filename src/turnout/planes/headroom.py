"""The descriptors that planes leave to the rest of their process: one that cannot open a file decides nothing any more.

The kernel gives the lowest number that is free (open(2)), so a number tells how many are in use.
"""

from __future__ import annotations

import errno
import os
import resource
import socket
from typing import Final

KEPT: Final = 64  # for the registry, probes, verbs that ask, a scrape;
KEPT_SHARE: Final = 8  # of a small limit no more than this part of it


class Headroom:
    """Whether a plane may have one more descriptor. ``first`` is the number from which on they are not for it."""

    __slots__ = ("first", "short")

    def __init__(self) -> None:
        self.short = False  # one was given that was not for it, and none was seen to be free since then
        self.first = 0
        self._look()

    def _look(self) -> None:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.first = 1 << 62 if soft == resource.RLIM_INFINITY else soft - min(KEPT, soft // KEPT_SHARE)

    def is_short(self, fd: int) -> bool:
        """Whether a descriptor with the number ``first`` or above means that there are no more; keeps that in mind."""
        self._look()  # prlimit(1) may have raised it meanwhile
        self.short = fd >= self.first
        return self.short

    def is_over(self, fd: int) -> bool:
        """Whether there are some again, tried with a copy of ``fd``."""
        try:
            number = os.dup(fd)
        except OSError:
            return False
        os.close(number)
        return not self.is_short(number)

    def checked(self, sock: socket.socket) -> socket.socket:
        """This socket, if its number is for a plane; else it is closed.

        Raises:
            OSError: EMFILE, as the kernel has it where there is none at all.
        """
        fd = sock.fileno()
        if fd >= self.first and self.is_short(fd):
            sock.close()
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return sock
