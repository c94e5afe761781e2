"""Makes the IPv4 socket that takes the place of a daemon's dual-stack one, which cannot join a group of IPv4 listeners.

The daemon notices nothing of it that has not used the socket yet. So a socket is left alone that has a duplicate, that
epoll(7) watches already, or that is for IPv6 alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Collection
from pathlib import Path
from typing import Final

from turnout.activation.seccomp import WaitingCall
from turnout.activation.sockets import process_of
from turnout.system.files import undone_on_error
from turnout.system.net.sockets import descriptors_of, inode_of

_EPOLL: Final = "anon_inode:[eventpoll]"
_CLOEXEC: Final = 0o2000000  # O_CLOEXEC in the flags of fdinfo (proc_pid_fdinfo(5))
_INT: Final = 4
_TIMEVAL: Final = 16
_LINGER: Final = 8
_NAME: Final = 16
# What a listener hands on to the connections that it accepts, or needs itself: socket(7), tcp(7), ip(7); level, option,
# and bytes. Numbers that Python does not name are those of include/uapi/linux/tcp.h.
_OPTIONS: Final = (
    *((socket.SOL_SOCKET, option, _INT) for option in (socket.SO_REUSEADDR, socket.SO_KEEPALIVE, socket.SO_OOBINLINE)),
    *((socket.SOL_SOCKET, option, _INT) for option in (socket.SO_PRIORITY, socket.SO_RCVLOWAT)),
    *((socket.SOL_SOCKET, option, _TIMEVAL) for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO)),
    (socket.SOL_SOCKET, socket.SO_LINGER, _LINGER),
    *((socket.IPPROTO_TCP, option, _INT) for option in (socket.TCP_NODELAY, socket.TCP_DEFER_ACCEPT)),
    *((socket.IPPROTO_TCP, option, _INT) for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL)),
    *((socket.IPPROTO_TCP, option, _INT) for option in (socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)),
    *((socket.IPPROTO_TCP, option, _INT) for option in (socket.TCP_SYNCNT, socket.TCP_LINGER2)),
    *((socket.IPPROTO_TCP, option, _INT) for option in (23, 25)),  # TCP_FASTOPEN, TCP_NOTSENT_LOWAT
    (socket.IPPROTO_TCP, 13, _NAME),  # TCP_CONGESTION
)
_BUFFERS: Final = (socket.SO_RCVBUF, socket.SO_SNDBUF)


def stand_in(call: WaitingCall, sock: socket.socket, host: str, pids: Collection[int]) -> socket.socket | None:
    """An IPv4 socket, the caller's, with the options of the daemon's own; None: that one must stay.

    Args:
        call: the daemon's bind.
        sock: a copy of the daemon's socket.
        host: as the daemon binds it.
        pids: the daemon's processes, as far as they are known.

    Raises:
        OSError: the daemon may not be looked at, or no descriptor is left.
    """
    is_dual = sock.family == socket.AF_INET6 and not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    if not is_dual or host not in {"::", "0.0.0.0"}:  # noqa: S104  # compared, not bound
        return None
    inode = os.fstat(sock.fileno()).st_ino
    if _is_shared(call, inode, pids) or _is_watched(call):
        return None
    replacement = socket.socket()
    with undone_on_error(replacement.close):
        _copy_options(sock, replacement)
        fcntl.fcntl(replacement, fcntl.F_SETFL, fcntl.fcntl(sock, fcntl.F_GETFL))
    return replacement


def closes_on_exec(call: WaitingCall) -> bool:
    """Whether the daemon's descriptor is closed by execve(2). Raises OSError: it is there no more."""
    info = Path(f"/proc/{call.thread}/fdinfo/{call.fd}").read_text(encoding="ascii")
    flags = next(line.split()[1] for line in info.splitlines() if line.startswith("flags:"))
    return bool(int(flags, 8) & _CLOEXEC)


def is_still(call: WaitingCall, sock: socket.socket) -> bool:
    """Whether the descriptor is the socket that was looked at: another thread may have put a file there.

    The kernel knows no exchange that compares. So a daemon that puts a file in the place of a socket while another of
    its threads binds that socket may lose this file, in the microseconds between this look and the exchange.
    """
    return inode_of(call.thread, call.fd) == os.fstat(sock.fileno()).st_ino


def _is_shared(call: WaitingCall, inode: int, pids: Collection[int]) -> bool:
    """Whether the daemon has the socket under another number, or another process of it has it."""
    others = {call.thread, *pids} - {process_of(call.thread)} | {call.thread}
    held = [(pid, fd) for pid in others for found, fd in descriptors_of(pid) if found == inode]
    return any(pid != call.thread or fd != call.fd for pid, fd in held)


def _is_watched(call: WaitingCall) -> bool:
    """Whether an epoll of the daemon has the descriptor registered: it would not have the replacement."""
    directory = Path(f"/proc/{call.thread}")
    for name in os.listdir(directory / "fd"):  # noqa: PTH208  # names are all that is wanted
        with contextlib.suppress(OSError):
            if os.readlink(directory / "fd" / name) == _EPOLL:  # noqa: PTH115
                info = (directory / "fdinfo" / name).read_text(encoding="ascii")
                if any(line.split()[:2] == ["tfd:", str(call.fd)] for line in info.splitlines()):
                    return True
    return False


def _copy_options(source: socket.socket, target: socket.socket) -> None:
    """Those that the kernel knows and lets us set; what a daemon sets later it sets on the replacement itself."""
    for level, option, size in _OPTIONS:
        with contextlib.suppress(OSError):
            value = source.getsockopt(level, option, size)
            if value != target.getsockopt(level, option, size):
                target.setsockopt(level, option, value)
    for option in _BUFFERS:
        size = source.getsockopt(socket.SOL_SOCKET, option)
        if size != target.getsockopt(socket.SOL_SOCKET, option):
            target.setsockopt(socket.SOL_SOCKET, option, size // 2)  # the kernel doubles what it is given (socket(7))
