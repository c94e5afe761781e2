"""The kernel's tables of TCP sockets: sock_diag(7), else /proc/net/tcp."""

from __future__ import annotations

import errno
import functools
import os
import socket
import struct
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

# TCP states, include/net/tcp_states.h; a set of them is a mask of bits
ESTABLISHED: Final = 1
SYN_RECV: Final = 3
FIN_WAIT1: Final = 4
FIN_WAIT2: Final = 5
CLOSE_WAIT: Final = 8
LISTEN: Final = 10
BOUND_INACTIVE: Final = 13  # bound, and neither listening nor connected; sock_diag tells since Linux 6.8
SERVED: Final = 1 << ESTABLISHED | 1 << FIN_WAIT1 | 1 << FIN_WAIT2 | 1 << CLOSE_WAIT
EVERY: Final = (1 << (BOUND_INACTIVE + 1)) - 1

_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_SOCK_DESTROY: Final = 21
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_REQUEST_DUMP: Final = 0x1 | 0x300  # NLM_F_REQUEST | NLM_F_DUMP
_REQUEST_ACK: Final = 0x1 | 0x4  # NLM_F_REQUEST | NLM_F_ACK
_SKV6ONLY: Final = 11  # INET_DIAG_SKV6ONLY
_DATAGRAM_BYTES: Final = 1 << 16
_REQUEST: Final = struct.Struct("=BBBxI2s2s44x")  # struct inet_diag_req_v2, with the ports of struct inet_diag_sockid
_ONE: Final = struct.Struct("=BBBxI2s2s4s12x4s12xIII")  # the same of one IPv4 socket, with its whole inet_diag_sockid
_REQUEST_ONE: Final = 0x1  # NLM_F_REQUEST
_NO_COOKIE: Final = 0xFFFFFFFF  # INET_DIAG_NOCOOKIE
_HEADER: Final = struct.Struct("=IHHII")
MESSAGE: Final = struct.Struct("=BBBB2s2s16s16sI8sIIIII")  # struct inet_diag_msg
_NO_RESOURCES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_NETLINK_TIMEOUT: Final = struct.pack("@ll", 1, 0)  # struct timeval


class SocketRow(NamedTuple):
    """One TCP socket of this network namespace. For a listener ``queued`` wait to be accepted, of ``backlog``.

    A tuple is made in a third of a frozen dataclass' time, and there may be thousands.
    """

    host: str
    port: int
    peer: tuple[str, int]
    state: int
    inode: int
    uid: int
    queued: int
    backlog: int | None
    v6only: bool


@functools.lru_cache(1024)
def spell(raw: bytes) -> str:
    """An address in text; an IPv4 address that travels in IPv6 as what it is (RFC 4291, 2.5.5.2)."""
    if len(raw) == 16 and raw.startswith(bytes(10) + b"\xff\xff"):
        raw = raw[12:]
    return socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)


def table(states: int, port: int = 0) -> list[SocketRow]:
    """The sockets in any of ``states``, with ``port`` at this end (0: any); none where the system does not show them.

    Raises OSError: no descriptors or no memory are left, so there may be some.
    """
    try:
        rows = [_row(message) for message in dump(states, port)]
    except OSError:  # no such netlink family, or not for us: gVisor, some containers
        rows = list({_key(row): row for row in _from_proc()}.values())
    return [row for row in rows if 1 << row.state & states and port in {0, row.port}]


def dump(states: int, port: int = 0, *, remote_port: int = 0, extensions: int = 0) -> list[bytes]:
    """Every inet_diag_msg with its attributes, of those sockets alone: thousands of other ones then cost nothing.

    Args:
        states: a mask of them.
        port: at this end; 0: any.
        remote_port: at the other end; 0: any.
        extensions: which attributes to add, as a mask (idiag_ext, sock_diag(7)).

    Raises:
        OSError: there is no such netlink family, or it is not for us.
    """
    messages: list[bytes] = []
    with _netlink() as sock:
        for family in (socket.AF_INET, socket.AF_INET6):
            request = _REQUEST.pack(
                family, socket.IPPROTO_TCP, extensions, states, port.to_bytes(2), remote_port.to_bytes(2)
            )
            sock.send(_header(len(request), _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, family) + request)
            while _take_in(sock.recv(_DATAGRAM_BYTES), messages):
                pass
    return messages


def uid_of(here: tuple[str, int], peer: tuple[str, int]) -> int | None:
    """The user that made the connection from ``peer`` to ``here``, both IPv4 and on this machine; None: not known.

    The kernel looks up this one socket, so it costs the same among many (sock_diag(7), without NLM_F_DUMP).
    """
    addresses = (socket.inet_aton(peer[0]), socket.inet_aton(here[0]))
    ports = (peer[1].to_bytes(2), here[1].to_bytes(2))
    socket_id = (*ports, *addresses, 0, _NO_COOKIE, _NO_COOKIE)
    request = _ONE.pack(socket.AF_INET, socket.IPPROTO_TCP, 0, EVERY, *socket_id)
    messages: list[bytes] = []
    try:
        with _netlink() as sock:
            sock.send(_header(len(request), _SOCK_DIAG_BY_FAMILY, _REQUEST_ONE, 1) + request)
            _take_in(sock.recv(_DATAGRAM_BYTES), messages)
    except OSError:  # it has ended by now, or the system does not show it
        return None
    return _row(messages[0]).uid if messages else None


def destroy(family: int, sockid: bytes) -> None:
    """Abort one socket: its peer gets a reset, its owner ECONNABORTED (sock_diag(7), SOCK_DESTROY, Linux 4.5).

    Args:
        family: AF_INET or AF_INET6.
        sockid: struct inet_diag_sockid, as in a dump; the cookie in it makes sure that it is that socket.

    Raises:
        PermissionError: it takes CAP_NET_ADMIN.
        FileNotFoundError: it has ended by now.
        OSError: the kernel was built without.
    """
    with _netlink() as sock:
        request = struct.pack("=BBBBI48s", family, socket.IPPROTO_TCP, 0, 0, EVERY, sockid)
        sock.send(_header(len(request), _SOCK_DESTROY, _REQUEST_ACK, 1) + request)
        answer = sock.recv(_DATAGRAM_BYTES)
    length, kind, *_ = _HEADER.unpack_from(answer)
    code = -int.from_bytes(answer[_HEADER.size : _HEADER.size + 4], sys.byteorder, signed=True)
    if kind != _NLMSG_ERROR or length < _HEADER.size + 4:
        raise OSError("sock_diag did not say whether it destroyed a socket")
    if code:
        raise OSError(code, os.strerror(code))


def _netlink() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG)
    # not by settimeout, which asks whether there is something to read before each read
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _NETLINK_TIMEOUT)
    return sock


def _header(size: int, kind: int, flags: int, sequence: int) -> bytes:
    return _HEADER.pack(_HEADER.size + size, kind, flags, sequence, 0)


def _take_in(data: bytes, messages: list[bytes]) -> bool:
    """Add what one datagram brought; whether more is to come."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, at)
        if kind == _NLMSG_DONE:
            return False
        if kind == _NLMSG_ERROR or length < _HEADER.size:
            raise OSError("sock_diag refused")
        messages.append(data[at + _HEADER.size : at + length])
        at += (length + 3) & ~3  # netlink(7): messages are aligned to 4 bytes
    return True


def _row(message: bytes) -> SocketRow:
    family, state, _, _, port, peer_port, host, peer, _, _, _, queued, backlog, uid, inode = MESSAGE.unpack_from(
        message
    )
    size = 4 if family == socket.AF_INET else 16
    # A socket that is bound and no more has state 7 (closed) in an answer to a question for 13.
    state = BOUND_INACTIVE if state == 7 else state
    return SocketRow(
        host=spell(host[:size]),
        port=int.from_bytes(port),
        peer=(spell(peer[:size]), int.from_bytes(peer_port)),
        state=state,
        inode=inode,
        uid=uid,
        queued=queued,
        backlog=backlog,
        v6only=size == 16 and attribute(message[MESSAGE.size :], _SKV6ONLY) == b"\x01",
    )


def attribute(data: bytes, wanted: int) -> bytes:
    """The value of one attribute (netlink(7)); empty if it is not there."""
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if kind == wanted:
            return data[4:length]
        data = data[max(4, (length + 3) & ~3) :]
    return b""


def _key(row: SocketRow) -> tuple[object, ...]:
    """What is one socket's alone: of a connection its two ends, for its inode comes when it is accepted."""
    return (row.host, row.port, row.peer, row.inode if row.state == LISTEN else 0)


def _from_proc() -> Iterator[SocketRow]:
    """Every socket (proc_pid_net(5)); rx_queue of a listener is its queue, its backlog is unknown.

    A socket may come twice: the kernel hands the table out in pieces, and finds where it was by counting.
    """
    for name in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/self/net/{name}").read_text().splitlines()[1:]
        except OSError as error:
            if error.errno in _NO_RESOURCES:
                raise
            continue
        yield from map(_proc_row, map(str.split, lines))


def _proc_row(words: list[str]) -> SocketRow:
    host, port = _proc_address(words[1])
    return SocketRow(
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
    return spell(b"".join(struct.pack("=I", word) for word in words)), int(port, 16)
