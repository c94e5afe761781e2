"""The acceptor of a plane: accepts on the fixed address, admits, holds, connects to the active daemon, tries again.

It moves no bytes: it hands over a client and a daemon that are connected to each other's plane.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from select import EPOLLOUT
from typing import Final

from turnout.core.connection_policy import Policy
from turnout.core.slots import SOURCE_PREFIX
from turnout.planes.dialing import UNDER_WAY, Dialer
from turnout.planes.fd_reserve import FdReserve
from turnout.planes.hold_queue import TICK_S, HoldQueue, Obstacle, Pace, Patience, PendingClient
from turnout.planes.listeners import Listeners, Readiness
from turnout.planes.plane import Counters, PlaneOptions, Upstream
from turnout.system.net.tcp import NO_RESOURCES, introduce, listens, reset_on_close, set_up

ACCEPTS_PER_WAKEUP: Final = 64
BACKLOG: Final = 1 << 16  # more than any accept queue has (listen(2))
Begin = Callable[[PendingClient, socket.socket, Upstream], None]


class Acceptor:
    """Owns the listeners, and every client until it is handed over together with its daemon's socket.

    The plane looks up descriptors that are ready in ``listeners``, ``connecting`` and ``pending``, and calls
    :meth:`accept`, :meth:`connected` or :meth:`discard`.

    Args:
        loop: for timers; only its thread may call.
        readiness: where descriptors are registered. A client that is handed over is registered if it is ``watched``,
            its daemon's socket if it is not -1 in ``daemon_fd``; the plane takes both over as they are.
        counters: the plane's.
        begin: takes over a client and a connected daemon; called for every connection.
        connections: how many connections the plane has taken over and still carries.
        options: the plane's.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        readiness: Readiness,
        counters: Counters,
        begin: Begin,
        connections: Callable[[], int],
        options: PlaneOptions,
    ) -> None:
        self._listeners = Listeners(loop, readiness, counters)
        self.listeners = self._listeners.by_fd
        self._fd_reserve = FdReserve()
        self.connecting: dict[int, PendingClient] = {}  # by the daemon's descriptor
        self.pending: dict[int, PendingClient] = {}  # by the client's descriptor
        self.full = False  # the limit of connections is reached: the plane calls `resume_below_limit` when one ends
        self._loop = loop
        self._readiness = readiness
        self._counters = counters
        self._connected_after = counters.connect_s.add
        self._begin = begin
        self._connections = connections
        self._clock = options.clock
        self._connect_timeout_s = options.connect_timeout_s
        self._upstream: Upstream | None = None
        self._patience = Patience()
        self._taken = self._patience.taken
        self._pace = Pace(options.checks.room, options.release_per_tick)
        self._closed = False
        self._policy = options.policy
        self._hold_queue = HoldQueue(options.policy.hold_max, counters)
        self._dialer = Dialer(self._fd_reserve, self._listeners.pause, counters, options.checks, options.clock)
        self._dial = self._dialer.dial
        self._shares = False  # the address, with daemons
        self._timer: asyncio.TimerHandle | None = None
        self._late_at = 0.0

    # -- from the plane ----------------------------------------------------------------------------------------------

    def apply(self, policy: Policy) -> None:
        """For connections that come from now on; those that wait keep their places also in a smaller queue."""
        self._policy = policy
        self._hold_queue.max_waiting = policy.hold_max
        for sock in self.listeners.values():
            set_up(sock, user_timeout_ms=policy.user_timeout_ms())
        self.resume_below_limit()

    def set_upstream(self, upstream: Upstream | None, *, patience_s: float) -> None:
        changed = upstream != self._upstream
        self._upstream = upstream
        self._patience.refused_s = patience_s
        if not changed and upstream is not None:
            return
        self._patience.obstacle = None
        self._pace.forget()
        self._dialer.set_upstream(upstream, self.pending.values())
        for client in reversed(list(self.connecting.values())):  # the first of them ends up in front again
            if client.upstream != upstream:  # nothing was sent yet: it may as well go to the new one
                self._unconnect(client)
                self._hold_again(client)
        if upstream is None and patience_s <= 0:
            while (held := self._hold_queue.next()) is not None:
                self._reject(held)
                self._counters.reset_unrouted += 1
        self._release()
        self._schedule()

    def add_listener(self, sock: socket.socket) -> None:
        self._listeners.add(sock, user_timeout_ms=self._policy.user_timeout_ms())
        if self._upstream is None:
            self._dialer.use(sock.family, self.pending.values())  # till there is one: a system may have no IPv4
        self._dialer.reserve()
        self._shares = self._listeners.shared

    def remove_listener(self, address: tuple[str, int]) -> None:
        """Accept no more at ``address``; clients that are in its accept queue by now are served still."""
        for sock in self._listeners.at(address):
            self._accept_from(sock, BACKLOG)
            self._listeners.remove(sock)

    def stop_accepting(self) -> None:
        self._listeners.close()
        self._dialer.close()

    def close(self) -> None:
        """Reject every client that is not handed over yet."""
        self._closed = True
        if self._timer:
            self._timer.cancel()
        self.stop_accepting()
        for client in list(self.pending.values()):
            self._reject(client)

    # -- accepting ---------------------------------------------------------------------------------------------------

    def accept(self) -> None:
        """A listener is readable."""
        before = self._counters.accepted
        if self._shares:
            self._listeners.drop_shut()
        for listener in list(self.listeners.values()):
            limit = ACCEPTS_PER_WAKEUP
            if self._policy.connections:
                limit = min(limit, self._below_limit())
            if not self._accept_from(listener, limit):
                break
        if self._policy.connections and not self.full and self._below_limit() <= 0:
            self.full = True
            self._counters.limited += 1
            self._listeners.set_full(True)
        if len(self._hold_queue):  # the queue must get shorter however many come: two leave for each that joins it
            self._release(2 * (self._counters.accepted - before))

    def _accept_from(self, listener: socket.socket, limit: int) -> bool:
        """At most so many; False: no descriptors are left."""
        dialer = self._dialer
        if (fd_reserve := self._fd_reserve).exhausted and not fd_reserve.recovered(listener.fileno()):
            limit = 0
        for _ in range(limit):
            if not dialer.reserve():
                return False
            try:
                sock, peer = listener.accept()
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in NO_RESOURCES:
                    self._listeners.pause()
                    return False
                if error.errno == errno.EINVAL and not listens(listener):
                    break
                continue  # accept(2): errors of the new connection itself, which is gone
            if self._shares and peer[0].startswith(SOURCE_PREFIX):
                reset_on_close(sock)  # a check of a daemon that is gone: another one must not answer it
                sock.close()
                continue
            self._counters.accepted += 1
            sock.setblocking(False)
            client = PendingClient(sock, sock.fileno(), self._clock(), dialer.take_reserve())
            if self._policy.allow and not self._policy.admits(peer[0]):
                self._counters.denied += 1
                self._reject(client)
            elif self._upstream is None or len(self._hold_queue):  # others were here first
                self._hold(client)
            elif self._shares and dialer.meant(peer) == self._upstream.boot_id:
                # it was to reach that daemon, whose index is another one by now: at once it would come here again
                self._patience.met(Obstacle.REFUSES, self._clock())
                self._hold(client)
                self._pause_release(self._clock())
            elif not self._connect(client):
                self._hold(client)
                if len(self._hold_queue):  # else the pause would be one of clients that come later
                    self._pause_release(self._clock())
            if sock.fileno() >= fd_reserve.first and fd_reserve.check(client.fd):
                break
        if fd_reserve.exhausted:
            self._listeners.pause()
        return not fd_reserve.exhausted

    def _below_limit(self) -> int:
        """How many connections may be added before the limit is reached."""
        return self._policy.connections - self._connections() - len(self.pending)

    def resume_below_limit(self) -> None:
        """A connection has ended, or the limit is another one: accept again if that is allowed now."""
        if self.full and not self._closed and (not self._policy.connections or self._below_limit() > 0):
            self.full = False
            self._listeners.set_full(False)

    # -- connecting --------------------------------------------------------------------------------------------------

    def _connect(self, client: PendingClient) -> bool:
        """Try it now; loopback answers at once. False: not possible at the moment, and the client is as it was.

        A reset is no refusal: the daemon had the connection and ended it, so it is passed on and not tried again.
        """
        upstream = self._upstream
        assert upstream is not None
        daemon = client.reserved or self._dialer.fresh()
        if daemon is None:
            self._patience.met(Obstacle.SHORT, self._clock())
            return False
        client.reserved = None
        code = self._dial(daemon, upstream, self._policy)
        if not code:
            self._hand_over(client, daemon, upstream)
            return True
        if code not in UNDER_WAY:
            daemon.close()
            self._counters.connect_failed += 1
            if code == errno.ECONNRESET:
                self._end_connected(client)
                return True
            no_port = code == errno.EADDRNOTAVAIL
            self._patience.met(Obstacle.SHORT if no_port else Obstacle.REFUSES, self._clock())
            return False
        if len(self._hold_queue) < self._hold_queue.max_waiting and self._pace.is_full(upstream):
            self._dialer.settle(daemon)
            daemon.close()  # the kernel has dropped the SYN: what waits here goes as soon as there is room, in order
            self._patience.met(Obstacle.FULL, self._clock())
            return False
        try:
            self._watch_for_reset(client)
            self._readiness.register(daemon.fileno(), EPOLLOUT)
        except OSError:  # epoll_ctl(2): no memory, or no more watches for this user
            self._dialer.settle(daemon)
            daemon.close()
            self._patience.met(Obstacle.SHORT, self._clock())
            return False
        client.daemon, client.daemon_fd, client.upstream = daemon, daemon.fileno(), upstream
        client.tried_at = self._clock()
        self.connecting[client.daemon_fd] = client
        self._schedule()
        return True

    def connected(self, client: PendingClient) -> None:
        """The daemon's descriptor is writable: it has answered."""
        daemon, upstream = client.daemon, client.upstream
        assert daemon is not None
        assert upstream is not None
        code = self._dialer.answered(daemon, upstream)
        if not code:
            del self.connecting[client.daemon_fd]
            self._hand_over(client, daemon, upstream)
            return
        self._counters.connect_failed += 1
        self._unconnect(client)
        if code == errno.ECONNRESET:
            self._end_connected(client)
            return
        self._patience.met(Obstacle.REFUSES, self._clock())
        self._hold_again(client)
        self._schedule()

    def _unconnect(self, client: PendingClient) -> None:
        if client.daemon is not None:
            del self.connecting[client.daemon_fd]
            self._readiness.unregister(client.daemon_fd)
            self._dialer.settle(client.daemon)
            client.daemon.close()
            client.daemon, client.daemon_fd, client.upstream = None, -1, None

    def _hand_over(self, client: PendingClient, daemon: socket.socket, upstream: Upstream) -> None:
        if upstream.proxy_protocol and not introduce(client.sock, daemon):  # one of the two is gone
            if client.daemon_fd >= 0:
                self._readiness.unregister(client.daemon_fd)
            client.daemon = None
            daemon.close()
            self._end_connected(client)
            return
        now = self._clock()
        self._connected_after(now - client.since)
        self._taken(now)
        client.gone = True
        client.daemon = None
        if client.watched:
            del self.pending[client.fd]
        self._begin(client, daemon, upstream)

    # -- holding -----------------------------------------------------------------------------------------------------

    def _hold(self, client: PendingClient) -> None:
        if self._patience.is_over(has_upstream=self._upstream is not None):
            self._counters.reset_unrouted += 1
            self._reject(client)
        elif self._hold_queue.enter(client):
            self._dialer.reserve_for(client)
            try:
                self._watch_for_reset(client)
            except OSError:  # as in _connect
                self._counters.reset_unrouted += 1
                self._reject(client)
            self._schedule()
        else:
            self._counters.hold_overflow += 1
            self._reject(client)

    def _hold_again(self, client: PendingClient) -> None:
        """A client that was released too early has its place back, and a descriptor towards the daemon."""
        self._dialer.reserve_for(client)
        self._hold_queue.return_to_front(client)

    def _watch_for_reset(self, client: PendingClient) -> None:
        if not client.watched:
            self._readiness.register(client.fd, 0)
            client.watched = True
            self.pending[client.fd] = client

    def _release(self, limit: int | None = None) -> None:
        """Connect held clients, first in first out, as the daemon's accept queue has room; stop where it refuses.

        ``limit``: how many at most; None: as many as go in one tick.
        """
        upstream, now = self._upstream, self._clock()
        if upstream is None or not len(self._hold_queue):
            return
        count = self._pace.may_go(upstream, now, limit)
        if self._pace.full:
            self._patience.met(Obstacle.FULL, now)
        for _ in range(count):
            client = self._hold_queue.next()
            if client is None:
                return
            if not self._connect(client):
                self._hold_again(client)
                self._pause_release(now)
                return
            self._pace.went()

    def _pause_release(self, now: float) -> None:
        """Connect no held client for a moment: a connect has failed."""
        (self._pace.filled if self._patience.obstacle is Obstacle.FULL else self._pace.failed)(now)

    def _tick(self) -> None:
        """While any client waits: release, and end what has waited too long."""
        self._timer = None
        try:
            self._look_at_waiting(self._clock())
        finally:  # what fails for one client must not leave the others without a further look
            self._schedule()

    def _look_at_waiting(self, now: float) -> None:
        self._release()
        for client in reversed(list(self.connecting.values())):
            if now - client.tried_at > self._connect_timeout_s:
                self._counters.connect_failed += 1
                self._patience.unanswered(client.tried_at)
                self._unconnect(client)
                self._hold_again(client)
        if now >= self._late_at:
            self._late_at = now + TICK_S
            has_upstream, timeout_s = self._upstream is not None, self._policy.hold_timeout_s
            limit = self._patience.limit(has_upstream=has_upstream, hold_timeout_s=timeout_s)
            for client in self._hold_queue.leave_late(now, limit):
                self._counters.hold_timeout += 1
                self._reject(client)

    def _schedule(self) -> None:
        if self._timer is None and (len(self._hold_queue) or self.connecting):
            self._timer = self._loop.call_later(self._pace.pause_s, self._tick)

    # -- ends --------------------------------------------------------------------------------------------------------

    def _end_connected(self, client: PendingClient) -> None:
        """Reset a client whose connection to the daemon has ended before the plane took it over."""
        self._counters.closed += 1
        self._reject(client)

    def _reject(self, client: PendingClient) -> None:
        """Reset a client that no daemon serves."""
        if not client.gone:
            reset_on_close(client.sock)
            self._close(client)

    def discard(self, client: PendingClient) -> None:
        """A client that waits has gone."""
        self._counters.hold_left += 1
        self._close(client)

    def _close(self, client: PendingClient) -> None:
        client.gone = True
        self._unconnect(client)
        if client.watched:
            del self.pending[client.fd]
            self._readiness.unregister(client.fd)
        client.sock.close()
        client.close_reserved()
        if self.full:
            self.resume_below_limit()
