"""Decides whether a process waits for connections on a listener, from the kernel's view of the daemon's processes.

A listener completes handshakes as soon as listen(2) was called, and an inherited one before its process has begun to
run: both prove nothing. A process waits on it if a thread is blocked in accept(2) or poll(2) on it, or an epoll set
watches it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from enum import Enum, auto

import msgspec


class Waited(Enum):
    """Whether a process waits on a listener."""

    YES = auto()
    NO = auto()
    UNKNOWN = auto()  # the kernel does not show enough of the processes that hold it


class Call(Enum):
    """The system call that a thread is blocked in."""

    ACCEPT = auto()
    POLL = auto()
    OTHER = auto()  # another system call, or none: the thread runs
    HIDDEN = auto()  # turnout may not look at the thread


class Thread(msgspec.Struct, frozen=True):
    """One thread; ``descriptors``: those that its system call waits for, None: not known."""

    call: Call
    descriptors: frozenset[int] | None = None


class HolderView(msgspec.Struct, frozen=True):
    """What the kernel shows of one process of a daemon.

    Args:
        listeners: the inode of each listening socket that it holds, by descriptor.
        registered: the inodes that its epoll sets watch for input.
        threads: its threads.
        hidden: its descriptors, or its epoll sets, may not be looked at.
        has_ring: it uses io_uring, whose pending requests the kernel does not name by descriptor.
        ring_accepts: an accept is pending in there.
    """

    listeners: Mapping[int, int]
    registered: frozenset[int] = frozenset()
    threads: tuple[Thread, ...] = ()
    hidden: bool = False
    has_ring: bool = False
    ring_accepts: bool = False


def waited_on(inode: int, processes: Collection[HolderView]) -> Waited:
    """Decide for the listener with this inode; ``processes``: all that may hold it, a daemon with its workers."""
    holders = [process for process in processes if inode in process.listeners.values()]
    if any(inode in process.registered for process in processes) or any(_waits(inode, holder) for holder in holders):
        return Waited.YES
    if not holders or any(process.hidden for process in processes) or any(map(_is_obscure, holders)):
        return Waited.UNKNOWN
    return Waited.NO


def all_waited_on(inodes: Iterable[int], processes: Collection[HolderView]) -> Waited:
    """Decide for several listeners of one address: the kernel spreads connections over all of them (SO_REUSEPORT)."""
    found = {waited_on(inode, processes) for inode in inodes}
    if Waited.NO in found:
        return Waited.NO
    return Waited.YES if found == {Waited.YES} else Waited.UNKNOWN


def _waits(inode: int, process: HolderView) -> bool:
    own = {descriptor for descriptor, held in process.listeners.items() if held == inode}
    alone = set(process.listeners.values()) == {inode}  # an accept on an unknown listener is an accept on this one
    if process.ring_accepts and alone:
        return True
    return any(
        alone and thread.call is Call.ACCEPT
        if thread.descriptors is None
        else thread.call in {Call.ACCEPT, Call.POLL} and not own.isdisjoint(thread.descriptors)
        for thread in process.threads
    )


def _is_obscure(process: HolderView) -> bool:
    """Whether it may wait in a way that the kernel does not show."""
    return process.has_ring or any(
        thread.call is Call.HIDDEN or (thread.call is not Call.OTHER and thread.descriptors is None)
        for thread in process.threads
    )
