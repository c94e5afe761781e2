"""The program by which the kernel chooses a member of a SO_REUSEPORT group. Standard library only, no privileges.

socket(7), SO_ATTACH_REUSEPORT_CBPF (Linux 4.5): a classic BPF program sees the packet that opens a connection; what it
returns is the index of the member that gets it, in the order in which the members began to listen. When one closes,
the last one takes its index. An index that nobody has is no fault: a member is then chosen by hash.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from collections.abc import Sequence
from typing import Final

from turnout.core.slots import SOURCE_PREFIX

SO_ATTACH_REUSEPORT_CBPF: Final = 51  # include/uapi/asm-generic/socket.h; the same on x86_64 and aarch64
_NET: Final = 0xFFF00000  # SKF_NET_OFF, include/uapi/linux/filter.h: from here on offsets count from the IP header
_RANDOM: Final = 0xFFFFF000 + 56  # SKF_AD_OFF + SKF_AD_RANDOM, likewise
_SOURCE_AT: Final = 12  # RFC 791, 3.1
_NETWORK: Final = int.from_bytes(socket.inet_aton(f"{SOURCE_PREFIX}0"))
# include/uapi/linux/bpf_common.h: class, size and mode, or class, operation and source, in one byte
_LOAD_BYTE, _LOAD_WORD, _AND, _MODULO, _IF_EQUAL = 0x30, 0x20, 0x54, 0x94, 0x15
_TO_X, _TO_A, _RETURN, _RETURN_A = 0x07, 0x87, 0x06, 0x16


def program(indexes: Sequence[int]) -> bytes:
    """A selection as the kernel reads it: the index that the source names, if it is of ours, else one of ``indexes``.

    A daemon whose workers have a listener each has several: each connection goes to any of them.
    """
    several = len(indexes) > 1
    steps = [
        (_LOAD_BYTE, 0, 0, _NET),
        (_AND, 0, 0, 0xF0),
        (_IF_EQUAL, 0, 7, 0x40),  # IPv4; else to the last steps
        (_LOAD_WORD, 0, 0, _NET + _SOURCE_AT),
        (_TO_X, 0, 0, 0),
        (_AND, 0, 0, 0xFFFFFF00),
        (_IF_EQUAL, 0, 3, _NETWORK),
        (_TO_A, 0, 0, 0),
        (_AND, 0, 0, 0xFF),
        (_RETURN_A, 0, 0, 0),
        *([(_LOAD_WORD, 0, 0, _RANDOM), (_MODULO, 0, 0, len(indexes))] if several else []),
    ]
    for number, index in enumerate(indexes[:-1]):
        steps += [(_IF_EQUAL, 0, 1, number), (_RETURN, 0, 0, index)]
    steps.append((_RETURN, 0, 0, indexes[-1]))
    return b"".join(struct.pack("HBBI", *step) for step in steps)


def attach(sock: socket.socket, indexes: Sequence[int]) -> None:
    """Have new connections to this listener's group go to the members at ``indexes``: one call, at once, for all of it.

    Raises:
        OSError: the kernel refused; EINVAL: it is no member of a group (yet).
    """
    code = program(indexes)
    held = ctypes.create_string_buffer(code, len(code))
    sock.setsockopt(
        socket.SOL_SOCKET,
        SO_ATTACH_REUSEPORT_CBPF,
        struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(held)),  # struct sock_fprog
    )


def is_shared(sock: socket.socket) -> bool:
    """Whether others may join this listener: it is, or may become, a member of a group."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) != 0


def let_go(sock: socket.socket, home: int) -> None:
    """Have everything come to the router, at index ``home``; where there is no group, it does so anyway.

    Raises:
        OSError: the kernel refused.
    """
    if is_shared(sock):
        try:
            attach(sock, [home])
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
