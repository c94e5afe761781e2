"""The relay: accepts on the fixed address, connects to the active daemon, and pumps. Any daemon, no privileges.

It is on an epoll beside the loop's own (:mod:`turnout.planes.poller`): a uvloop reader is not called again for a reset
that comes behind unread bytes, and one that is paused never hears of it. Here every descriptor stays registered, and
hears.
"""

from __future__ import annotations

import asyncio
import socket

from turnout.planes.accepting_plane import AcceptingPlane
from turnout.planes.hold_queue import PendingClient
from turnout.planes.plane import DEFAULT_OPTIONS, PlaneOptions, Upstream
from turnout.planes.poller import Poller
from turnout.planes.pump import EDEAD, Pair, Pump


class Relay(AcceptingPlane[Pair]):
    """The plane for any daemon. ``poller``: the epoll that it shares with other relays; None: it has one of its own."""

    name: str = "relay"

    def __init__(
        self, loop: asyncio.AbstractEventLoop, options: PlaneOptions = DEFAULT_OPTIONS, *, poller: Poller | None = None
    ) -> None:
        self._own = poller is None
        self._poller = poller = poller or Poller(loop, clock=options.clock)
        super().__init__(loop, poller.epoll, options)
        self._pump = Pump(poller.epoll, poller.flows, self.counters, self._ended, self._read_later)
        self._again: asyncio.Handle | None = None
        poller.members.append(self)

    def is_listener(self, fd: int) -> bool:
        return fd in self._acceptor.listeners

    def accept(self) -> None:
        self._acceptor.accept()

    def on_event(self, fd: int, events: int) -> None:
        acceptor = self._acceptor
        client = acceptor.connecting.get(fd)
        if client is not None:
            acceptor.connected(client)
        elif events & EDEAD and fd in acceptor.pending:
            acceptor.discard(acceptor.pending[fd])  # a held client that resets leaves at once

    def _read_later(self) -> None:
        if self._again is None:
            self._again = self._loop.call_soon(self._go_on)
            self._poller.leave_soon()

    def _go_on(self) -> None:
        """Read on from sources that no event will call for; what is left comes with the loop's next round."""
        self._again = None
        self._pump.run_again()
        if self._pump.again:
            self._read_later()

    def _begin(self, client: PendingClient, daemon: socket.socket, upstream: Upstream) -> None:
        pair = self._pump.add(client.sock, daemon, upstream.boot_id, since=client.since, fresh=not client.watched)
        if not pair.closed:
            self._table.add(pair)

    def _close_connections(self) -> None:
        if self._again:
            self._again.cancel()
        self._pump.close()
        self._poller.members.remove(self)
        if self._own:
            self._poller.close()
