"""Transports of the loop, without splice(2) and an epoll of its own: the relay's promises, without its speed.

What transports do not report is asked for. libuv reports a reset behind unread bytes as an end of stream: the pending
error is looked at with each end. After an end it does not watch the descriptor at all: the state of half-closed
connections, and of clients that wait, is looked at once a second.
"""

from __future__ import annotations

import asyncio
import functools
import socket
from collections.abc import Callable
from select import EPOLLIN, EPOLLOUT
from typing import Final

from turnout.planes.accepting_plane import AcceptingPlane
from turnout.planes.hold_queue import PendingClient
from turnout.planes.loop_priority import LoopPriority
from turnout.planes.plane import DEFAULT_OPTIONS, PlaneOptions, Upstream
from turnout.planes.stream.leg import LegPair
from turnout.system.net.tcp import is_dead

LOOK_S: Final = 1.0


class Stream(AcceptingPlane[LegPair]):
    """The plane for systems without splice(2). Owns the tasks that open its connections, too.

    ``loop_priority``: keeps relays beside it from staying in their epoll; None: there are none.
    """

    name: str = "stream"

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        options: PlaneOptions = DEFAULT_OPTIONS,
        *,
        loop_priority: LoopPriority | None = None,
    ) -> None:
        self._made = 0
        self._readiness = LoopReadiness(loop, lambda _fd: self._acceptor.accept(), self._daemon_ready)
        super().__init__(loop, self._readiness, options)
        self._opening: set[asyncio.Task[None]] = set()
        self._half_closed: set[LegPair] = set()
        self._look_timer: asyncio.TimerHandle = loop.call_later(LOOK_S, self._look)
        # its connections are on the loop's own epoll, and must not wait for a relay's
        self._loop_priority = loop_priority or LoopPriority()
        self._loop_priority.pending += 1

    def _daemon_ready(self, fd: int) -> None:
        self._acceptor.connected(self._acceptor.connecting[fd])

    def _begin(self, client: PendingClient, daemon: socket.socket, upstream: Upstream) -> None:
        if client.watched:
            self._readiness.unregister(client.fd)
        if client.daemon_fd >= 0:
            self._readiness.unregister(client.daemon_fd)
        self._made += 1
        boot_id, since = upstream.boot_id, client.since
        pair = LegPair(self._made, client.sock, daemon, boot_id, since, self.counters, self._half_closed, self._ended)
        self._table.add(pair)
        task = self._loop.create_task(self._open(pair))
        self._opening.add(task)
        task.add_done_callback(functools.partial(self._opened, pair))

    async def _open(self, pair: LegPair) -> None:
        """Transports for both; what comes from the first before the second is there waits in its leg."""
        try:
            await self._loop.create_connection(lambda: pair.daemon, sock=pair.daemon.sock)
            await self._loop.connect_accepted_socket(lambda: pair.client, sock=pair.client.sock)
        except OSError:  # one of the two has gone by now
            pair.reset()

    def _opened(self, pair: LegPair, task: asyncio.Task[None]) -> None:
        """Not a part of the task: one that is cancelled before its first step runs nothing of it."""
        self._opening.discard(task)
        for leg in (pair.client, pair.daemon):
            if leg.transport is None:
                leg.never_made()

    def _close_connections(self) -> None:
        self._look_timer.cancel()
        self._loop_priority.pending -= 1
        for task in self._opening:
            task.cancel()
        for pair in list(self._table):
            pair.reset()

    def _look(self) -> None:
        """Find the connections and clients that were reset where no event tells of it."""
        self._look_timer = self._loop.call_later(LOOK_S, self._look)  # first: what fails below does not end the looks
        for pair in list(self._half_closed):
            for leg in (pair.client, pair.daemon):
                # it was reset after its end; one that has our end too may just be done (TIME-WAIT)
                if leg.ended and not leg.gone and not leg.other.ended and is_dead(leg.sock):
                    pair.reset()
        for client in list(self._acceptor.pending.values()):
            if is_dead(client.sock):
                self._acceptor.discard(client)


class LoopReadiness:
    """The loop's readers and writers in the place of an epoll: a loop reports no death of a descriptor without events.

    ``readable`` and ``writable`` are called with the descriptor.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, readable: Callable[[int], None], writable: Callable[[int], None]
    ) -> None:
        self._loop = loop
        self._readable = readable
        self._writable = writable
        self._registered: dict[int, int] = {}

    def register(self, fd: int, eventmask: int = EPOLLIN | EPOLLOUT, /) -> None:
        before = self._registered.get(fd, 0)
        if eventmask & EPOLLIN:
            self._loop.add_reader(fd, self._readable, fd)
        elif before & EPOLLIN:
            self._loop.remove_reader(fd)
        if eventmask & EPOLLOUT:
            self._loop.add_writer(fd, self._writable, fd)
        elif before & EPOLLOUT:
            self._loop.remove_writer(fd)
        self._registered[fd] = eventmask

    modify = register

    def unregister(self, fd: int, /) -> None:
        self.register(fd, 0)
        del self._registered[fd]
