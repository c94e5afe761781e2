"""Run a command in which a system call fails, as in a container that forbids it or on a kernel that is too old.

    python without_call.py CALL ERRNO COMMAND...

CALL is one of CALLS; a filter of seccomp(2) answers it with ERRNO, for the command and all that it starts.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from typing import Final

# by machine: number of the call; then which argument of it must have which value, if that matters
CALLS: Final[dict[str, tuple[dict[str, int], tuple[int, int] | None]]] = {
    "bpf": ({"x86_64": 321, "aarch64": 280}, None),
    "pidfd_getfd": ({"x86_64": 438, "aarch64": 438}, None),
    "attach": ({"x86_64": 54, "aarch64": 208}, (2, 51)),  # setsockopt(2) of SO_ATTACH_REUSEPORT_CBPF
}
_NO_NEW_PRIVILEGES: Final = 38  # PR_SET_NO_NEW_PRIVS, linux/prctl.h
_SECCOMP: Final = 22  # PR_SET_SECCOMP
_FILTER: Final = 2  # SECCOMP_MODE_FILTER
# linux/bpf_common.h: a word of struct seccomp_data (nr at 0, args from 16 on) is loaded, compared, and answered
_LOAD, _IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _FAIL = 0x7FFF0000, 0x00050000


def program(call: str, code: int) -> bytes:
    numbers, argument = CALLS[call]
    checks = [(0, numbers[platform.machine()]), *([(16 + 8 * argument[0], argument[1])] if argument else [])]
    steps: list[tuple[int, int, int, int]] = []
    for at, (offset, value) in enumerate(checks):
        steps += [(_LOAD, 0, 0, offset), (_IF_EQUAL, 0, 2 * (len(checks) - at) - 1, value)]
    steps += [(_RETURN, 0, 0, _FAIL | code), (_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("HBBI", *step) for step in steps)


def install(code: bytes) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    held = ctypes.create_string_buffer(code, len(code))
    filters = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(held)))
    if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) or libc.prctl(_SECCOMP, _FILTER, filters, 0, 0):
        raise OSError(ctypes.get_errno(), "no filter can be installed here")


if __name__ == "__main__":
    install(program(sys.argv[1], int(sys.argv[2])))
    os.execv(sys.argv[3], sys.argv[3:])
