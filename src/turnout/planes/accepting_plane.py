"""What the relay and the stream plane have in common: an acceptor before, and a table of the connections they carry."""

from __future__ import annotations

import asyncio
import socket
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Generic, TypeVar

from turnout.core.connection_policy import Policy
from turnout.planes.acceptor import Acceptor
from turnout.planes.connection_table import ConnectionTable, PlaneConnection
from turnout.planes.hold_queue import PendingClient
from turnout.planes.idle_timeout import IdleTimeout
from turnout.planes.listeners import Readiness
from turnout.planes.plane import ConnectionInfo, Counters, PlaneOptions, TrafficStats, Upstream

C = TypeVar("C", bound=PlaneConnection)


class AcceptingPlane(ABC, Generic[C]):
    """A plane that accepts connections and carries them itself. Owns its acceptor and every connection.

    A subclass moves the bytes: it begins connections, and calls :meth:`_ended` for each that has ended.
    ``readiness``: where the acceptor registers descriptors.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, readiness: Readiness, options: PlaneOptions) -> None:
        self.counters = Counters()
        self.degraded_reason = ""
        self._loop = loop
        self._clock = options.clock
        self._table: ConnectionTable[C] = ConnectionTable()
        self._acceptor = Acceptor(loop, readiness, self.counters, self._begin, self._table.__len__, options)
        self._idle = IdleTimeout(loop, self._table, self._end_idle, clock=options.clock)
        self._idle.set(options.policy.idle_timeout_s)
        self._closed = False

    def apply(self, policy: Policy) -> None:
        self._acceptor.apply(policy)
        self._idle.set(policy.idle_timeout_s)

    def set_upstream(self, upstream: Upstream | None, *, patience_s: float) -> None:
        self._acceptor.set_upstream(upstream, patience_s=patience_s)

    def traffic(self) -> Mapping[str, TrafficStats]:
        return self._table.stats()

    def connections(self) -> int:
        return len(self._table)

    def relayed(self, boot_id: str) -> int:
        return len(self._table.of(boot_id))

    def waiting(self) -> int:
        return len(self._acceptor.pending)

    def open_connections(self, boot_id: str, *, peers: bool = False) -> Sequence[ConnectionInfo]:
        now = self._clock()
        return [connection.info(now, peers=peers) for connection in self._table.of(boot_id)]

    def cut(self, boot_id: str, ids: Collection[int] | None = None) -> int:
        connections = [connection for connection in self._table.of(boot_id) if ids is None or connection.id in ids]
        for connection in connections:
            if ids is None:
                connection.reset()
            else:
                connection.end()
        self.counters.cut += len(connections)
        return len(connections)

    def add_listener(self, sock: socket.socket) -> None:
        self._acceptor.add_listener(sock)

    def remove_listener(self, address: tuple[str, int]) -> None:
        self._acceptor.remove_listener(address)

    def stop_accepting(self) -> None:
        self._acceptor.stop_accepting()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._idle.set(None)
        self._acceptor.close()
        self._close_connections()

    @abstractmethod
    def _begin(self, client: PendingClient, daemon: socket.socket, upstream: Upstream) -> None:
        """Take over a client and a connected daemon from the acceptor."""

    @abstractmethod
    def _close_connections(self) -> None:
        """Reset every connection, and close what the subclass owns."""

    def _ended(self, connection: C) -> None:
        """Count a connection that has ended; accept again where the limit kept clients waiting."""
        self._table.remove(connection)
        self.counters.closed += 1
        if self._acceptor.full:
            self._acceptor.resume_below_limit()

    def _end_idle(self, connection: C) -> None:
        self.counters.idle_closed += 1
        connection.end()
