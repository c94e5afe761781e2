"""Steering by an sk_lookup program: any daemon on any port of its own, which need not know of it (Linux 5.9).

For a new connection to one of the fixed addresses the kernel runs a program that looks into a map of one slot; the
listening socket that it finds there gets the connection, whatever address it is bound to. With an empty slot the
connection goes on as if there were no program: to the router's own listener. The slot holds no reference, so a daemon
that ends leaves it by itself.

It takes CAP_BPF and CAP_NET_ADMIN, and for the daemon's socket what pidfd_getfd(2) takes. Program and maps are pinned,
where there is a bpf filesystem: the kernel then goes on steering while no router lives, and the next one takes it over.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable, Sequence
from typing import ClassVar, Final

from turnout.errors import SteeringError
from turnout.planes.direct import bpf
from turnout.planes.direct.bpf import Op
from turnout.planes.direct.bpf_pins import Pins
from turnout.planes.direct.steering import in_words
from turnout.planes.plane import Upstream

# struct bpf_sk_lookup, linux/bpf.h: where each field is
_FAMILY: Final = 8
_PROTOCOL: Final = 12
_LOCAL_IP4: Final = 40  # network byte order
_LOCAL_IP6: Final = 44  # four words
_LOCAL_PORT: Final = 60  # host byte order
# enum bpf_func_id
_MAP_LOOKUP: Final = 1
_SK_RELEASE: Final = 86
_SK_ASSIGN: Final = 124
_SK_PASS: Final = 1

_LINK: Final = "link"
_SLOTS: Final = {socket.AF_INET: "ipv4", socket.AF_INET6: "ipv6"}
_REFUSED: Final = frozenset({errno.EPERM, errno.EACCES})
NO_RIGHT: Final = "plane sk_lookup takes CAP_BPF and CAP_NET_ADMIN"
Address = tuple[socket.AddressFamily, str, int]


def program(addresses: Sequence[Address], slots: dict[socket.AddressFamily, int]) -> bytes:
    """The program: family, protocol, local address and port are one of ours? Then whatever is in that family's slot.

    By port alone a daemon would answer on every address of the host.

    Args:
        addresses: the fixed ones; a wildcard host stands for every address of its family.
        slots: the map for each family.
    """
    lines: list[Op | str] = [
        Op(bpf.MOV_X, dst=6, src=1),
        Op(bpf.LOAD_W, dst=1, src=6, off=_PROTOCOL),
        Op(bpf.JUMP32_NE_K, dst=1, imm=socket.IPPROTO_TCP, to="pass"),
    ]
    for number, (family, host, port) in enumerate(addresses):
        other = f"not {number}"
        field = _LOCAL_IP4 if family == socket.AF_INET else _LOCAL_IP6
        raw = socket.inet_pton(family, host)
        words = struct.unpack(f"={len(raw) // 4}I", raw) if any(raw) else ()
        wanted = [(_FAMILY, int(family)), (_LOCAL_PORT, port)]
        wanted += [(field + 4 * index, word) for index, word in enumerate(words)]
        for off, value in wanted:
            lines += [Op(bpf.LOAD_W, dst=1, src=6, off=off), Op(bpf.JUMP32_NE_K, dst=1, imm=value, to=other)]
        lines += [Op(bpf.JUMP, to=_SLOTS[family]), other]
    lines.append(Op(bpf.JUMP, to="pass"))
    for family in sorted({family for family, _, _ in addresses}):  # what nothing leads to the verifier refuses
        lines += [
            _SLOTS[family],
            Op(bpf.STORE_W_K, dst=10, off=-4, imm=0),  # key 0, on the stack
            Op(bpf.LOAD_64, dst=1, src=bpf.MAP_FD, imm=slots[family]),
            Op(bpf.MOV_X, dst=2, src=10),
            Op(bpf.ADD_K, dst=2, imm=-4),
            Op(bpf.CALL, imm=_MAP_LOOKUP),
            Op(bpf.JUMP_EQ_K, dst=0, imm=0, to="pass"),
            Op(bpf.MOV_X, dst=7, src=0),
            Op(bpf.MOV_X, dst=1, src=6),
            Op(bpf.MOV_X, dst=2, src=0),
            Op(bpf.MOV_K, dst=3, imm=0),
            Op(bpf.CALL, imm=_SK_ASSIGN),
            Op(bpf.MOV_X, dst=1, src=7),
            Op(bpf.CALL, imm=_SK_RELEASE),  # the lookup took a reference
            Op(bpf.JUMP, to="pass"),
        ]
    return bpf.assemble([*lines, "pass", Op(bpf.MOV_K, dst=0, imm=_SK_PASS), Op(bpf.EXIT)])


def lacking() -> str:
    """Why no program can be linked here, tried with one that matches nothing; empty where it can be."""
    trial = SkLookup(lambda _upstream: socket.socket(), None)  # which is never asked for a listener
    try:
        trial.begin()
    except (OSError, SteeringError) as error:
        return in_words(error)
    finally:
        trial.close()
    return ""


class SkLookup:
    """The steering (:class:`turnout.planes.direct.steering.Steering`). Owns link and maps, and the pins of both.

    Args:
        listener_of: a copy of a daemon's listening socket, which is closed here at once; raises SteeringError or
            OSError where it is not to be had.
        pins: where the objects stay; None: nowhere, and steering ends with the router.
    """

    name: ClassVar[str] = "sk_lookup"

    def __init__(self, listener_of: Callable[[Upstream], socket.socket], pins: Pins | None) -> None:
        self._listener_of = listener_of
        self._pins = pins
        self._addresses: list[Address] = []
        self._link = -1
        self._slots: dict[socket.AddressFamily, int] = {}
        self._filled: set[socket.AddressFamily] = set()

    def listen(self, sock: socket.socket) -> None:
        host, port = sock.getsockname()[:2]
        if (sock.family, host, port) not in self._addresses:
            self._addresses.append((sock.family, host, port))
            if self._link >= 0:
                self._load()

    def unlisten(self, address: tuple[str, int]) -> None:
        self._addresses = [known for known in self._addresses if known[1:] != address]
        if self._link >= 0:
            self._load()

    def steer(self, upstream: Upstream | None) -> None:
        if upstream is None:
            self._empty()
            return
        with self._listener_of(upstream) as sock:
            wanted = self._families_of(sock)
            self.begin()
            for family in wanted:
                bpf.put_socket(self._slots[family], sock.fileno())
                self._filled.add(family)
        for family in _SLOTS.keys() - wanted:
            bpf.take_socket_out(self._slots[family])
            self._filled.discard(family)

    def is_in_effect(self) -> bool:
        return all(bpf.has_socket(self._slots[family]) for family in self._filled)

    def release(self) -> None:
        for fd in (self._link, *self._slots.values()):
            if fd >= 0:
                os.close(fd)
        self._link = -1
        self._slots = {}
        self._filled.clear()

    def close(self) -> None:
        with contextlib.suppress(OSError, SteeringError):
            self._empty()
        with contextlib.suppress(OSError):
            self._unpin()
        self.release()

    def _families_of(self, sock: socket.socket) -> set[socket.AddressFamily]:
        """Of the fixed addresses' families those that this listener can serve; the others stay with the router."""
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise SteeringError("what the daemon has at its port does not listen")
        ours = {family for family, _, _ in self._addresses}
        theirs = {sock.family}
        if sock.family == socket.AF_INET6 and not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
            theirs.add(socket.AF_INET)  # ipv6(7): such a socket takes both
        if not ours & theirs:
            raise SteeringError(f"the daemon listens on {_SLOTS[sock.family]}, and the fixed address is of the other")
        return ours & theirs

    def begin(self) -> None:
        """Take over what a dead router has pinned, else make new objects; once.

        Raises:
            SteeringError: it takes rights that are not to be had.
            OSError: the kernel is too old, or no descriptors are left.
        """
        if self._link >= 0:
            return
        try:
            if self._adopt():
                return
            self._make()
        except OSError as error:
            self.release()
            if error.errno in _REFUSED:
                raise SteeringError(f"{in_words(error)}: {NO_RIGHT}") from error
            raise

    def _adopt(self) -> bool:
        if self._pins is None or not self._pins.exist():
            return False
        try:
            fds = self._pins.open([_LINK, *_SLOTS.values()], bpf.pinned)
            self._link = fds[_LINK]
            self._slots = {family: fds[name] for family, name in _SLOTS.items()}
            self._load()
        except (OSError, SteeringError):  # of another version, or broken: what it steered ends, and new ones are made
            self.release()
            self._pins.remove()
            return False
        self._filled = {family for family, fd in self._slots.items() if bpf.has_socket(fd)}
        return True

    def _make(self) -> None:
        for family in _SLOTS:
            self._slots[family] = bpf.make_socket_map()
        self._load()
        if self._pins is not None:
            objects = {_LINK: self._link} | {name: self._slots[family] for family, name in _SLOTS.items()}
            with contextlib.suppress(OSError, SteeringError):  # then it ends with this process; doctor says so
                self._pins.make(objects, bpf.pin)

    def _load(self) -> None:
        """The program for the addresses as they are now, in the place of the one that runs."""
        fd = bpf.load_sk_lookup(program(self._addresses, self._slots))
        try:
            if self._link >= 0:
                bpf.update_link(self._link, fd)
                return
            netns = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                self._link = bpf.link_sk_lookup(fd, netns)
            finally:
                os.close(netns)
        finally:
            os.close(fd)  # the link keeps the program

    def _empty(self) -> None:
        self._filled.clear()
        if self._link < 0:
            self._unpin()  # what a dead router left would go on steering to where it pointed
            return
        for fd in self._slots.values():
            bpf.take_socket_out(fd)

    def _unpin(self) -> None:
        if self._pins is not None and self._pins.exist():
            self._pins.remove()
