"""What is asked of TCP sockets, on either side of a plane."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
import struct
from typing import Final

from turnout.core.addresses import format_address
from turnout.core.proxy_protocol import header

RESET_LINGER: Final = struct.pack("ii", 1, 0)  # socket(7): close() then sends a reset
NO_LINGER: Final = struct.pack("ii", 0, 0)
# A peer that vanished is found out after IDLE + PROBES * INTERVAL = 3 minutes; Linux' own 7200 s are of another age.
KEEPALIVE_IDLE_S: Final = 120
KEEPALIVE_INTERVAL_S: Final = 15
KEEPALIVE_PROBES: Final = 4
_STATE_CLOSE: Final = 7  # TCP_CLOSE, include/net/tcp_states.h


def set_up(sock: socket.socket, *, user_timeout_ms: int) -> None:
    """No delay, keepalive that notices a vanished peer, and no byte out of band; on a listener, for all it accepts.

    A byte that was sent as urgent data keeps its place in the stream (SO_OOBINLINE, tcp(7); RFC 6093, 5): else a read
    stops before it and leaves it out. That it was urgent is not passed on.

    Args:
        sock: a TCP socket.
        user_timeout_ms: TCP_USER_TIMEOUT (tcp(7)); 0: the system's own.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, user_timeout_ms)


def reset_on_close(sock: socket.socket) -> None:
    """Let its close be a reset: an orderly one would tell that a truncated stream was whole."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_LINGER)


def listens(sock: socket.socket) -> bool:
    """Whether it is a listener still: another process that has it may have shut it down (shutdown(2))."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) != 0


def is_dead(sock: socket.socket) -> bool:
    """Whether the connection was reset, without reading from it: what came before may still lie there."""
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _STATE_CLOSE
    except OSError:
        return True


def is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host).is_loopback


def peer_of(sock: socket.socket) -> str:
    """``host:port`` of the other end, empty where it is gone already."""
    try:
        host, port = sock.getpeername()[:2]
    except OSError:
        return ""
    return format_address(host, port)


def introduce(client: socket.socket, daemon: socket.socket) -> bool:
    """Send a daemon the PROXY header of a client, before any byte of the client; False: one of the two is gone."""
    with contextlib.suppress(OSError):
        data = header(client.getpeername()[:2], client.getsockname()[:2])
        return daemon.send(data) == len(data)  # into an empty send buffer: it takes all of it, or is broken
    return False


# What the kernel answers where the process or the machine has none left, for now.
NO_RESOURCES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
