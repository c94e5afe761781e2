"""The front of a plane: accepts on the fixed address, admits, holds, connects to the active daemon, tries again.

Who moves the bytes is not its concern: it hands over a client and a daemon that are connected to each other's plane.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import Final

from turnout.core.slots import CHOOSING
from turnout.planes.headroom import Headroom
from turnout.planes.hold import Hold, Waiting
from turnout.planes.listeners import Listeners
from turnout.planes.plane import Counters, Target
from turnout.planes.policy import Policy
from turnout.planes.readiness import EOUT, Readiness
from turnout.planes.sources import Sources, connect_from, may_be_a_source
from turnout.planes.tcp import INHERITS, introduce, is_loopback, listens, reset_on_close, set_up

ACCEPTS_PER_WAKEUP: Final = 64
BACKLOG: Final = 1 << 16  # more than any accept queue has (listen(2))
TICK_S: Final = 0.02
SHORTAGE_S: Final = 1.0  # after a connect found none
SHORTAGE_PATIENCE_S: Final = 10.0
PROBE_FIRST_S: Final = 0.02
PROBE_MOST_S: Final = 0.25
_NO_RESOURCES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_NONBLOCK: Final = getattr(socket, "SOCK_NONBLOCK", 0)
_STREAM: Final = socket.SOCK_STREAM | _NONBLOCK
_UNDER_WAY: Final = frozenset({errno.EINPROGRESS, errno.EALREADY})
Begin = Callable[[Waiting, socket.socket, Target], None]
IsThere = Callable[[Target], bool]


class Front:
    """Owns the listeners, and every client until it is handed over together with its daemon's socket.

    The plane looks up descriptors that are ready in ``listeners``, ``connecting`` and ``waiting``, and calls
    :meth:`accept`, :meth:`connected` or :meth:`forget`.

    Args:
        loop: for timers; only its thread may call.
        readiness: where descriptors are registered. A client that is handed over is registered if it is ``listed``, its
            daemon's socket if it is not -1 in ``daemon_fd``; the plane takes both over as they are.
        counters: the plane's.
        begin: takes over a client and a connected daemon; called for every connection.
        carried: how many connections the plane has taken over and still carries.
        policy: see there.
        connect_timeout_s: after so many seconds a connect that is not answered is tried anew.
        release_per_tick: how many held connections are let go at once; the rest follows with the next ticks.
        clock: monotonic seconds.
        is_there: whether a daemon that shares the fixed address still listens there.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        readiness: Readiness,
        counters: Counters,
        begin: Begin,
        carried: Callable[[], int],
        *,
        policy: Policy,
        connect_timeout_s: float,
        release_per_tick: int,
        clock: Callable[[], float],
        is_there: IsThere,
    ) -> None:
        self._listeners = Listeners(loop, readiness, counters)
        self.listeners = self._listeners.by_fd
        self._headroom = Headroom()
        self.connecting: dict[int, Waiting] = {}  # by the daemon's descriptor
        self.waiting: dict[int, Waiting] = {}  # by the client's descriptor
        self.full = False  # the limit of connections is reached: the plane calls `room` when one ends
        self._loop = loop
        self._readiness = readiness
        self._counters = counters
        self._connected_after = counters.connect_s.add
        self._begin = begin
        self._carried = carried
        self._clock = clock
        self._connect_timeout_s = connect_timeout_s
        self._release_per_tick = release_per_tick
        self._target: Target | None = None
        self._family = socket.AF_INET
        self._far = False
        self._meets_itself = False  # an outgoing connection may be given the daemon's own port
        self._patience_s = 0.0
        self._closed = False
        self._policy = policy
        self._hold = Hold(policy.hold_max, counters)
        self._sources = Sources(counters, clock)
        self._is_there = is_there
        self._shares = False  # the address, with daemons
        self._short_until = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._probe_at = 0.0
        self._probe_pause_s = PROBE_FIRST_S

    # -- from the plane ----------------------------------------------------------------------------------------------

    def apply(self, policy: Policy) -> None:
        """For connections that come from now on; those that wait keep their places also in a smaller hold."""
        self._policy = policy
        self._hold.most = policy.hold_max
        for sock in self.listeners.values():
            set_up(sock, user_timeout_ms=policy.user_timeout_ms())
        self.room()

    def point_at(self, target: Target | None, *, patience_s: float) -> None:
        moved = target != self._target
        self._target = target
        self._patience_s = patience_s
        if not moved and target is not None:
            return
        if target is not None:
            self._family = socket.AF_INET6 if ":" in target.host else socket.AF_INET
            self._far = not is_loopback(target.host)
            self._meets_itself = not self._far and may_be_a_source(target.port)
        self._sources.last = 1
        self._probe_pause_s = PROBE_FIRST_S
        self._probe_at = 0.0
        for waiting in reversed(list(self.connecting.values())):  # the first of them ends up in front again
            if waiting.target != target:  # nothing was sent yet: it may as well go to the new one
                self._unconnect(waiting)
                self._hold.return_to_front(waiting)
        if target is None and patience_s <= 0:
            while (nobody := self._hold.next()) is not None:
                self._turn_away(nobody)
                self._counters.reset_unrouted += 1
        self._release(self._release_per_tick)
        self._schedule()

    def add_listener(self, sock: socket.socket) -> None:
        self._listeners.add(sock, user_timeout_ms=self._policy.user_timeout_ms())
        self._shares = self._listeners.shared

    def remove_listener(self, address: tuple[str, int]) -> None:
        """Accept no more at ``address``; who is in its accept queue by now is served still."""
        for sock in self._listeners.at(address):
            self._accept_from(sock, BACKLOG)
            self._listeners.remove(sock)

    def stop_accepting(self) -> None:
        self._listeners.close()

    def close(self) -> None:
        """Turn everybody away who is not handed over yet."""
        self._closed = True
        if self._timer:
            self._timer.cancel()
        self.stop_accepting()
        for waiting in list(self.waiting.values()):
            self._turn_away(waiting)

    # -- accepting ---------------------------------------------------------------------------------------------------

    def accept(self) -> None:
        """A listener is readable."""
        before = self._counters.accepted
        if self._shares:
            self._listeners.drop_shut()
        for listener in list(self.listeners.values()):
            most = ACCEPTS_PER_WAKEUP
            if self._policy.connections:
                most = min(most, self._room())
            if not self._accept_from(listener, most):
                break
        if self._policy.connections and not self.full and self._room() <= 0:
            self.full = True
            self._counters.limited += 1
            self._listeners.set_full(True)
        if len(self._hold):  # the queue must get shorter however many come: two leave for each that joins it
            self._release(2 * (self._counters.accepted - before))

    def _accept_from(self, listener: socket.socket, most: int) -> bool:
        """At most so many; False: no descriptors are left."""
        if (headroom := self._headroom).short and not headroom.is_over(listener.fileno()):
            most = 0
        for _ in range(most):
            try:
                client, peer = listener.accept()
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in _NO_RESOURCES:
                    self._listeners.pause()
                    return False
                if error.errno == errno.EINVAL and not listens(listener):
                    break
                continue  # accept(2): errors of the new connection itself, which is gone
            if self._shares and peer[0].startswith(CHOOSING):
                reset_on_close(client)  # it meant a daemon that is gone, and would be relayed to ourselves
                client.close()
                continue
            self._counters.accepted += 1
            client.setblocking(False)
            if not INHERITS:
                set_up(client, user_timeout_ms=self._policy.user_timeout_ms())
            waiting = Waiting(client, self._clock())
            if self._policy.allow and not self._policy.admits(peer[0]):
                self._counters.denied += 1
                self._turn_away(waiting)
            # to the daemon at once, unless others were here first
            elif self._target is None or len(self._hold) or not self._connect(waiting):
                self._keep(waiting)
            if client.fileno() >= headroom.first and headroom.is_short(client.fileno()):
                break
        if headroom.short:
            self._listeners.pause()
        return not headroom.short

    def _room(self) -> int:
        """How many connections may be added before the limit is reached."""
        return self._policy.connections - self._carried() - len(self.waiting)

    def room(self) -> None:
        """A connection has ended, or the limit is another one: accept again if there is room now."""
        if self.full and not self._closed and (not self._policy.connections or self._room() > 0):
            self.full = False
            self._listeners.set_full(False)

    # -- connecting --------------------------------------------------------------------------------------------------

    def _connect(self, waiting: Waiting) -> bool:
        """Try it now; loopback answers at once. False: refused, or no resources, and the client is as it was.

        A reset is no refusal: the daemon had the connection and ended it, so it is passed on and not tried again.
        """
        target = self._target
        assert target is not None
        try:
            daemon = self._headroom.checked(socket.socket(self._family, _STREAM))
        except OSError:
            self._listeners.pause()
            self._short_until = self._clock() + SHORTAGE_S
            return False
        if not _NONBLOCK:
            daemon.setblocking(False)
        daemon.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        daemon.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if self._far or self._policy.user_timeout_s is not None:  # a peer on loopback does not vanish
            set_up(daemon, user_timeout_ms=self._policy.user_timeout_ms())
        address = (target.host, target.port)
        sources = self._sources
        if target.source:
            # it shares the address with us: once it has left, its place is ours, and nobody would refuse
            code = connect_from(target.source, daemon, address) if self._is_there(target) else errno.ECONNREFUSED
        else:
            code = daemon.connect_ex(address) if sources.last == 1 else errno.EADDRNOTAVAIL
            if code == errno.EADDRNOTAVAIL:
                code = sources.connect(daemon, address)
        if code == errno.EINPROGRESS:  # a second look usually finds it done
            code = daemon.connect_ex(address)
        if self._meets_itself and code in {0, errno.EISCONN} and daemon.getsockname()[:2] == address:
            # RFC 9293, 3.5: with nobody listening TCP can meet itself, and would keep the port from the daemon
            reset_on_close(daemon)
            code = errno.ECONNREFUSED
        if code == 0 or code == errno.EISCONN:  # noqa: PLR1714  # a set made for each connection costs more
            self._hand_over(waiting, daemon, target)
            return True
        if code not in _UNDER_WAY:
            daemon.close()
            self._counters.connect_failed += 1
            if code == errno.ECONNRESET:
                self._turn_away(waiting)
                return True
            if code == errno.EADDRNOTAVAIL:
                self._short_until = self._clock() + SHORTAGE_S
            return False
        waiting.daemon, waiting.daemon_fd, waiting.target = daemon, daemon.fileno(), target
        waiting.tried_at = self._clock()
        self.connecting[waiting.daemon_fd] = waiting
        self._readiness.register(waiting.daemon_fd, EOUT)
        self._list(waiting)
        self._schedule()
        return True

    def connected(self, waiting: Waiting) -> None:
        """The daemon's descriptor is writable: it has answered."""
        daemon, target = waiting.daemon, waiting.target
        assert daemon is not None
        assert target is not None
        code = daemon.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._counters.connect_failed += 1
            self._unconnect(waiting)
            if code == errno.ECONNRESET:
                self._turn_away(waiting)
                return
            self._hold.return_to_front(waiting)
            self._schedule()
            return
        del self.connecting[waiting.daemon_fd]
        self._hand_over(waiting, daemon, target)

    def _unconnect(self, waiting: Waiting) -> None:
        if waiting.daemon is not None:
            del self.connecting[waiting.daemon_fd]
            self._readiness.unregister(waiting.daemon_fd)
            waiting.daemon.close()
            waiting.daemon, waiting.daemon_fd, waiting.target = None, -1, None

    def _hand_over(self, waiting: Waiting, daemon: socket.socket, target: Target) -> None:
        if target.proxy_protocol and not self._introduce(waiting, daemon):
            return
        self._connected_after(self._clock() - waiting.since)
        waiting.gone = True
        waiting.daemon = None
        if waiting.listed:
            del self.waiting[waiting.client_fd]
        self._begin(waiting, daemon, target)

    def _introduce(self, waiting: Waiting, daemon: socket.socket) -> bool:
        """Tell the daemon who its client is, before any byte of his; False: one of the two is gone."""
        if introduce(waiting.client, daemon):
            return True
        if waiting.daemon_fd >= 0:
            self._readiness.unregister(waiting.daemon_fd)
        waiting.daemon = None
        daemon.close()
        self._turn_away(waiting)
        return False

    # -- holding -----------------------------------------------------------------------------------------------------

    def _keep(self, waiting: Waiting) -> None:
        if self._patience_s <= 0:
            self._counters.reset_unrouted += 1
            self._turn_away(waiting)
        elif self._hold.enter(waiting):
            self._list(waiting)
            self._schedule()
        else:
            self._counters.hold_overflow += 1
            self._turn_away(waiting)

    def _list(self, waiting: Waiting) -> None:
        """Hear of its death while it waits."""
        if not waiting.listed:
            waiting.listed = True
            self.waiting[waiting.client_fd] = waiting
            self._readiness.register(waiting.client_fd, 0)

    def _release(self, most: int) -> None:
        """Let at most so many held connections go, first in first out; stop where the daemon refuses."""
        if self._target is None or self._clock() < self._probe_at:
            return
        for _ in range(most):
            waiting = self._hold.next()
            if waiting is None:
                return
            if not self._connect(waiting):
                self._hold.return_to_front(waiting)
                self._probe_at = self._clock() + self._probe_pause_s
                self._probe_pause_s = min(self._probe_pause_s * 2, PROBE_MOST_S)
                return
            self._probe_pause_s = PROBE_FIRST_S

    def _tick(self) -> None:
        """While anything waits: release, and end what has waited too long."""
        self._timer = None
        now = self._clock()
        self._release(self._release_per_tick)
        for waiting in list(self.connecting.values()):
            if now - waiting.tried_at > self._connect_timeout_s:
                self._counters.connect_failed += 1
                self._unconnect(waiting)
                self._hold.return_to_front(waiting)
        # no descriptor or no port was left: that is no daemon which refuses, so its clients wait for longer
        patience_s = max(self._patience_s, SHORTAGE_PATIENCE_S) if now < self._short_until else self._patience_s
        for waiting in self._hold.leave_late(now, patience_s):
            self._counters.hold_timeout += 1
            self._turn_away(waiting)
        self._schedule()

    def _schedule(self) -> None:
        if self._timer is None and (len(self._hold) or self.connecting):
            self._timer = self._loop.call_later(TICK_S, self._tick)

    def _turn_away(self, waiting: Waiting) -> None:
        """Reset a client that nobody serves."""
        if not waiting.gone:
            reset_on_close(waiting.client)
            self.forget(waiting)

    def forget(self, waiting: Waiting) -> None:
        """A client that waits has gone."""
        waiting.gone = True
        self._unconnect(waiting)
        if waiting.listed:
            del self.waiting[waiting.client_fd]
            self._readiness.unregister(waiting.client_fd)
        waiting.client.close()
        if self.full:
            self.room()
