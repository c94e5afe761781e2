"""Chooses ports for daemons, outside the range of outgoing connections (ip(7)). Standard library only."""

from __future__ import annotations

import contextlib
import errno
import random
import socket
from collections.abc import Collection
from pathlib import Path
from typing import Final, Self

from turnout.core.addresses import EPHEMERAL_DEFAULT, ephemeral_range
from turnout.errors import NotBegunError, SpawnError

FIXED_PORT: Final = 47777  # where clients come by default, so never a daemon's own
PORT_TRIES: Final = 200
_RANGE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_UNREACHABLE: Final = frozenset(
    {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
)


class ReservedPort:
    """A port kept free for one daemon. Owns the bound, silent SO_REUSEADDR socket that keeps it.

    A daemon that sets SO_REUSEADDR binds beside it (socket(7)); no other program can take the port meanwhile.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.port: int = sock.getsockname()[1]

    def release(self) -> None:
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.release()


def choose_port(host: str = "127.0.0.1", *, avoid: Collection[int] = ()) -> ReservedPort:
    """Reserve a port at random outside the ephemeral range, which any outgoing connection could take.

    Args:
        host: the address that the daemon will bind.
        avoid: ports that must not be chosen, beside 47777.

    Raises:
        SpawnError: none is free, or this machine has no such address.
    """
    _check_reachable(host)
    low, high = _ephemeral_range()
    barred = {*avoid, FIXED_PORT}
    outside = [port for port in (*range(20000, low), *range(high + 1, 65536)) if port not in barred]
    tries = random.SystemRandom().sample(outside, min(len(outside), PORT_TRIES))
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in tries or [0] * PORT_TRIES:  # 0: nothing lies outside here, so the kernel chooses
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            # Bound first without SO_REUSEADDR, so that a port which another process keeps in this way is refused; then
            # with it, so that the daemon is not.
            sock.bind((host, port))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        except OSError:
            sock.close()
            continue
        reserved = ReservedPort(sock)
        if reserved.port not in barred:
            return reserved
        reserved.release()
    raise NotBegunError(f"no free port for the daemon on {host}", hint="see: ss -ltn")


def _check_reachable(host: str) -> None:
    """Raises SpawnError: nothing on this machine can connect to ``host``, as with a loopback interface that is down.

    There bind(2) may succeed all the same. connect(2) on a datagram socket looks up the route and sends nothing.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((host, 9))
    except OSError as error:
        if error.errno not in _UNREACHABLE:
            return
        problem = f"this machine has no usable address {host}, where the daemon is to listen: {error.strerror}"
        raise SpawnError(problem, hint=missing_address_hint(host)) from error


def missing_address_hint(host: str) -> str:
    """What to type where bind(2) answers EADDRNOTAVAIL; the loopback interface of a new network namespace is down."""
    if host == "127.0.0.1":
        return "ip link set lo up, or ip addr add 127.0.0.1/8 dev lo: turnout reaches its daemons there"
    return "ip addr shows the addresses of this machine"


def may_be_a_source(port: int) -> bool:
    """Whether an outgoing connection may get this port by itself (ip(7)); unknown: as Linux has it by default."""
    low, high = _ephemeral_range()
    return low <= port <= high


def _ephemeral_range() -> tuple[int, int]:
    with contextlib.suppress(OSError):
        return ephemeral_range(_RANGE.read_text()) or EPHEMERAL_DEFAULT
    return EPHEMERAL_DEFAULT
