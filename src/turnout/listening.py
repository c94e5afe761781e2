"""The listening sockets of one service, as the keeper holds them. Standard library only."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

BACKLOG: Final = 4096  # net.core.somaxconn since Linux 5.4; more is cut to it (listen(2))


@dataclass(slots=True)
class Listening:
    """The listeners of one service. Owns them."""

    addresses: list[tuple[str, int]]
    sockets: list[socket.socket]

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()

    @classmethod
    def at(cls, addresses: Sequence[tuple[str, int]]) -> Self:
        """Bind all of them, or none.

        Raises:
            OSError: why one could not be bound; its ``filename`` is that address, as host:port.
        """
        return cls([], []).moved_to(addresses)

    def moved_to(self, addresses: Sequence[tuple[str, int]]) -> Self:
        """Listen on these instead: what is there already is kept, what is new is bound, what is left over is closed.

        Raises:
            OSError: as :meth:`at`, and nothing has changed.
        """
        known = dict(zip(self.addresses, self.sockets, strict=True))
        new: dict[tuple[str, int], socket.socket] = {}
        for host, port in addresses:
            try:
                if (host, port) not in known:
                    new[host, port] = bind(host, port)
            except OSError as error:
                for sock in new.values():
                    sock.close()
                raise OSError(error.errno, error.strerror, spell([(host, port)])) from error
        for address, sock in known.items():
            if address not in addresses:
                sock.close()
        known |= new
        return type(self)(list(addresses), [known[address] for address in addresses])


def bind(host: str, port: int) -> socket.socket:
    """The listener of a fixed address. TCP_NODELAY is inherited by what it accepts (tcp(7))."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def spell(addresses: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in addresses)
