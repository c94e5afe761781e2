"""What the records of daemons tell of a shared address that the router lost: who may be there, and who is where."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable, Mapping
from typing import Final

from turnout.core.addresses import reachable
from turnout.system.net.connections import connections_at
from turnout.system.net.sockets import has_any, listening_at
from turnout.system.process import is_alive, tree_of
from turnout.system.spawn_record import SpawnRecord

LOOK_S: Final = 0.005


def held_by(address: tuple[str, int], records: Iterable[SpawnRecord]) -> bool:
    """Whether these daemons, and nobody else, listen at that address: they share it, so it can be joined."""
    here = {found.inode for found in listening_at(reachable(address[0]), address[1])}
    own = {record.listener_inode for record in records if record.ended is None and is_alive(record.identity)}
    return bool(here) and here <= own


def taken_by(probe: socket.socket, port: int, daemons: Mapping[str, SpawnRecord], *, within_s: float) -> str:
    """Which daemon accepted this connection to the port; empty where none does within so many seconds."""
    own = probe.getsockname()
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        inodes = {one.inode for one in connections_at(port) if one.peer == own and one.inode}
        for boot_id, record in daemons.items():
            if inodes and any(has_any(pid, inodes) for pid in tree_of(record.identity)):
                return boot_id
        time.sleep(LOOK_S)
    return ""
