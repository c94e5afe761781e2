"""The seccomp filter under which a daemon runs, and its notification descriptor (seccomp(2), seccomp_unotify(2)).

    bind, of an address that may be IPv4 or IPv6 ─┐
    listen ───────────────────────────────────────┴─► the keeper is notified, and the thread waits for its answer
    setsockopt of what directs a reuseport group ───► 0, and it is not executed: any member could redirect all clients
    anything else ──────────────────────────────────► allowed, in the kernel

What the filter does not see is not activated: i386 programs and x32 calls on x86_64, and IORING_OP_BIND (Linux 6.11).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import os
import platform
import select
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Calls:
    """An architecture: AUDIT_ARCH_… of linux/audit.h, and its numbers of system calls."""

    arch: int
    seccomp: int
    bind: int
    listen: int
    setsockopt: int


X86_64: Final = Calls(0xC000003E, 317, 49, 50, 54)
ARCHITECTURES: Final[Mapping[str, Calls]] = {"x86_64": X86_64, "aarch64": Calls(0xC00000B7, 277, 200, 201, 208)}
_X32_BIT: Final = 0x40000000  # __X32_SYSCALL_BIT: other numbers under the architecture of x86_64

# struct seccomp_data: nr, arch, instruction_pointer, args[6]; the low word of each argument, little-endian
_NUMBER: Final = 0
_ARCH: Final = 4
_ARGUMENTS: Final = 16
_SECOND: Final = _ARGUMENTS + 8
_THIRD: Final = _ARGUMENTS + 16

_SHORTEST_BYTES: Final = 16  # sizeof(struct sockaddr_in); IPv6 takes 28, and any longer length is legal
_UNIX_BYTES: Final = 110  # sizeof(struct sockaddr_un), with which most programs bind a path
_SOL_SOCKET: Final = 1
_DIRECTS_GROUP: Final = (51, 52, 68)  # SO_ATTACH_REUSEPORT_CBPF, SO_ATTACH_REUSEPORT_EBPF, SO_DETACH_REUSEPORT_BPF

_ALLOW: Final = 0x7FFF0000
_NOTIFY: Final = 0x7FC00000
_ANSWER_0: Final = 0x00050000  # SECCOMP_RET_ERRNO with the error 0

# classic BPF: linux/bpf_common.h
_LOAD: Final = 0x20  # the word at k
_JUMP_EQ: Final = 0x15
_JUMP_GE: Final = 0x35
_RETURN: Final = 0x06
_INSTRUCTION: Final = struct.Struct("HBBI")

_SET_MODE_FILTER: Final = 1
_GET_NOTIF_SIZES: Final = 3
_NEW_LISTENER: Final = 1 << 3
_WAIT_KILLABLE_RECV: Final = 1 << 5  # Linux 5.19: else a signal ends a call that is being answered
_PR_SET_NO_NEW_PRIVS: Final = 38

_NOTIFICATION: Final = struct.Struct("QIIiIQ6Q")  # struct seccomp_notif: id, pid, flags, and seccomp_data
_ANSWER: Final = struct.Struct("QqiI")  # struct seccomp_notif_resp
_RECEIVE: Final = 0xC0502100
_SEND: Final = 0xC0182101
_IS_VALID: Final = 0x40082102
_ADD_FD: Final = 0x40182103
_SET_FD: Final = 1  # SECCOMP_ADDFD_FLAG_SETFD
_ADDITION: Final = struct.Struct("QIIII")  # struct seccomp_notif_addfd
_SYNC_WAKE_UP: Final = 0x40082104  # SECCOMP_IOCTL_NOTIF_SET_FLAGS, Linux 6.6
FIRST_WITHIN_S: Final = 1.0
_CONTINUE: Final = 1  # SECCOMP_USER_NOTIF_FLAG_CONTINUE


class UnsupportedError(OSError):
    """This machine cannot notify of bind(2); the message says what it lacks."""


def calls_of(machine: str = "") -> Calls:
    """The numbers of this machine's architecture, or of the one that is named as uname(2) does.

    Raises UnsupportedError: they are not known here.
    """
    name = machine or platform.machine()
    if name not in ARCHITECTURES:
        raise UnsupportedError(errno.ENOSYS, f"the system calls of {name} are not known to turnout")
    return ARCHITECTURES[name]


def program(calls: Calls) -> bytes:
    """The filter, as classic BPF."""
    lines: list[tuple[int, int | str, int | str, int]] = [
        (_LOAD, 0, 0, _ARCH),
        (_JUMP_EQ, 0, "allow", calls.arch),
        (_LOAD, 0, 0, _NUMBER),
        *([(_JUMP_GE, "allow", 0, _X32_BIT)] if calls is X86_64 else []),
        (_JUMP_EQ, "notify", 0, calls.listen),
        (_JUMP_EQ, "bind", 0, calls.bind),
        (_JUMP_EQ, 0, "allow", calls.setsockopt),
        (_LOAD, 0, 0, _SECOND),
        (_JUMP_EQ, 0, "allow", _SOL_SOCKET),
        (_LOAD, 0, 0, _THIRD),
        *((_JUMP_EQ, "answer", 0, option) for option in _DIRECTS_GROUP),
        (_RETURN, 0, 0, _ALLOW),
    ]
    labels = {"bind": len(lines)}
    lines += [
        (_LOAD, 0, 0, _THIRD),
        (_JUMP_EQ, "allow", 0, _UNIX_BYTES),
        (_JUMP_GE, "notify", "allow", _SHORTEST_BYTES),
    ]
    for name, value in (("notify", _NOTIFY), ("allow", _ALLOW), ("answer", _ANSWER_0)):
        labels[name] = len(lines)
        lines.append((_RETURN, 0, 0, value))

    def distance(target: int | str, index: int) -> int:
        return labels[target] - index - 1 if isinstance(target, str) else target

    return b"".join(
        _INSTRUCTION.pack(code, distance(true, index), distance(false, index), k)
        for index, (code, true, false, k) in enumerate(lines)
    )


def check_supported() -> None:
    """Raises UnsupportedError: this system cannot do what :func:`install` does. Changes nothing.

    The kernel looks at the flags before it looks at the filter: with no filter it says EFAULT where it knows them all.
    """
    calls = calls_of()
    try:
        _syscall(calls.seccomp, _SET_MODE_FILTER, _NEW_LISTENER | _WAIT_KILLABLE_RECV, None)
    except OSError as error:
        if error.errno == errno.EFAULT:
            _check_sizes(calls)
            return
        why = {
            errno.EINVAL: "it takes Linux 5.19 (SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV)",
            errno.ENOSYS: "this kernel has no seccomp(2), or a filter hides it",
        }.get(error.errno or 0, f"seccomp(2) is refused here: {error.strerror}")
        raise UnsupportedError(error.errno, why) from error


def _check_sizes(calls: Calls) -> None:
    """A later kernel may notify with longer records than are read here (seccomp(2), SECCOMP_GET_NOTIF_SIZES)."""
    sizes = (ctypes.c_uint16 * 3)()
    _syscall(calls.seccomp, _GET_NOTIF_SIZES, 0, ctypes.byref(sizes))
    if (sizes[0], sizes[1]) != (_NOTIFICATION.size, _ANSWER.size):
        raise UnsupportedError(errno.ENOSYS, f"this kernel's notifications are {sizes[0]} bytes long")


def install(*, privileged: bool) -> int:
    """Put this thread, and all that it will start, under the filter; the notification descriptor, the caller's.

    For a child that is about to call execve(2): the filter cannot be taken off.

    Args:
        privileged: this process has CAP_SYS_ADMIN. Otherwise the kernel demands no_new_privs (prctl(2)), under which
            setuid programs and file capabilities give nothing.

    Raises:
        UnsupportedError: as :func:`calls_of`.
        OSError: seccomp(2): EBUSY where a filter that notifies is in force already, EACCES without the capability.
    """
    calls = calls_of()
    if not privileged and ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    filter_code = program(calls)
    held = ctypes.create_string_buffer(filter_code, len(filter_code))
    filtered = struct.pack(
        "HxxxxxxQ", len(filter_code) // _INSTRUCTION.size, ctypes.addressof(held)
    )  # struct sock_fprog
    return _syscall(calls.seccomp, _SET_MODE_FILTER, _NEW_LISTENER | _WAIT_KILLABLE_RECV, filtered)


@dataclass(frozen=True, slots=True)
class WaitingCall:
    """A system call that waits for its answer.

    Args:
        id: the kernel's number of it; it counts up by one within a filter.
        thread: the thread that called, as its pid namespace of ours numbers it; 0: it is in another one.
        number: of the system call.
        arguments: six unsigned 64-bit words. A descriptor is in the low half of the first.
    """

    id: int
    thread: int
    number: int
    arguments: tuple[int, ...]

    @property
    def fd(self) -> int:
        """The descriptor that the call is about."""
        return self.arguments[0] & 0xFFFFFFFF


class Notifications:
    """The notification descriptor of one filter. Owns it.

    Only the process that receives may block: where two wait for one notification, the second waits for the next one,
    whatever O_NONBLOCK says. A call that was received and not answered is never reported again: its thread hangs, and
    with WAIT_KILLABLE_RECV only SIGKILL ends it. A process that has a copy of the descriptor may answer it by its id.
    """

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def receive(self) -> WaitingCall | None:
        """The next call. Blocks where none is due: poll(2) first. None: its thread was killed meanwhile."""
        room = bytearray(_NOTIFICATION.size)  # all zero, or the kernel refuses it
        try:
            fcntl.ioctl(self._fd, _RECEIVE, room)
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.EINTR}:
                return None
            raise
        number, thread, _, call, _, _, *arguments = _NOTIFICATION.unpack(room)
        return WaitingCall(number, thread, call, tuple(arguments))

    def answer(self, call_id: int, *, error: int = 0) -> bool:
        """Return 0 to the caller, or an error (errno(3)), and execute nothing; False: nothing waits for it any more."""
        return self._send(_ANSWER.pack(call_id, 0, -error, 0))

    def proceed(self, call_id: int) -> bool:
        """Have the kernel execute the call as it stands; False: nothing waits for it any more."""
        return self._send(_ANSWER.pack(call_id, 0, 0, _CONTINUE))

    def put(self, call: WaitingCall, fd: int, *, close_on_exec: bool) -> None:
        """Put a copy of ``fd`` in the place of the descriptor that a call is about (seccomp_unotify(2)).

        Raises:
            OSError: nothing waits for the answer any more, or the daemon has no such descriptor.
        """
        flags = os.O_CLOEXEC if close_on_exec else 0
        fcntl.ioctl(self._fd, _ADD_FD, _ADDITION.pack(call.id, _SET_FD, fd, call.fd, flags))

    def is_valid(self, call_id: int) -> bool:
        """Whether a thread still waits for the answer to this call."""
        return self._is_there(_IS_VALID, struct.pack("Q", call_id))

    def first_call(self) -> WaitingCall | None:
        """Make a call that fails, and answer it: ids count up from a random number, and so are known from here on.

        For a process that is under the filter itself. None: the call did not come within a second.
        """
        caller = threading.Thread(target=_listen_at_nothing, daemon=True)
        caller.start()
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        call = self.receive() if poller.poll(FIRST_WITHIN_S * 1000) else None
        if call:
            self.proceed(call.id)
            caller.join(FIRST_WITHIN_S)
        return call

    def wake_in_turn(self) -> None:
        """Let the kernel hand the processor over between caller and receiver, where it can (Linux 6.6)."""
        try:
            fcntl.ioctl(self._fd, _SYNC_WAKE_UP, 1)
        except OSError as error:
            if error.errno not in {errno.EINVAL, errno.ENOTTY}:
                raise

    def close(self) -> None:
        os.close(self._fd)

    def _send(self, answer: bytes) -> bool:
        return self._is_there(_SEND, answer)

    def _is_there(self, request: int, record: bytes) -> bool:
        try:
            fcntl.ioctl(self._fd, request, record)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        return True


def _listen_at_nothing() -> None:
    with contextlib.suppress(OSError):
        _syscall(calls_of().listen, -1, 0)


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _syscall(number: int, *arguments: object) -> int:
    result: int = _libc().syscall(number, *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
