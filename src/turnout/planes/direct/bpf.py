"""bpf(2) by ctypes: as much as it takes to load a program, keep sockets in a map, link and pin the two.

Every descriptor that is answered is close-on-exec, as the kernel makes them, and the caller's to close.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import platform
import struct
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from turnout.errors import SteeringError

SYSTEM_CALLS: Final[Mapping[str, int]] = {"x86_64": 321, "aarch64": 280, "riscv64": 280}

# enum bpf_cmd, enum bpf_map_type, enum bpf_prog_type, enum bpf_attach_type: linux/bpf.h
_MAP_CREATE: Final = 0
_MAP_LOOKUP: Final = 1
_MAP_UPDATE: Final = 2
_MAP_DELETE: Final = 3
_PROG_LOAD: Final = 5
_OBJ_PIN: Final = 6
_OBJ_GET: Final = 7
_LINK_CREATE: Final = 28
_LINK_UPDATE: Final = 29
_SOCKMAP: Final = 15
_SK_LOOKUP_PROGRAM: Final = 30
_SK_LOOKUP_ATTACH: Final = 36

_LOAD_TRIES: Final = 5  # the verifier gives up with EAGAIN where a signal is pending; as often as libbpf tries
_ATTR_BYTES: Final = 152  # more than any command here uses; the kernel wants the rest to be zero
_LOG_BYTES: Final = 1 << 16
_LOG_SHOWN: Final = 300
_NAME: Final = b"turnout"

# opcodes: linux/bpf.h and linux/bpf_common.h; K takes a constant, X a register
MOV_X: Final = 0xBF
MOV_K: Final = 0xB7
ADD_K: Final = 0x07
LOAD_W: Final = 0x61  # dst = *(u32 *)(src + off)
STORE_W_K: Final = 0x62  # *(u32 *)(dst + off) = imm
LOAD_64: Final = 0x18  # two instructions wide
JUMP: Final = 0x05
JUMP_EQ_K: Final = 0x15
JUMP32_NE_K: Final = 0x56
CALL: Final = 0x85
EXIT: Final = 0x95
MAP_FD: Final = 1  # BPF_PSEUDO_MAP_FD, as the source of LOAD_64
_INSTRUCTION: Final = struct.Struct("<BBhi")


class Op(msgspec.Struct, frozen=True):
    """One instruction; ``to`` names the label that it jumps to, and then ``off`` follows from where that is."""

    code: int
    dst: int = 0
    src: int = 0
    off: int = 0
    imm: int = 0
    to: str = ""


def assemble(lines: Sequence[Op | str]) -> bytes:
    """Instructions as the kernel takes them. A string is a label: jumps to it go to what follows it.

    Raises:
        KeyError: a jump to a label that is not there.
        struct.error: a jump too far.
    """
    labels: dict[str, int] = {}
    ops: list[tuple[int, Op]] = []  # with the index of the instruction behind each
    index = 0
    for line in lines:
        if isinstance(line, str):
            labels[line] = index
        else:
            index += 2 if line.code == LOAD_64 else 1
            ops.append((index, line))
    code = bytearray()
    for following, op in ops:
        off = labels[op.to] - following if op.to else op.off
        imm = op.imm if op.imm < 1 << 31 else op.imm - (1 << 32)
        code += _INSTRUCTION.pack(op.code, op.src << 4 | op.dst, off, imm)
        if op.code == LOAD_64:
            code += bytes(_INSTRUCTION.size)
    return bytes(code)


def make_socket_map() -> int:
    """A map with room for one listening socket, under key 0. It does not keep that socket alive: its end empties it."""
    attr = struct.pack("=IIIIIII16s", _SOCKMAP, 4, 8, 1, 0, 0, 0, _NAME)
    return _bpf(_MAP_CREATE, attr, "make a map")


def put_socket(map_fd: int, sock_fd: int) -> None:
    """Put a listening socket into a map, in the place of what is there; atomic for those who look it up.

    Raises:
        OSError: it is no TCP socket that listens, or the kernel refused.
    """
    value = ctypes.create_string_buffer(struct.pack("=Q", sock_fd), 8)
    _with_key(_MAP_UPDATE, map_fd, value, "put a socket into a map")


def take_socket_out(map_fd: int) -> None:
    """Empty a map; one that is empty stays so. Raises OSError: the kernel refused."""
    try:
        _with_key(_MAP_DELETE, map_fd, None, "empty a map")
    except OSError as error:
        # ENOENT, or EINVAL as the kernel had it first: nothing was in there
        if error.errno != errno.ENOENT and (error.errno != errno.EINVAL or has_socket(map_fd)):
            raise


def has_socket(map_fd: int) -> bool:
    """Whether a map has a socket; True where this kernel does not answer that."""
    cookie = ctypes.create_string_buffer(8)
    try:
        _with_key(_MAP_LOOKUP, map_fd, cookie, "look into a map")
    except OSError as error:
        return error.errno != errno.ENOENT
    return True


def load_sk_lookup(code: bytes) -> int:
    """Load a program of type sk_lookup (Linux 5.9).

    Raises:
        OSError: the kernel refused; where its verifier did, with the end of the verifier's log.
    """
    instructions = ctypes.create_string_buffer(code, len(code))
    licence = ctypes.create_string_buffer(b"MIT")
    log = ctypes.create_string_buffer(_LOG_BYTES)

    def load(level: int) -> int:
        size, where = (_LOG_BYTES, ctypes.addressof(log)) if level else (0, 0)
        program = (len(code) // _INSTRUCTION.size, ctypes.addressof(instructions), ctypes.addressof(licence))
        rest = (level, size, where, 0, 0, _NAME, 0, _SK_LOOKUP_ATTACH)
        attr = struct.pack("=IIQQIIQII16sII", _SK_LOOKUP_PROGRAM, *program, *rest)
        for _ in range(_LOAD_TRIES - 1):
            with contextlib.suppress(BlockingIOError):
                return _bpf(_PROG_LOAD, attr, "load a program")
        return _bpf(_PROG_LOAD, attr, "load a program")

    try:
        return load(0)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.EACCES}:
            raise
    try:
        return load(1)  # again, for the verifier's log
    except OSError as error:
        text = " ".join(log.value.decode(errors="replace").split())[-_LOG_SHOWN:]
        raise OSError(error.errno, f"{error.strerror}: {text}" if text else error.strerror) from error


def link_sk_lookup(program_fd: int, netns_fd: int) -> int:
    """Have the kernel run a program for a network namespace's new connections, until the link is gone.

    Raises:
        OSError: the kernel refused.
    """
    return _bpf(_LINK_CREATE, struct.pack("=IIII", program_fd, netns_fd, _SK_LOOKUP_ATTACH, 0), "link a program")


def update_link(link_fd: int, program_fd: int) -> None:
    """Put another program in the place of a link's; no connection meets neither. Raises OSError: it was refused."""
    _bpf(_LINK_UPDATE, struct.pack("=IIII", link_fd, program_fd, 0, 0), "update a link")


def pin(fd: int, path: str) -> None:
    """Keep a map or a link under a name in a bpf filesystem. Raises OSError: no such directory, or no right to."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    _bpf(_OBJ_PIN, struct.pack("=QII", ctypes.addressof(name), fd, 0), f"pin {path}")


def pinned(path: str) -> int:
    """A descriptor of what is kept under that name. Raises OSError: there is nothing, or no right to it."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    return _bpf(_OBJ_GET, struct.pack("=QII", ctypes.addressof(name), 0, 0), f"open {path}")


def _with_key(command: int, map_fd: int, value: ctypes.Array[ctypes.c_char] | None, purpose: str) -> None:
    """A command on key 0. The kernel refuses a value where the command takes none."""
    key = ctypes.create_string_buffer(4)
    where = ctypes.addressof(value) if value is not None else 0
    _bpf(command, struct.pack("=I4xQQQ", map_fd, ctypes.addressof(key), where, 0), purpose)


def _bpf(command: int, attr: bytes, purpose: str) -> int:
    """The system call. What ``attr`` points to must outlive it: the callers hold it."""
    number = SYSTEM_CALLS.get(platform.machine())
    if number is None:
        raise SteeringError(f"bpf(2) is not known for {platform.machine()}")
    buffer = ctypes.create_string_buffer(attr, _ATTR_BYTES)
    result: int = _libc().syscall(number, command, buffer, _ATTR_BYTES)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"cannot {purpose}: {os.strerror(code)}")
    return result


@functools.cache
def _libc() -> ctypes.CDLL:
    """Opened once: to open it costs more than the call."""
    return ctypes.CDLL(None, use_errno=True)
