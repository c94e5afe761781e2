"""The descriptors that planes leave to the rest of their process: a router that cannot open a file decides nothing.

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


class FdReserve:
    """Whether a plane may have one more descriptor.

    ``first``: the number from which on they are not for it. ``exhausted``: a plane was given one of those, and none
    below was seen to be free since then.
    """

    def __init__(self) -> None:
        self.first = 0
        self.exhausted = False
        self.check(-1)

    def check(self, fd: int) -> bool:
        """Whether a descriptor with this number means that there are no more; keeps that in ``exhausted``."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)  # prlimit(1) may have raised it meanwhile
        self.first = 1 << 62 if soft == resource.RLIM_INFINITY else soft - min(KEPT, soft // KEPT_SHARE)
        self.exhausted = fd >= self.first
        return self.exhausted

    def recovered(self, fd: int) -> bool:
        """Whether there are some again, tried with a copy of ``fd``."""
        try:
            number = os.dup(fd)
        except OSError:
            return False
        os.close(number)
        return not self.check(number)

    def admit(self, sock: socket.socket) -> socket.socket:
        """This socket, if its number is for a plane; else it is closed.

        Raises:
            OSError: EMFILE, as the kernel has it where there is none at all.
        """
        fd = sock.fileno()
        if fd >= self.first and self.check(fd):
            sock.close()
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return sock
