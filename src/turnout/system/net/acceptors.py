"""Looks up in /proc which processes wait on a listener: epoll sets, blocked threads, io_uring.

The epoll sets and the kernel function that a thread sleeps in may be read of every process of the same user (ptrace(2),
PTRACE_MODE_READ); the arguments of its system call take the right to trace it (PTRACE_MODE_ATTACH), which Yama may
restrict. What may not be read is reported as unknown.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Collection, Iterator
from typing import Final

from turnout.core.acceptors import Call, HolderView, Thread, Waited, all_waited_on
from turnout.system.files import opened
from turnout.system.net.sock_diag import LISTEN, table
from turnout.system.process import state_of

_POLLIN: Final = 0x001 | 0x040  # POLLIN, POLLRDNORM; EPOLLIN and EPOLLRDNORM are the same bits
_POLLFD: Final = struct.Struct("=ihh")
_POLLED_AT_MOST: Final = 1 << 16
_SELECTED_AT_MOST: Final = 1 << 16
_RING_ACCEPT: Final = "op=13,"  # IORING_OP_ACCEPT, linux/io_uring.h; /proc/PID/fdinfo of a ring, under PollList
# The numbers of accept, accept4, poll, ppoll, select and pselect6 (syscalls(2)).
_CALLS: Final = {
    "x86_64": {43: "accept", 288: "accept", 7: "poll", 271: "poll", 23: "select", 270: "select"},
    "aarch64": {202: "accept", 242: "accept", 73: "poll", 72: "select"},
}
_CALLS_HERE: Final = _CALLS.get(os.uname().machine, {})
# Kernel functions that a thread sleeps in (proc_pid_wchan(5)), by how they begin.
_IN_ACCEPT: Final = "inet_csk_accept"
_IN_POLL: Final = ("poll_schedule_timeout", "do_select", "do_poll", "do_sys_poll")


def waited_on(inodes: Collection[int], pids: Collection[int]) -> Waited:
    """Whether a process waits for connections on each of these listeners, at this moment.

    A program that polls with a time-out, or accepts between sleeps, is not always seen to: look more than once.

    Args:
        inodes: the listeners, which get the connections of one address.
        pids: the processes that may hold them: a daemon with its workers.
    """
    listening = {row.inode for row in table(1 << LISTEN)}
    waited = all_waited_on(inodes, [_view(pid, listening, with_threads=False) for pid in pids])
    if waited is Waited.YES:  # a daemon with an epoll set may have a hundred threads
        return waited
    return all_waited_on(inodes, [_view(pid, listening, with_threads=True) for pid in pids])


def _view(pid: int, listening: Collection[int], *, with_threads: bool) -> HolderView:
    registered: set[int] = set()
    sockets: dict[int, int] = {}
    epolls: list[int] = []
    rings: list[int] = []
    hidden = False
    try:
        for descriptor, target in _descriptors(pid):
            if target.startswith("socket:["):
                sockets[descriptor] = int(target[8:-1])
            elif target == "anon_inode:[eventpoll]":
                epolls.append(descriptor)
            elif target == "anon_inode:[io_uring]":
                rings.append(descriptor)
    except (FileNotFoundError, ProcessLookupError):
        return HolderView({})
    except OSError:
        return HolderView({}, hidden=not _has_ended(pid))
    listeners = {descriptor: inode for descriptor, inode in sockets.items() if inode in listening}
    for descriptor in epolls:
        info = _read(f"/proc/{pid}/fdinfo/{descriptor}")
        hidden = hidden or info is None
        registered |= _watched(info or "", sockets)
    ring_accepts = any(_RING_ACCEPT in (_read(f"/proc/{pid}/fdinfo/{descriptor}") or "") for descriptor in rings)
    threads = _threads(pid) if with_threads and listeners else ()
    return HolderView(listeners, frozenset(registered), threads, hidden, bool(rings), ring_accepts)


def _descriptors(pid: int) -> Iterator[tuple[int, str]]:
    """The descriptors of a process and what each refers to. Raises OSError where they may not be looked at."""
    with os.scandir(f"/proc/{pid}/fd") as entries:
        for entry in entries:
            try:
                yield int(entry.name), os.readlink(entry.path)  # noqa: PTH115  # a Path for each is slow
            except FileNotFoundError:  # closed meanwhile
                continue


def _has_ended(pid: int) -> bool:
    try:
        return state_of(pid) in {"Z", "X"}
    except ProcessLookupError:
        return True
    except PermissionError:
        return False


def _watched(info: str, sockets: dict[int, int]) -> set[int]:
    """The inodes that an epoll set watches for input, from its fdinfo (proc_pid_fdinfo(5)).

    A registration of EPOLLONESHOT that has fired has no such event left. Where the kernel gives no inode, the number
    under which it was registered has to do.
    """
    inodes: set[int] = set()
    for line in info.splitlines():
        if not line.startswith("tfd:"):
            continue
        words = line.replace(":", ": ").split()
        values = dict(zip(words[::2], words[1::2], strict=False))
        if not int(values.get("events:", "0"), 16) & _POLLIN:
            continue
        inodes.add(int(values["ino:"], 16) if "ino:" in values else sockets.get(int(values["tfd:"]), 0))
    return inodes


def _threads(pid: int) -> tuple[Thread, ...]:
    try:
        tids = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208  # a Path for each is slow
    except OSError:
        return (Thread(Call.HIDDEN),)
    return tuple(_thread(f"/proc/{pid}/task/{tid}") for tid in tids)


def _thread(path: str) -> Thread:
    """The call that blocks a thread: by its system call, else by the kernel function that it sleeps in."""
    call = _read(f"{path}/syscall")
    if call is not None and call.startswith("running"):
        return Thread(Call.OTHER)
    words = (call or "").split()
    name = _CALLS_HERE.get(int(words[0]), "") if len(words) > 3 else ""
    if name == "accept":
        return Thread(Call.ACCEPT, frozenset({int(words[1], 16)}))
    if name:
        polled = _polled if name == "poll" else _selected
        return Thread(Call.POLL, polled(f"{path}/mem", int(words[1], 16), int(words[2], 16)))
    sleeps_in = _read(f"{path}/wchan") or ""
    if sleeps_in.startswith(_IN_ACCEPT):
        return Thread(Call.ACCEPT)
    if sleeps_in.startswith(_IN_POLL):
        return Thread(Call.POLL)
    if call is None and sleeps_in in {"", "0"} and not _runs(path):
        return Thread(Call.HIDDEN)
    return Thread(Call.OTHER)


def _polled(memory: str, address: int, count: int) -> frozenset[int] | None:
    """The descriptors that poll(2) waits for input of; None: the array may not be read."""
    data = _memory(memory, address, _POLLFD.size * count) if count <= _POLLED_AT_MOST else None
    if data is None:
        return None
    return frozenset(descriptor for descriptor, events, _ in _POLLFD.iter_unpack(data) if events & _POLLIN)


def _selected(memory: str, count: int, address: int) -> frozenset[int] | None:
    """The descriptors that select(2) waits for input of; None: the set may not be read."""
    if not address:
        return frozenset()
    data = _memory(memory, address, (count + 7) // 8) if count <= _SELECTED_AT_MOST else None
    if data is None:
        return None
    return frozenset(bit for bit in range(count) if data[bit // 8] >> bit % 8 & 1)


def _memory(path: str, address: int, size_bytes: int) -> bytes | None:
    try:
        with opened(os.open(path, os.O_RDONLY | os.O_CLOEXEC)) as fd:
            data = os.pread(fd, size_bytes, address)
    except (OSError, OverflowError):
        return None
    return data if len(data) == size_bytes else None


def _runs(path: str) -> bool:
    """Whether a thread runs at this moment, or has ended (proc_pid_stat(5))."""
    stat = _read(f"{path}/stat")
    return stat is None or stat.rpartition(")")[2].split()[0] in {"R", "X", "Z"}


def _read(path: str) -> str | None:
    """A file of /proc; None: it may not be read, or the process has ended."""
    try:
        with io.FileIO(path) as file:
            return file.readall().decode(errors="replace")
    except OSError:
        return None
