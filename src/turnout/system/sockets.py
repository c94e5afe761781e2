"""Who listens where, and whose connections there are: sock_diag(7), else /proc/net/tcp, matched with /proc/PID/fd."""

from __future__ import annotations

import os
import pwd
import socket
import struct
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from turnout.system.process import identify

# TCP states, include/net/tcp_states.h; a set of them is a mask of bits
_ESTABLISHED: Final = 1
_FIN_WAIT1: Final = 4
_FIN_WAIT2: Final = 5
_CLOSE_WAIT: Final = 8
_LISTEN: Final = 10
_BOUND_INACTIVE: Final = 13  # bound, and neither listening nor connected; sock_diag tells since Linux 6.8
_SERVED: Final = 1 << _ESTABLISHED | 1 << _FIN_WAIT1 | 1 << _FIN_WAIT2 | 1 << _CLOSE_WAIT
_EVERY: Final = (1 << (_BOUND_INACTIVE + 1)) - 1

_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_REQUEST_DUMP: Final = 0x1 | 0x300  # NLM_F_REQUEST | NLM_F_DUMP
_SKV6ONLY: Final = 11  # INET_DIAG_SKV6ONLY
_HEADER: Final = struct.Struct("=IHHII")
_MESSAGE: Final = struct.Struct("=BBBB2s2s16s16sI8sIIIII")  # struct inet_diag_msg
_NETLINK_TIMEOUT_S: Final = 1.0
_ANY: Final = {"0.0.0.0", "::"}  # noqa: S104  # compared, not bound
COMMAND_CHARS: Final = 80
FOUND_AT_MOST: Final = 1024

_found_at: dict[int, str] = {}  # the descriptor by which a process last had a socket that was asked for; only a hint


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket; ``pid`` is a process that has it open, 0 where nobody asked for it."""

    host: str
    port: int
    pid: int
    inode: int


@dataclass(frozen=True, slots=True)
class Holder:
    """Who has a port; ``pid`` 0: it may not be known. ``listening`` False: a connection from it, or a bare bind."""

    pid: int
    command: str
    listening: bool


@dataclass(frozen=True, slots=True)
class _Row:
    """One TCP socket of this network namespace. For a listener ``queued`` wait to be accepted, of ``backlog``."""

    host: str
    port: int
    peer: tuple[str, int]
    state: int
    inode: int
    uid: int
    queued: int
    backlog: int | None
    v6only: bool


def listeners_of(pids: Collection[int]) -> list[Listener]:
    """The listening sockets that any of ``pids`` has open."""
    owners = {inode: pid for pid in pids for inode in _sockets_of(pid)}
    return [
        Listener(row.host, row.port, owners[row.inode], row.inode)
        for row in _table(1 << _LISTEN)
        if row.inode in owners
    ]


def listening_at(host: str, port: int) -> list[Listener]:
    """The listening sockets that get what is sent to ``host:port``, without their owners (``pid`` 0).

    One that is bound to the address itself takes precedence over one that is bound to all (tcp(7)); several share it by
    SO_REUSEPORT.
    """
    rows = [row for row in _table(1 << _LISTEN, port) if _reaches(row, host)]
    closest = [row for row in rows if row.host not in _ANY]
    return [Listener(row.host, row.port, 0, row.inode) for row in closest or rows]


def who_listens(host: str, port: int) -> Holder | None:
    """Who keeps others from ``host:port``: a listener, else a socket that only has the port. None: nobody is seen."""
    rows = [row for row in _table(_EVERY, port) if row.inode and _reaches(row, host)]
    rows.sort(key=lambda row: (row.state != _LISTEN, row.host in _ANY))
    if not rows:
        return None
    has = _owners({row.inode for row in rows})
    row = next((row for row in rows if row.inode in has or row.state == _LISTEN), rows[0])
    pid = has.get(row.inode, 0)
    return Holder(pid, command_of(pid) if pid else f"a process of {_user(row.uid)}", row.state == _LISTEN)


def accept_queue(host: str, port: int) -> tuple[int, int] | None:
    """How many connections wait to be accepted at ``host:port``, and how many may; the fullest of several listeners.

    It is full when more wait than may (tcp(7) has it off by one). None: nobody listens, or the system does not say.
    """
    queues = [
        (row.queued, row.backlog)
        for row in _table(1 << _LISTEN, port)
        if row.backlog is not None and _reaches(row, host)
    ]
    return max(queues, key=lambda queue: queue[0] - queue[1], default=None)


def established_to(port: int) -> int:
    """How many connections have ``port`` at this end and are not closed here: accepted ones and waiting ones."""
    return sum(1 for row in _table(_SERVED, port) if row.inode or row.state in {_ESTABLISHED, _CLOSE_WAIT})


def accepted_at(port: int) -> frozenset[tuple[str, int]]:
    """The peers of the connections to ``port`` that a process has accepted; one that waits has no inode yet."""
    return frozenset(row.peer for row in _table(_SERVED, port) if row.inode)


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


def command_of(pid: int) -> str:
    """A process's command in one short line for a message; ``?`` where it may not be seen."""
    try:
        text = Path(f"/proc/{pid}/cmdline").read_bytes() or Path(f"/proc/{pid}/comm").read_bytes()
    except OSError:
        return "?"
    line = text.replace(b"\0", b" ").decode(errors="replace")
    line = "".join(char if char.isprintable() else " " for char in line).strip()
    return line if len(line) <= COMMAND_CHARS else line[: COMMAND_CHARS - 3] + "..."


def _owners(inodes: set[int]) -> dict[int, int]:
    """For each socket the oldest process that has it open: of a master and its workers the master."""
    found: dict[int, tuple[int, int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        pid = int(entry.name)
        for inode in inodes.intersection(_sockets_of(pid)):
            try:
                since = identify(pid).start_ticks
            except (ProcessLookupError, PermissionError):
                continue
            found[inode] = min(found.get(inode, (since, pid)), (since, pid))
    return {inode: pid for inode, (_, pid) in found.items()}


def _user(uid: int) -> str:
    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"uid {uid}"


# -- addresses -------------------------------------------------------------------------------------------------------


def _reaches(row: _Row, host: str) -> bool:
    """Whether this socket gets, or keeps others from, what is sent to ``host``; a wildcard stands for every address."""
    return any(_covers(row, wanted) for wanted in _addresses(host))


def _covers(row: _Row, wanted: str) -> bool:
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
            return {_spell(socket.inet_pton(family, text))}
        except OSError:
            continue
    return {"::"} if not text else set()


def _spell(raw: bytes) -> str:
    """An address in text; an IPv4 address that travels in IPv6 as what it is (RFC 4291, 2.5.5.2)."""
    if len(raw) == 16 and raw.startswith(bytes(10) + b"\xff\xff"):
        raw = raw[12:]
    return socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)


# -- the kernel's tables ---------------------------------------------------------------------------------------------


def _table(states: int, port: int = 0) -> list[_Row]:
    """The sockets in any of ``states``, with ``port`` at this end (0: any)."""
    try:
        rows = list(_from_netlink(states, port))
    except OSError:  # no such netlink family, or not for us: gVisor, some containers
        rows = list(_from_proc())
    return [row for row in rows if 1 << row.state & states and port in {0, row.port}]


def _from_netlink(states: int, port: int) -> Iterator[_Row]:
    """Ask the kernel for those alone (sock_diag(7)); thousands of other sockets then cost nothing."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as sock:
        sock.settimeout(_NETLINK_TIMEOUT_S)
        for family in (socket.AF_INET, socket.AF_INET6):
            request = struct.pack("=BBBBI2s46s", family, socket.IPPROTO_TCP, 0, 0, states, port.to_bytes(2), b"")
            header = _HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, family, 0)
            sock.send(header + request)
            yield from _answers(sock)


def _answers(sock: socket.socket) -> Iterator[_Row]:
    while True:
        data = memoryview(sock.recv(1 << 16))
        while len(data) >= _HEADER.size:
            length, kind, *_ = _HEADER.unpack_from(data)
            if kind == _NLMSG_DONE:
                return
            if kind == _NLMSG_ERROR or length < _HEADER.size:
                raise OSError("sock_diag refused")
            yield _row(bytes(data[_HEADER.size : length]))
            data = data[(length + 3) & ~3 :]  # netlink(7): messages are aligned to 4 bytes


def _row(message: bytes) -> _Row:
    family, state, _, _, port, peer_port, host, peer, _, _, _, queued, backlog, uid, inode = _MESSAGE.unpack_from(
        message
    )
    size = 4 if family == socket.AF_INET else 16
    # A socket that is bound and no more is told as closed (7) in an answer to a question for 13.
    state = _BOUND_INACTIVE if state == 7 else state
    return _Row(
        host=_spell(host[:size]),
        port=int.from_bytes(port),
        peer=(_spell(peer[:size]), int.from_bytes(peer_port)),
        state=state,
        inode=inode,
        uid=uid,
        queued=queued,
        backlog=backlog,
        v6only=_attribute(message[_MESSAGE.size :], _SKV6ONLY) == b"\x01",
    )


def _attribute(data: bytes, wanted: int) -> bytes:
    """The value of one attribute (netlink(7)); empty if it is not there."""
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if kind == wanted:
            return data[4:length]
        data = data[max(4, (length + 3) & ~3) :]
    return b""


def _from_proc() -> Iterator[_Row]:
    """Every socket (proc_pid_net(5)); rx_queue of a listener is its queue, its backlog is not told."""
    for name in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/self/net/{name}").read_text().splitlines()[1:]
        except OSError:
            continue
        yield from map(_proc_row, map(str.split, lines))


def _proc_row(words: list[str]) -> _Row:
    host, port = _proc_address(words[1])
    return _Row(
        host=host,
        port=port,
        peer=_proc_address(words[2]),
        state=int(words[3], 16),
        inode=int(words[9]),
        uid=int(words[7]),
        queued=int(words[4].partition(":")[2], 16),
        backlog=None,
        v6only=False,
    )


def _proc_address(text: str) -> tuple[str, int]:
    """Words of 32 bits, each in the machine's own byte order, then the port."""
    address, _, port = text.partition(":")
    words: Iterable[int] = (int(address[i : i + 8], 16) for i in range(0, len(address), 8))
    return _spell(b"".join(struct.pack("=I", word) for word in words)), int(port, 16)
