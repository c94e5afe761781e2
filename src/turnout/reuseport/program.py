"""The program by which the kernel chooses a member of a SO_REUSEPORT group. Standard library only, no privileges.

socket(7), SO_ATTACH_REUSEPORT_CBPF (Linux 4.5): a classic BPF program sees the packet that opens a connection; what it
returns is the index of the member that gets it, in the order in which the members began to listen. When one closes,
the last one takes its index. An index beyond the last is no fault: a member is then chosen by hash.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from turnout.core.slots import SOURCE_PREFIX, source_of

SO_ATTACH_REUSEPORT_CBPF: Final = 51  # include/uapi/asm-generic/socket.h; the same on x86_64 and aarch64
_NET: Final = 0xFFF00000  # SKF_NET_OFF, include/uapi/linux/filter.h: from here on offsets count from the IP header
_RANDOM: Final = 0xFFFFF000 + 56  # SKF_AD_OFF + SKF_AD_RANDOM, likewise
_SOURCE_AT: Final = 12  # RFC 791, 3.1
_PORT_AT: Final = 20  # RFC 9293, 3.1, behind an IP header without options
_IPV4: Final = 0x45  # version 4, and no options
_NETWORK: Final = int.from_bytes(socket.inet_aton(f"{SOURCE_PREFIX}0"))
LOCAL: Final = "127.0.0.1"
_IS_LOCAL: Final = 1 << 24  # above an index and a port
DOORS_MOST: Final = 100  # a jump of classic BPF reaches 255 instructions
# include/uapi/linux/bpf_common.h: class, size and mode, or class, operation and source, in one byte
_LOAD_BYTE, _LOAD_HALF, _LOAD_WORD, _LOAD_NUMBER = 0x30, 0x28, 0x20, 0x00
_AND, _MODULO, _SHIFT, _OR_X, _IF_EQUAL, _JUMP = 0x54, 0x94, 0x64, 0x4C, 0x15, 0x05
_TO_X, _TO_A, _RETURN = 0x07, 0x87, 0x06


@dataclass(frozen=True, slots=True)
class Door:
    """A connection that reaches one member of the group, by its source address and port.

    Both are those of a socket that turnout holds, without SO_REUSEADDR: no other program can have them.

    Args:
        index: of the member, 0 to 255.
        host: 127.0.0.1, which daemons know as local; or the address that names the index (core/slots.py).
        port: of the connection's source.

    Raises:
        ValueError: it is another address.
    """

    index: int
    host: str
    port: int

    def __post_init__(self) -> None:
        if self.host not in {LOCAL, source_of(self.index)}:
            raise ValueError(f"{self.host} does not name index {self.index}")

    @property
    def key(self) -> int:
        """As the program makes it of a packet."""
        return (_IS_LOCAL if self.host == LOCAL else self.index << 16) | self.port


def program(indexes: Sequence[int], doors: Collection[Door] = ()) -> bytes:
    """A selection as the kernel reads it: the index of a door that the packet comes from, else one of ``indexes``.

    A daemon whose workers have a listener each has several: each connection goes to any of them.
    """
    steps: list[tuple[int, int, int, int]] = []
    if doors:
        behind = 2 * len(doors)
        steps = [
            (_LOAD_BYTE, 0, 0, _NET),
            (_IF_EQUAL, 0, behind + 13, _IPV4),
            (_LOAD_WORD, 0, 0, _NET + _SOURCE_AT),
            (_IF_EQUAL, 7, 0, int.from_bytes(socket.inet_aton(LOCAL))),
            (_TO_X, 0, 0, 0),
            (_AND, 0, 0, 0xFFFFFF00),
            (_IF_EQUAL, 0, behind + 8, _NETWORK),
            (_TO_A, 0, 0, 0),
            (_AND, 0, 0, 0xFF),
            (_SHIFT, 0, 0, 16),
            (_JUMP, 0, 0, 1),
            (_LOAD_NUMBER, 0, 0, _IS_LOCAL),
            (_TO_X, 0, 0, 0),
            (_LOAD_HALF, 0, 0, _NET + _PORT_AT),
            (_OR_X, 0, 0, 0),
        ]
        for door in doors:
            steps += [(_IF_EQUAL, 0, 1, door.key), (_RETURN, 0, 0, door.index)]
    if len(indexes) > 1:
        steps += [(_LOAD_WORD, 0, 0, _RANDOM), (_MODULO, 0, 0, len(indexes))]
    for number, index in enumerate(indexes[:-1]):
        steps += [(_IF_EQUAL, 0, 1, number), (_RETURN, 0, 0, index)]
    steps.append((_RETURN, 0, 0, indexes[-1]))
    return b"".join(struct.pack("HBBI", *step) for step in steps)


def attach(sock: socket.socket, indexes: Sequence[int], doors: Collection[Door] = ()) -> None:
    """Have new connections to this listener's group go to the members at ``indexes``: one call, at once, for all of it.

    Args:
        sock: any member.
        indexes: at least one.
        doors: :data:`DOORS_MOST` at most.

    Raises:
        OSError: the kernel refused; EINVAL: it is no member of a group (yet).
    """
    code = program(indexes, doors)
    held = ctypes.create_string_buffer(code, len(code))
    sock.setsockopt(
        socket.SOL_SOCKET,
        SO_ATTACH_REUSEPORT_CBPF,
        struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(held)),  # struct sock_fprog
    )


def is_shared(sock: socket.socket) -> bool:
    """Whether others may join this listener: it is, or may become, a member of a group."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) != 0


def let_go(sock: socket.socket, home: int, doors: Collection[Door] = ()) -> None:
    """Have everything come to the router, at index ``home``; where there is no group, it does so anyway.

    Raises:
        OSError: the kernel refused.
    """
    if is_shared(sock):
        try:
            attach(sock, [home], doors)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
