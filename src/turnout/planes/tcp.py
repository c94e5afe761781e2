"""What is asked of TCP sockets, on either side of a plane."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
import sys
from typing import Final

from turnout.core.proxy_protocol import header

RESET_LINGER: Final = struct.pack("ii", 1, 0)  # socket(7): close() then sends a reset
NO_LINGER: Final = struct.pack("ii", 0, 0)
INHERITS: Final = sys.platform == "linux"  # an accepted socket has these options from its listener (tcp(7))
# A peer that vanished is found out after IDLE + PROBES * INTERVAL = 3 minutes; Linux' own 7200 s are of another age.
KEEPALIVE_IDLE_S: Final = 120
KEEPALIVE_INTERVAL_S: Final = 15
KEEPALIVE_PROBES: Final = 4
_STATE_CLOSE: Final = 7  # TCP_CLOSE, include/net/tcp_states.h


def set_up(sock: socket.socket, *, user_timeout_ms: int) -> None:
    """No delay, and keepalive that notices a vanished peer; on a listener, for all that it accepts.

    Args:
        sock: a TCP socket.
        user_timeout_ms: TCP_USER_TIMEOUT (tcp(7)); 0: the system's own.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # macOS has another name for the first, and no user timeout
    idle = getattr(socket, "TCP_KEEPIDLE", None) or getattr(socket, "TCP_KEEPALIVE", None)
    if idle is not None:
        sock.setsockopt(socket.IPPROTO_TCP, idle, KEEPALIVE_IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, user_timeout_ms)


def reset_on_close(sock: socket.socket) -> None:
    """Let its close be a reset: an orderly one would tell that a truncated stream was whole."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_LINGER)


def listens(sock: socket.socket) -> bool:
    """Whether it is a listener still: another process that has it may have shut it down (shutdown(2))."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) != 0


def is_dead(sock: socket.socket) -> bool:
    """Whether the connection was reset, without reading from it: what came before may still lie there.

    Where there is no TCP_INFO, the pending error is asked for, which also takes it away.
    """
    info = getattr(socket, "TCP_INFO", None)
    try:
        if info is None:
            return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0
        return sock.getsockopt(socket.IPPROTO_TCP, info, 1)[0] == _STATE_CLOSE
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
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def introduce(client: socket.socket, daemon: socket.socket) -> bool:
    """Tell a daemon who its client is, before any byte of his; False: one of the two is gone."""
    with contextlib.suppress(OSError):
        told = header(client.getpeername()[:2], client.getsockname()[:2])
        return daemon.send(told) == len(told)  # into an empty send buffer: it takes all of it, or is broken
    return False
