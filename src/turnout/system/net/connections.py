"""Connections of other processes: what the kernel counts of each, and how they are ended from outside."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import struct
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from turnout.system.net.sock_diag import MESSAGE, SERVED, SYN_RECV, attribute, destroy, dump, spell
from turnout.system.pidfd import socket_of

_INFO: Final = 2  # INET_DIAG_INFO: struct tcp_info, linux/tcp.h
_AGES: Final = struct.Struct("=44xI4xII")  # tcpi_last_data_sent, tcpi_last_data_recv, tcpi_last_ack_recv
_BYTES: Final = struct.Struct("=120xQQ")  # tcpi_bytes_acked, tcpi_bytes_received (Linux 4.1)
_SOCKID: Final = slice(4, 52)  # struct inet_diag_sockid inside inet_diag_msg
_FIRST_TIMEOUT_S: Final = 1.0  # TCP_TIMEOUT_INIT: after so long a SYN-ACK is sent again, then after twice as long, …
_CONFIRMED_WITHIN_MS: Final = 500  # RFC 1122, 4.2.3.2: the most that an acknowledgement may be delayed
_AF_UNSPEC: Final = struct.pack("=H14x", socket.AF_UNSPEC)


@dataclass(frozen=True, slots=True)
class Connection:
    """One TCP connection of this network namespace, seen from the side that accepted it.

    Args:
        cookie: the kernel's number for it, never used again (SO_COOKIE, socket(7)).
        inode: that of its socket; 0 while no process has accepted it.
        unread: bytes that came and were not read yet.
        unsent: bytes that were written and did not arrive yet.
        bytes_in: bytes that came.
        bytes_out: bytes that arrived at the other end.
        sent_ago_ms: since data was last sent, or since the connection began; in the kernel's ticks, 1 to 10 ms.
        received_ago_ms: likewise since data last came.
        heard_ago_ms: likewise since the other end last confirmed anything.
        sockid: what SOCK_DESTROY takes.
    """

    cookie: int
    family: int
    host: str
    port: int
    peer: tuple[str, int]
    inode: int
    unread: int
    unsent: int
    bytes_in: int
    bytes_out: int
    sent_ago_ms: int
    received_ago_ms: int
    heard_ago_ms: int
    sockid: bytes


@dataclass(frozen=True, slots=True)
class Handshake:
    """A connection that is being made: its SYN came ``age_s`` seconds ago, and a listener has it."""

    host: str
    port: int
    age_s: float


def connections_at(port: int) -> list[Connection]:
    """The connections with ``port`` at this end that are not closed here, accepted or not.

    Raises OSError: the kernel does not tell.
    """
    return [_connection(message) for message in dump(SERVED, port, extensions=1 << (_INFO - 1))]


def connected_to(port: int) -> dict[tuple[str, int], int]:
    """The connections with ``port`` at the other end: the inode of each by its address here.

    Raises OSError: the kernel does not tell.
    """
    rows = [_connection(message) for message in dump(SERVED, remote_port=port)]
    return {(row.host, row.port): row.inode for row in rows}


def handshakes_at(port: int) -> list[Handshake]:
    """The handshakes at ``port``, those that wait for a first byte (TCP_DEFER_ACCEPT) included.

    Raises OSError: the kernel does not tell.
    """
    return [_handshake(message) for message in dump(1 << SYN_RECV, port)]


def end(connection: Connection, holders: Iterable[tuple[int, int]]) -> bool:
    """End a connection in order, from outside: its owner reads the end of the stream, and so does its peer.

    Args:
        connection: which.
        holders: processes that have it, each with its descriptor there.

    Returns:
        Whether it could be done; not where no holder may be traced (:func:`turnout.system.pidfd.copy_of`).
    """
    return any(_shut_down(pid, fd, connection.inode) for pid, fd in holders)


def reset(connection: Connection, holders: Iterable[tuple[int, int]]) -> bool:
    """Break a connection off: its peer gets a reset.

    By SOCK_DESTROY where that is allowed; else by disconnecting a copy of the socket (connect(2) to AF_UNSPEC), for
    which it takes what :func:`end` takes.

    Args:
        connection: which.
        holders: processes that have it, each with its descriptor there.

    Returns:
        Whether it could be done, or it has ended by itself.
    """
    try:
        destroy(connection.family, connection.sockid)
    except FileNotFoundError:
        return True
    except OSError:
        return any(_disconnect(pid, fd, connection.inode) for pid, fd in holders)
    return True


def _shut_down(pid: int, fd: int, inode: int) -> bool:
    try:
        with socket_of(pid, fd, inode) as sock:
            sock.shutdown(socket.SHUT_RDWR)
    except OSError as error:
        return error.errno == errno.ENOTCONN  # the other end was faster
    return True


def _disconnect(pid: int, fd: int, inode: int) -> bool:
    with contextlib.suppress(OSError), socket_of(pid, fd, inode) as sock:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.connect(sock.fileno(), _AF_UNSPEC, len(_AF_UNSPEC)) == 0:
            return True
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return False


def _connection(message: bytes) -> Connection:
    family, _, _, _, port, peer_port, host, peer, _, cookie, _, unread, unsent, _, inode = MESSAGE.unpack_from(message)
    size = 4 if family == socket.AF_INET else 16
    info = attribute(message[MESSAGE.size :], _INFO).ljust(_BYTES.size, b"\0")
    sent_ms, received_ms, heard_ms = _AGES.unpack_from(info)
    bytes_out, bytes_in = _BYTES.unpack_from(info)
    return Connection(
        cookie=int.from_bytes(cookie, sys.byteorder),
        family=family,
        host=spell(host[:size]),
        port=int.from_bytes(port),
        peer=(spell(peer[:size]), int.from_bytes(peer_port)),
        inode=inode,
        unread=unread,
        unsent=unsent,
        bytes_in=bytes_in,
        bytes_out=bytes_out,
        sent_ago_ms=sent_ms,
        received_ago_ms=received_ms,
        heard_ago_ms=heard_ms,
        sockid=message[_SOCKID],
    )


def _handshake(message: bytes) -> Handshake:
    """Its age follows from its timer: the SYN-ACK was sent again ``retries`` times, and will be in ``left_ms``."""
    family, _, _, retries, port, _, host, _, _, _, left_ms, *_ = MESSAGE.unpack_from(message)
    size = 4 if family == socket.AF_INET else 16
    waited_s = _FIRST_TIMEOUT_S * (2 ** (retries + 1) - 1)
    return Handshake(spell(host[:size]), int.from_bytes(port), max(0.0, waited_s - left_ms / 1000))


def is_answered(connection: Connection, before: Connection | None, *, known: bool) -> bool:
    """Whether the last bytes of a connection went to its peer, which then waits for no answer, as far as can be seen.

    Args:
        connection: as it is.
        before: as it was at an earlier look; None: there was none.
        known: what this answered for that look.

    The kernel counts time in ticks: a quick answer has the same as its question, and so has the next question. Then
    the byte counts of two looks may tell; so may the peer's kernel, which from the second answer on waits a moment
    (delayed acknowledgement, RFC 1122, 4.2.3.2) and then confirms it alone, unless the next question does so. What
    cannot be told is taken for a question.
    """
    came = before is None or connection.bytes_in != before.bytes_in
    went = before is None or connection.bytes_out != before.bytes_out
    if before is not None and not (came and went):
        return went or (known and not came)
    if not connection.bytes_in or not connection.bytes_out:
        return not connection.bytes_in
    if connection.sent_ago_ms != connection.received_ago_ms:
        return connection.sent_ago_ms < connection.received_ago_ms
    return 0 < connection.received_ago_ms - connection.heard_ago_ms <= _CONFIRMED_WITHIN_MS  # later: a keepalive's


def at_addresses(connections: Iterable[Connection], addresses: Sequence[tuple[str, int]]) -> list[Connection]:
    """The connections that came to one of these addresses; a wildcard stands for all of its family."""
    return [connection for connection in connections if any(_is_at(connection, *address) for address in addresses)]


def _is_at(connection: Connection, host: str, port: int) -> bool:
    if connection.port != port:
        return False
    if host in {"0.0.0.0", "::"}:  # noqa: S104  # compared, not bound
        return (":" in connection.host) == (":" in host)  # a socket of IPv6 may have a client of IPv4
    return connection.host == host
