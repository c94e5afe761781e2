from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Sequence

from turnout.reuseport.feature_test import group_works

_ATTACH = 51  # SO_ATTACH_REUSEPORT_CBPF, socket(7)


def attach(sock: socket.socket, indexes: Sequence[int]) -> None:
    """A program of one instruction: return the index (linux/filter.h)."""
    (index,) = indexes
    code = struct.pack("HBBI", 0x06, 0, 0, index)
    held = ctypes.create_string_buffer(code, len(code))
    sock.setsockopt(socket.SOL_SOCKET, _ATTACH, struct.pack("HxxxxxxQ", 1, ctypes.addressof(held)))


def test_here_a_group_gives_each_connection_to_the_member_that_was_chosen() -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  # a number is all that is wanted
    assert group_works(attach) == ""
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_choice_that_the_kernel_does_not_heed_is_found_out() -> None:
    assert "another one got" in group_works(lambda sock, _: attach(sock, [0]))


def test_a_kernel_that_refuses_is_told_with_its_reason() -> None:
    def refuse(_sock: socket.socket, _indexes: Sequence[int]) -> None:
        raise OSError(errno.ENOPROTOOPT, "Protocol not available")

    assert "Protocol not available" in group_works(refuse)
