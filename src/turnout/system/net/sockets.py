"""Finds the processes of listeners and connections: sock_diag(7), else /proc/net/tcp, matched with /proc/PID/fd."""

from __future__ import annotations

import os
import pwd
import socket
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from turnout.system.net.sock_diag import (
    CLOSE_WAIT,
    ESTABLISHED,
    EVERY,
    LISTEN,
    SERVED,
    SYN_RECV,
    SocketRow,
    spell,
    table,
)
from turnout.system.process import command_of, identify

_ANY: Final = {"0.0.0.0", "::"}  # noqa: S104  # compared, not bound
FOUND_AT_MOST: Final = 1024

_found_at: dict[int, str] = {}  # the descriptor by which a process last had a socket that was asked for; only a hint


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket; ``pid`` is a process that has it open, 0 where that was not asked."""

    host: str
    port: int
    pid: int
    inode: int


@dataclass(frozen=True, slots=True)
class PortHolder:
    """A process that has a port; ``pid`` 0: unknown. ``listening`` False: a connection from it, or a bare bind."""

    pid: int
    command: str
    listening: bool


def listeners_of(pids: Collection[int]) -> list[Listener]:
    """The listening sockets that any of ``pids`` has open."""
    owners = {inode: pid for pid in pids for inode in _sockets_of(pid)}
    return [
        Listener(row.host, row.port, owners[row.inode], row.inode) for row in table(1 << LISTEN) if row.inode in owners
    ]


def listening_at(host: str, port: int) -> list[Listener]:
    """The listening sockets that get what is sent to ``host:port``, without their owners (``pid`` 0).

    A listener at the address itself takes precedence over one that is bound to all (tcp(7)); several share it by
    SO_REUSEPORT.
    """
    rows = [row for row in table(1 << LISTEN, port) if _reaches(row, host)]
    closest = [row for row in rows if row.host not in _ANY]
    return [Listener(row.host, row.port, 0, row.inode) for row in closest or rows]


def listening_exactly_at(host: str, port: int) -> list[Listener]:
    """The listening sockets that are bound to this very host, a wildcard included; the newest first (IPv4)."""
    return [Listener(row.host, row.port, 0, row.inode) for row in table(1 << LISTEN, port) if row.host == host]


def who_listens(host: str, port: int) -> PortHolder | None:
    """The holder of ``host:port``: a listener, else a socket that only has the port. None: none is seen."""
    rows = [row for row in table(EVERY, port) if row.inode and _reaches(row, host)]
    rows.sort(key=lambda row: (row.state != LISTEN, row.host in _ANY))
    if not rows:
        return None
    has = _owners({row.inode for row in rows})
    row = next((row for row in rows if row.inode in has or row.state == LISTEN), rows[0])
    pid = has.get(row.inode, 0)
    return PortHolder(pid, command_of(pid) or "?" if pid else f"a process of {_user(row.uid)}", row.state == LISTEN)


@dataclass(frozen=True, slots=True)
class Queue:
    """The accept queue of one listener: ``waiting`` of ``most``; it is full when more wait (tcp(7) is off by one)."""

    inode: int
    waiting: int
    most: int


def accept_queues(host: str, port: int) -> list[Queue]:
    """Those of all listeners that get what is sent to ``host:port``, as far as the system says."""
    return [
        Queue(row.inode, row.queued, row.backlog)
        for row in table(1 << LISTEN, port)
        if row.backlog is not None and _reaches(row, host)
    ]


def accept_queue(host: str, port: int) -> tuple[int, int] | None:
    """How many connections wait to be accepted at ``host:port``, and how many may; the fullest of several listeners.

    It is full when more wait than may. None: there is no listener, or the system does not say.
    """
    queues = [(queue.waiting, queue.most) for queue in accept_queues(host, port)]
    return max(queues, key=lambda queue: queue[0] - queue[1], default=None)


def established_to(port: int, *, source: str = "") -> int:
    """How many connections have ``port`` at this end and are not closed here: accepted ones and waiting ones.

    ``source``: only those that come from this address.
    """
    return sum(
        1
        for row in table(SERVED, port)
        if (row.inode or row.state in {ESTABLISHED, CLOSE_WAIT}) and source in {"", row.peer[0]}
    )


def unaccepted_at(host: str, port: int) -> int:
    """How many connections to ``host:port`` wait to be accepted: such a connection has no inode yet."""
    waits = {ESTABLISHED, CLOSE_WAIT}
    return sum(1 for row in table(SERVED, port) if row.host == host and not row.inode and row.state in waits)


def accepted_at(port: int) -> frozenset[tuple[str, int]]:
    """The peers of the connections to ``port`` that a process has accepted; a waiting connection has no inode yet."""
    return frozenset(row.peer for row in table(SERVED, port) if row.inode)


def has_any(pid: int, inodes: Collection[int]) -> bool:
    """Whether a process has one of these sockets open.

    It looks first where it found one before: to list the descriptors of a process with thousands of connections costs
    the kernel more than all the rest of a probe.
    """
    known = _found_at.get(pid)
    if known is not None and _socket_at(f"/proc/{pid}/fd/{known}") in inodes:
        return True
    for fd, inode in _numbered_sockets_of(pid):
        if inode in inodes:
            if len(_found_at) >= FOUND_AT_MOST:
                _found_at.clear()
            _found_at[pid] = fd
            return True
    return False


def holders_of(inodes: Collection[int]) -> set[int]:
    """Every process that has one of these sockets open, as far as processes may be looked at."""
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return {pid for pid in pids if not set(inodes).isdisjoint(_sockets_of(pid))}


def server_end(port: int, peer: tuple[str, int]) -> SocketRow | None:
    """The socket with ``port`` at this end that a connection from ``peer`` belongs to; None: there is none to be seen.

    Its inode is 0 until a process has accepted it; its state is SYN_RECV while the listener defers that until data
    comes (TCP_DEFER_ACCEPT, tcp(7)).
    """
    rows = [row for row in table(SERVED | 1 << SYN_RECV, port) if row.peer == peer]
    return max(rows, key=lambda row: row.inode, default=None)


def descriptors_of(pid: int) -> list[tuple[int, int]]:
    """The sockets that a process has open, each as its inode and its descriptor; none where it may not be looked at."""
    return [(inode, int(fd)) for fd, inode in _numbered_sockets_of(pid)]


def may_be_looked_at(pid: int) -> bool:
    """Whether the descriptors of a process may be read (PTRACE_MODE_READ_FSCREDS, proc_pid_fd(5)); also if it is gone.

    They may not where it runs as another user, or was started with capabilities that we lack, or we can open nothing.
    """
    try:
        with os.scandir(f"/proc/{pid}/fd") as entries:
            for entry in entries:
                Path(entry).readlink()
                break
    except (FileNotFoundError, ProcessLookupError):
        return True
    except OSError:
        return False
    return True


def inode_of(pid: int, fd: int) -> int:
    """The inode of the socket that a process has at this descriptor; -1: it is none, or may not be looked at."""
    return _socket_at(f"/proc/{pid}/fd/{fd}")


def _socket_at(path: str) -> int:
    """The inode of the socket behind a link of /proc/PID/fd; -1: there is none, or it may not be looked at."""
    try:
        target = os.readlink(path)  # noqa: PTH115  # a Path for each would triple the cost of a probe
    except OSError:
        return -1
    return int(target[8:-1]) if target.startswith("socket:[") else -1


def _sockets_of(pid: int) -> Iterator[int]:
    """The inodes of the sockets that a process has open; none where it may not be looked at."""
    return (inode for _, inode in _numbered_sockets_of(pid))


def _numbered_sockets_of(pid: int) -> Iterator[tuple[str, int]]:
    try:
        with os.scandir(f"/proc/{pid}/fd") as entries:
            for entry in entries:
                inode = _socket_at(entry.path)
                if inode >= 0:
                    yield entry.name, inode
    except OSError:
        return


def _owners(inodes: set[int]) -> dict[int, int]:
    """For each socket the oldest process that has it open: of a master and its workers the master."""
    oldest: dict[int, tuple[int, int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        pid = int(entry.name)
        for inode in inodes.intersection(_sockets_of(pid)):
            try:
                since = identify(pid).start_ticks
            except (ProcessLookupError, PermissionError):
                continue
            oldest[inode] = min(oldest.get(inode, (since, pid)), (since, pid))
    return {inode: pid for inode, (_, pid) in oldest.items()}


def _user(uid: int) -> str:
    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"uid {uid}"


def _reaches(row: SocketRow, host: str) -> bool:
    """Whether this socket gets, or keeps others from, what is sent to ``host``; a wildcard stands for every address."""
    return any(_covers(row, wanted) for wanted in _addresses(host))


def _covers(row: SocketRow, wanted: str) -> bool:
    if wanted in {row.host, "::"}:
        return True
    if row.host == "::":
        return ":" in wanted or not row.v6only
    return ":" not in wanted and ":" not in row.host and bool({row.host, wanted} & _ANY)


def _addresses(host: str) -> set[str]:
    """The spellings that the kernel uses for a host as people write it."""
    text = host.strip("[]").partition("%")[0]
    if text == "localhost":
        return {"127.0.0.1", "::1"}
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            return {spell(socket.inet_pton(family, text))}
        except OSError:
            continue
    return {"::"} if not text else set()
