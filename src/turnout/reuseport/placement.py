"""Connections to an index of a group at a fixed address, and the listener that they come to. Standard library only."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from turnout.core.slots import source_of
from turnout.system.net.tcp import reset_on_close

ARRIVES_S: Final = 0.002  # loopback delivers within the call that connects, mostly;
LATE_S: Final = 1.0  # a machine under load takes its time


def connect_to_index(address: tuple[str, int], slot: int) -> socket.socket:
    """A connection to one place, that is made or about to be; it ends by a reset, and sends nothing.

    It does not wait: at a place whose queue is full it would have to.

    Args:
        address: of the group.
        slot: the place.

    Raises:
        OSError: there is no socket, or no such source address.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        reset_on_close(sock)
        sock.setblocking(False)
        sock.bind((source_of(slot), 0))
        sock.connect_ex(address)
    except BaseException:
        sock.close()
        raise
    return sock


def locate_listener(address: tuple[str, int], slots: Sequence[int], listener: socket.socket) -> int | None:
    """The place of a listener from which nobody accepts yet. None: it is none of these, as far as can be found out.

    Args:
        address: of the group.
        slots: the places that it may have, the likely ones first: each of them gets a connection until one comes.
        listener: it does not block.
    """
    for slot in slots:
        if probe_indices(address, [slot], listener, within_s=ARRIVES_S) is not None:
            return slot
    return probe_indices(address, slots, listener, within_s=LATE_S)


def probe_indices(
    address: tuple[str, int], slots: Iterable[int], listener: socket.socket, *, within_s: float
) -> int | None:
    """Connect to each of these places: which of them is the listener's. None: nothing came to it in that time.

    Args:
        address: of the group.
        slots: the places.
        listener: one from which nobody else accepts yet; it does not block.
        within_s: seconds in all.
    """
    with contextlib.ExitStack() as opened:
        index_by_peer: dict[tuple[str, int], int] = {}
        for slot in slots:
            with contextlib.suppress(OSError):
                index_by_peer[opened.enter_context(connect_to_index(address, slot)).getsockname()] = slot
        return next((index_by_peer[peer] for peer in _arriving(listener, within_s) if peer in index_by_peer), None)


def _arriving(listener: socket.socket, within_s: float) -> Iterator[tuple[str, int]]:
    """From where connections come to a listener in that time; they are ended by a reset."""
    poller = select.poll()
    poller.register(listener.fileno(), select.POLLIN)
    deadline = time.monotonic() + within_s
    while poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            came, peer = listener.accept()
            reset_on_close(came)
            came.close()
            yield peer
        if time.monotonic() > deadline:
            return
