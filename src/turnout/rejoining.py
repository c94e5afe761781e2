"""What the records of daemons tell of a shared address that the router lost: who may be there, and who is where."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable, Mapping
from typing import Final

from turnout.core.listen import reachable
from turnout.core.model import Identity
from turnout.joining import sockets_of
from turnout.system.connections import connections_at
from turnout.system.process import is_alive, tree_of
from turnout.system.sockets import has_any, listening_at
from turnout.system.spawn_record import SpawnRecord

LOOK_S: Final = 0.005


def that_join(records: Iterable[SpawnRecord]) -> dict[str, Identity]:
    """The daemons that join by themselves, and have not ended as far as is recorded."""
    return {record.boot_id: record.identity for record in records if record.joins and record.ended is None}


def held_by(address: tuple[str, int], records: Iterable[SpawnRecord]) -> bool:
    """Whether these daemons, and nobody else, listen at that address: they share it, so it can be joined."""
    here = {found.inode for found in listening_at(reachable(address[0]), address[1])}
    alive = [record for record in records if record.ended is None and is_alive(record.identity)]
    own = {record.listener_inode for record in alive}
    for record in alive:
        if record.joins:  # it may have joined anew since then
            own |= sockets_of(tree_of(record.identity))
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
