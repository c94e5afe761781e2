"""What a daemon's bind(2) is about: the address that it names, and the socket, as a copy that can be bound for it."""

from __future__ import annotations

import errno
import functools
import ipaddress
import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from turnout.activation.seccomp import WaitingCall
from turnout.system.files import opened
from turnout.system.pidfd import PIDFD_THREAD, copy_of

LOOPBACK: Final = "127.0.0.1"
_READ_BYTES: Final = 28  # sizeof(struct sockaddr_in6); what a longer length has behind it the kernel ignores
_IPV4_BYTES: Final = 16
_IPV6_BYTES: Final = 24  # SIN6_LEN_RFC2133: the kernel takes an address without its scope, too
_TCP: Final = (0, socket.IPPROTO_TCP, 262)  # 262: IPPROTO_MPTCP, the default of Go since 1.24
_MAPPED: Final = bytes(10) + b"\xff\xff"
_MAPPED_PREFIX: Final = "::ffff:"
_SO_NETNS_COOKIE: Final = 71  # Linux 5.14


@dataclass(frozen=True, slots=True)
class BindAddress:
    """An address of IPv4 or IPv6, as a daemon names it. ``host``: numeric, without a scope; ``port``: 0 to 65535."""

    host: str
    port: int

    @property
    def is_local(self) -> bool:
        """Whether clients of this machine reach it: loopback, or a wildcard."""
        address = ipaddress.ip_address(self.host)
        return address.is_loopback or address.is_unspecified


def parse_address(data: bytes) -> BindAddress | None:
    """What struct sockaddr_in or sockaddr_in6 says (ip(7), ipv6(7)); None: it is neither, or too short.

    AF_UNSPEC with the wildcard address is IPv4: the kernel takes it for the sake of old programs (inet_bind). So is an
    address that is mapped into IPv6, with which Java binds.
    """
    if len(data) < _IPV4_BYTES:
        return None
    (family,) = struct.unpack_from("=H", data)
    (port,) = struct.unpack_from("!H", data, 2)
    if family == socket.AF_INET or (family == socket.AF_UNSPEC and data[4:8] == bytes(4)):
        return BindAddress(socket.inet_ntop(socket.AF_INET, data[4:8]), port)
    if family == socket.AF_INET6 and len(data) >= _IPV6_BYTES and data[8:20] == _MAPPED:
        return BindAddress(socket.inet_ntop(socket.AF_INET, data[20:24]), port)
    if family == socket.AF_INET6 and len(data) >= _IPV6_BYTES:
        return BindAddress(socket.inet_ntop(socket.AF_INET6, data[8:24]), port)
    return None


def address_of(call: WaitingCall) -> BindAddress | None:
    """The address of a bind, read once: the daemon may write another one there at any time.

    None: it is of another kind, or lies where the daemon has no memory; the kernel says so when it proceeds.

    Raises:
        PermissionError: the daemon may not be looked at (ptrace(2), PTRACE_MODE_ATTACH_FSCREDS).
        OSError: its thread has ended.
    """
    _, pointer, length, *_ = call.arguments
    size = min(length & 0xFFFFFFFF, _READ_BYTES)
    with opened(os.open(f"/proc/{call.thread}/mem", os.O_RDONLY | os.O_CLOEXEC)) as memory:
        try:
            return parse_address(os.pread(memory, size, pointer))
        except (OSError, OverflowError):  # EIO: nothing is mapped there; beyond 2**63 nothing ever is
            return None


def socket_of(call: WaitingCall) -> socket.socket | None:
    """A copy of the socket that a call is about, the caller's to close; None: it is no TCP socket.

    Check that the call is valid afterwards: the number of a thread that ended may be another one's.

    Raises:
        PermissionError: the daemon may not be looked at.
        OSError: it has no such descriptor, its thread has ended, or none is left here.
    """
    try:
        copy = copy_of(call.thread, call.fd, flags=PIDFD_THREAD)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        copy = copy_of(process_of(call.thread), call.fd)  # whose first thread has to live, and to share its descriptors
    try:
        sock = socket.socket(fileno=copy)
    except OSError:  # ENOTSOCK
        os.close(copy)
        return None
    if sock.family in {socket.AF_INET, socket.AF_INET6} and sock.type == socket.SOCK_STREAM and sock.proto in _TCP:
        return sock
    sock.close()
    return None


def process_of(thread: int) -> int:
    """The process of a thread: pidfd_open(2) takes no other before Linux 6.9. Raises OSError: the thread has ended.

    The name that a daemon gives itself stands there too, and has no line feed, but may have what Python splits at.
    """
    for line in Path(f"/proc/{thread}/status").read_bytes().split(b"\n"):
        if line.startswith(b"Tgid:"):
            return int(line.split()[1])
    raise ProcessLookupError(f"no thread {thread}")


def is_in_our_network(sock: socket.socket) -> bool:
    """Whether a socket has our network namespace (network_namespaces(7)): in another one our ports mean nothing."""
    return _network_of(sock) == _our_network()


@functools.cache
def _our_network() -> bytes:
    with socket.socket(socket.AF_UNIX) as ours:
        return _network_of(ours)


def _network_of(sock: socket.socket) -> bytes:
    return sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)


def bind_in_place(sock: socket.socket, port: int, host: str = LOOPBACK) -> None:
    """Bind a daemon's own socket to an address of ours; port 0: any that is free.

    Nothing in the daemon is replaced, so its options, its duplicates and what it registered with epoll(7) stand. An
    IPv6 socket is bound to the same address, mapped (ipv6(7)): it serves IPv4 clients, as a dual-stack one does.
    SO_REUSEPORT lets a second worker, or the next socket of a daemon that binds again, have the port as well: it takes
    one owner of all sockets there (socket(7)).

    Raises:
        OSError: another socket has the port.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what keeps the port free until now is bound there
    if port:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if os.fstat(sock.fileno()).st_uid != os.geteuid():
            os.fchown(sock.fileno(), os.geteuid(), -1)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind((f"{_MAPPED_PREFIX}{host}", port))
    else:
        sock.bind((host, port))


def is_bound_to(sock: socket.socket, port: int, host: str = LOOPBACK) -> bool:
    """Whether it has that address already: a signal may have had its bind called again."""
    return sock.getsockname()[:2] in {(host, port), (f"{_MAPPED_PREFIX}{host}", port)}
