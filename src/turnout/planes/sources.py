"""Source addresses towards a daemon: one has about 28,000 ports for it, and loopback has more addresses (ip(7))."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

from turnout.planes.plane import Counters
from turnout.planes.tcp import is_loopback

SOURCES: Final = 64  # 127.0.0.1 … 127.0.0.64: 1.8 million connections
FIRST_AGAIN_S: Final = 5.0
_LATE_PORT: Final = getattr(socket, "IP_BIND_ADDRESS_NO_PORT", 24)  # ip(7), Linux 4.2; Python names it from 3.12 on

_RANGE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")


def may_be_a_source(port: int) -> bool:
    """Whether an outgoing connection may get this port by itself (ip(7)); where that is not told, Linux' default."""
    try:
        low, high = map(int, _RANGE.read_text().split())
    except (OSError, ValueError):
        low, high = 32768, 60999
    return low <= port <= high


def connect_from(source: str, daemon: socket.socket, address: tuple[str, int]) -> int:
    """Connect a fresh socket from this address; answers as ``connect_ex``."""
    daemon.setsockopt(socket.IPPROTO_IP, _LATE_PORT, 1)
    try:
        daemon.bind((source, 0))
    except OSError as error:
        return error.errno or errno.EADDRNOTAVAIL
    return daemon.connect_ex(address)


class Sources:
    """Connects from the next loopback address where one has no port left.

    127.0.0.1 is what daemons know as local (``pg_hba.conf``), so it is gone back to every few seconds: by then some
    connections may have ended. In between the last one that had a port is tried first, for finding none costs a walk
    through all.

    Args:
        counters: ``other_source`` and ``ports_exhausted`` are kept here.
        clock: monotonic seconds.

    ``last``: the last byte of the address that had a port; 1: nothing is tight, a plain connect will do.
    """

    __slots__ = ("_again_at", "_clock", "_counters", "last")

    def __init__(self, counters: Counters, clock: Callable[[], float]) -> None:
        self._counters = counters
        self._clock = clock
        self.last = 1
        self._again_at = 0.0

    def connect(self, daemon: socket.socket, address: tuple[str, int]) -> int:
        """Connect a fresh socket from another address; answers as ``connect_ex``. EADDRNOTAVAIL: none has a port left.

        An IPv6 daemon has one loopback address, so there is no other one to come from; nor for one on another host.
        """
        if ":" in address[0] or not is_loopback(address[0]):
            self._counters.ports_exhausted += 1
            return errno.EADDRNOTAVAIL
        now = self._clock()
        if now >= self._again_at:
            self.last = 1
            self._again_at = now + FIRST_AGAIN_S
        daemon.setsockopt(socket.IPPROTO_IP, _LATE_PORT, 1)
        for step in range(SOURCES):
            last = (self.last - 1 + step) % SOURCES + 1
            try:
                daemon.bind((f"127.0.0.{last}", 0))
            except OSError as error:
                return error.errno or errno.EADDRNOTAVAIL
            code = daemon.connect_ex(address)
            if code != errno.EADDRNOTAVAIL:
                self.last = last
                self._counters.other_source += last > 1
                return code
        self._counters.ports_exhausted += 1
        return errno.EADDRNOTAVAIL
