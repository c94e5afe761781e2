"""A copy of another process's descriptor, by pidfd_getfd(2) (Linux 5.6)."""

from __future__ import annotations

import ctypes
import os
import socket
from functools import partial
from typing import Final

from turnout.system.files import opened, undone_on_error

_PIDFD_GETFD: Final = 438  # the same on every architecture
PIDFD_THREAD: Final = os.O_EXCL  # pidfd_open(2), Linux 6.9: the number is that of a thread, not of a process


def copy_of(pid: int, fd: int, *, flags: int = 0) -> int:
    """A descriptor of our own for what ``fd`` is in process ``pid``; close-on-exec, the caller's to close.

    It takes the right to trace that process (ptrace(2), PTRACE_MODE_ATTACH_REALCREDS): one of the same user will do
    that is dumpable and has no more capabilities, unless Yama forbids it; else CAP_SYS_PTRACE.

    Args:
        pid: the process, or the thread with :data:`PIDFD_THREAD`.
        fd: its descriptor.
        flags: of pidfd_open(2).

    Raises:
        PermissionError: that right is not to be had.
        ProcessLookupError: there is no such process.
        OSError: it has no such descriptor, none is left here, or the kernel is too old.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    with opened(os.pidfd_open(pid, flags)) as pidfd:
        copy: int = libc.syscall(_PIDFD_GETFD, pidfd, fd, 0)
        if copy < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
    return copy


def socket_of(pid: int, fd: int, inode: int) -> socket.socket:
    """As :func:`copy_of` for a socket, which must be the one with this inode: the number may have changed hands.

    Raises:
        ProcessLookupError: it is another socket by now, or none; or as :func:`copy_of`.
        OSError: as :func:`copy_of`.
    """
    copy = copy_of(pid, fd)
    with undone_on_error(partial(os.close, copy)):
        if os.fstat(copy).st_ino != inode:
            raise ProcessLookupError(f"descriptor {fd} of process {pid} is another one by now")
        return socket.socket(fileno=copy)
