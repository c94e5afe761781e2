from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence

import pytest

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


@pytest.mark.parametrize("value", ["0", "1"])
def test_a_network_whose_queues_move_to_any_member_has_no_groups(value: str) -> None:
    """In a network namespace of its own, which has its own net.ipv4.tcp_migrate_req."""
    code = "from turnout.reuseport.feature_test import *; from turnout.reuseport.program import attach; "
    code += "print(group_works(attach))"
    set_up = f"ip link set lo up; echo {value} > /proc/sys/net/ipv4/tcp_migrate_req"
    namespace = ["unshare", "-n"] if os.geteuid() == 0 else ["unshare", "-rn"]
    script = [*namespace, "sh", "-c", f'{set_up}; exec "$0" "$@"', sys.executable, "-c", code]
    done = subprocess.run(script, capture_output=True, text=True, timeout=60, check=True)
    assert ("tcp_migrate_req is 1" in done.stdout) is (value == "1")
    assert value == "1" or done.stdout == "\n"
