"""What tests of the direct planes share: connections that stay, who has the fixed address open, kills under load."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from e2e_support import Turnout, under_load
from programs import missing
from support import eventually, report, scaled
from turnout.demo.load import Load, line_exchange
from turnout.planes.direct import sk_lookup
from turnout.system.net.sockets import descriptors_of, listening_at


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


def needs_sk_lookup() -> None:
    """Skip the test, with the reason, where the kernel or our rights do not let the plane work."""
    lacks = sk_lookup.lacking()
    if lacks:
        missing("sk_lookup", f"plane sk_lookup cannot run here: {lacks}")


def router(turnout: Turnout) -> dict[str, Any]:
    found: dict[str, Any] = turnout.status()["router"]
    return found


def no_trouble(turnout: Turnout) -> None:
    """The kernel chooses as it should. On a busy machine a daemon's queue may have been full a moment ago."""
    eventually(lambda: router(turnout)["plane_trouble"] == "", why="the plane has trouble")


def deploy_under_load(turnout: Turnout, configure: Callable[[Turnout, str], None], plane: str) -> None:
    """From v1 on, at an address that daemons share: nobody fails, and no byte passes the router."""
    last = f"v{1 + (rollouts := scaled(4, 20))}"
    with under_load(turnout) as load:
        for number in range(2, 2 + rollouts):
            configure(turnout, f"v{number}")
            turnout.run("deploy")
        eventually(lambda: load.answered[last] > 0)
    report(f"deploys by {plane}", rollouts=rollouts, made=load.made, failed=load.failed)
    status = turnout.status()
    no_trouble(turnout)
    assert status["counters"]["accepted"] == 0, "some went through the relay"
    assert set(load.answered) >= {"v1", last}
    assert turnout.active()["port"] == turnout.port


def kill_the_active_under_load(turnout: Turnout) -> None:
    """The daemon that serves is killed: what it had accepted or queued ends with it, and nobody who comes after fails.

    Each client has one connection at a time, so no more than one of each can have been accepted or queued.
    """
    clients = 6
    load = Load(turnout.address, line_exchange, clients=clients)
    lines = Lines(turnout.address, scaled(20, 200))
    load.start()
    try:
        eventually(lambda: load.made > 50)
        first = turnout.active()
        turnout.kill(first["pid"])
        ended = sum(not _goes_on(sock) for sock in lines.socks)
        eventually(lambda: turnout.snapshot().deployment.active_boot_id not in {"", first["boot_id"]})
        with under_load(turnout) as later:
            eventually(lambda: later.made > 50)
    finally:
        load.stop()
        lines.close()
    accepted = len(lines.socks)
    report("an active daemon killed", accepted=accepted, ended=ended, made=load.made, failed=load.failed)
    assert ended == accepted, "what it had accepted"
    assert load.failed <= clients + 1, dict(load.errors)  # and the one that stays
    assert not [error for error in load.errors if "refused" in error or "timed out" in error], dict(load.errors)


def _goes_on(sock: socket.socket) -> bool:
    """Whether somebody answers on a connection; one that is ended says so."""
    try:
        line_exchange(sock)
    except ConnectionError:
        return False
    return True
