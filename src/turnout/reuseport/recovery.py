"""Finds the daemons of a group whose keeper or router died: who may be there, who is where, and their listeners."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Collection, Iterable, Mapping
from typing import Final

from turnout.core.addresses import reachable
from turnout.core.slots import source_of
from turnout.reuseport.program import Door, attach
from turnout.system.files import undone_on_error
from turnout.system.net.connections import connections_at
from turnout.system.net.sockets import descriptors_of, has_any, listening_exactly_at
from turnout.system.net.tcp import reset_on_close
from turnout.system.pidfd import socket_of
from turnout.system.process import is_alive, tree_of
from turnout.system.spawn_record import SpawnRecord

LOOK_S: Final = 0.005


def held_by(address: tuple[str, int], records: Iterable[SpawnRecord]) -> bool:
    """Whether these daemons alone listen at that address: they share it, so it can be joined.

    A record has one listener of its daemon; the others are found among the descriptors of its processes.
    """
    here = {found.inode for found in listening_exactly_at(*address)}
    shares = [record for record in records if record.listener_inode and not record.ended and is_alive(record.identity)]
    own = {record.listener_inode for record in shares}
    for record in shares if here - own else ():
        own |= {inode for pid in tree_of(record.identity) for inode, _ in descriptors_of(pid)}
    return bool(here) and here <= own


def listener_of(record: SpawnRecord, inodes: Collection[int]) -> socket.socket | None:
    """A copy of the one of these listeners that a daemon has, the caller's.

    None: it has none or several of them, or may not be looked at (ptrace(2)).
    """
    with contextlib.suppress(OSError):
        held = {
            inode: (pid, fd)
            for pid in sorted(tree_of(record.identity))
            for inode, fd in descriptors_of(pid)
            if inode in inodes
        }
        if len(held) == 1:
            ((inode, (pid, fd)),) = held.items()
            return socket_of(pid, fd, inode)
    return None


def connect_to_index(listener: socket.socket, selected: int, index: int) -> socket.socket:
    """A connection to one member, that is made or about to be; it ends by a reset, and sends nothing.

    It does not wait: at a member whose queue is full it would have to.

    Args:
        listener: any member of the group.
        selected: where other connections go meanwhile.
        index: the member.

    Raises:
        OSError: there is no socket, or no such source address.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    with undone_on_error(sock.close):
        reset_on_close(sock)
        sock.setblocking(False)
        sock.bind((source_of(index), 0))
        host, port = listener.getsockname()
        attach(listener, [selected], [Door(index, *sock.getsockname())])
        sock.connect_ex((reachable(host), port))
    return sock


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
