"""One listening socket at a fixed address. Standard library only."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Final

from turnout.core.addresses import format_address
from turnout.system.files import undone_on_error

BACKLOG: Final = 4096  # net.core.somaxconn since Linux 5.4; more is cut to it (listen(2))


def bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """The listener of a fixed address. TCP_NODELAY is inherited by what it accepts (tcp(7)).

    Args:
        host: numeric.
        port: 1 to 65535; 0: any.
        shared: it joins others there, by SO_REUSEPORT (socket(7)). Without, somebody else who has the address is found
            out.

    Raises:
        OSError: why it cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    with undone_on_error(sock.close):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    return sock


def spell(addresses: Sequence[tuple[str, int]]) -> str:
    return ", ".join(format_address(host, port) for host, port in addresses)
