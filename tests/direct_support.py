"""What tests of the direct planes share: connections that stay, who has the fixed address open, kills under load."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from e2e_support import Turnout
from support import eventually, report
from turnout.demo.load import Load, line_exchange
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


def router(turnout: Turnout) -> dict[str, Any]:
    found: dict[str, Any] = turnout.status()["router"]
    return found


def kill_the_active_under_load(turnout: Turnout) -> None:
    """The daemon that serves is killed: nobody fails but who had a connection to it; who comes after is served."""
    clients = 6
    load = Load(turnout.address, line_exchange, clients=clients)
    load.start()
    try:
        eventually(lambda: load.made > 50)
        first = turnout.active()
        turnout.kill(first["pid"])
        eventually(lambda: turnout.snapshot().deployment.active_boot_id not in {"", first["boot_id"]})
        before = load.made
        eventually(lambda: load.made > before + 50)
    finally:
        load.stop()
    report("an active daemon killed", made=load.made, failed=load.failed, clients=clients)
    # each of them had one connection at that moment, accepted or queued
    assert load.failed <= clients + 1, dict(load.errors)
