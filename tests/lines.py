"""Connections that stay while everything around them changes, and who has the fixed address open."""

from __future__ import annotations

import socket
from pathlib import Path

from turnout.demo.load import line_exchange
from turnout.system.sockets import descriptors_of, listening_at


class Lines:
    """Connections that stay, each with the daemon that it met first."""

    def __init__(self, address: tuple[str, int], count: int) -> None:
        self.socks = [socket.create_connection(address, 30) for _ in range(count)]
        self.met = [line_exchange(sock) for sock in self.socks]

    def all_go_on(self) -> None:
        assert [line_exchange(sock) for sock in self.socks] == self.met

    def close(self) -> None:
        for sock in self.socks:
            sock.close()


def holders(address: tuple[str, int]) -> dict[int, set[int]]:
    """Every listener of the address by its inode, with the processes that have it open."""
    found: dict[int, set[int]] = {listener.inode: set() for listener in listening_at(*address)}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            for inode, _ in descriptors_of(int(entry.name)):
                if inode in found:
                    found[inode].add(int(entry.name))
    return found
