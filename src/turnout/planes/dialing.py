"""Connects to the daemon: a socket for each client, made before the client is accepted, and a source address for it."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from turnout.core.connection_policy import Policy
from turnout.core.slots import index_of
from turnout.planes.fd_reserve import FdReserve
from turnout.planes.hold_queue import PendingClient
from turnout.planes.plane import Counters, Upstream, UpstreamChecks
from turnout.reuseport.program import LOCAL
from turnout.system.net.ports import may_be_a_source
from turnout.system.net.tcp import is_loopback, reset_on_close, set_up

UNDER_WAY: Final = frozenset({errno.EINPROGRESS, errno.EALREADY})
RECENT_MOST: Final = 1024
_SHORTAGES: Final = frozenset({errno.EADDRNOTAVAIL, errno.EADDRINUSE, errno.EAGAIN, errno.ENOMEM})
SOURCES: Final = 64  # 127.0.0.1 … 127.0.0.64, each with about 28,000 ports (ip(7)): 1.8 million connections
FIRST_AGAIN_S: Final = 5.0
_LATE_PORT: Final = getattr(socket, "IP_BIND_ADDRESS_NO_PORT", 24)  # ip(7), Linux 4.2; Python names it from 3.12 on
_STREAM: Final = socket.SOCK_STREAM | socket.SOCK_NONBLOCK


class Dialer:
    """Makes and connects sockets towards one upstream after the other. Owns the socket that it keeps in reserve.

    A client needs two descriptors. The second one, towards the daemon, is had before the client is accepted, and kept
    while the client waits: else those that wait would take the descriptors by which they were to reach the daemon.
    Where there is none to be had, ``no_descriptor`` is called. ``clock``: monotonic seconds.
    """

    def __init__(
        self,
        fd_reserve: FdReserve,
        no_descriptor: Callable[[], None],
        counters: Counters,
        checks: UpstreamChecks,
        clock: Callable[[], float],
    ) -> None:
        self._far = False  # the upstream is on another host
        self._fd_reserve = fd_reserve
        self._no_descriptor = no_descriptor
        self._sources = Sources(counters, clock)
        self._checks = checks
        self._has_ended = checks.has_ended
        self._family = socket.AF_INET
        self._meets_itself = False  # an outgoing connection may be given the daemon's own port
        self._reserve: socket.socket | None = None
        self._recent: dict[int, str] = {}  # the daemon of each of the last connections from 127.0.0.1, by their port
        self._doors: dict[socket.socket, tuple[int | None, str, int]] = {}  # open ones, by the socket that connects

    def set_upstream(self, upstream: Upstream | None, pending: Iterable[PendingClient]) -> None:
        """Another upstream, or none; ``pending``: whose sockets must be of the upstream's address family."""
        self._sources.last = 1
        if upstream is None:
            return
        self._far = not is_loopback(upstream.host)
        self._meets_itself = not self._far and may_be_a_source(upstream.port)
        self.use(socket.AF_INET6 if ":" in upstream.host else socket.AF_INET, pending)

    def use(self, family: socket.AddressFamily, pending: Iterable[PendingClient]) -> None:
        """Make sockets of this family from now on, and replace those that ``pending`` have."""
        if family == self._family:
            return
        self._family = family
        self.close()
        for client in pending:
            if client.reserved is not None:
                client.close_reserved()
                self.reserve_for(client)

    def reserve_for(self, client: PendingClient) -> None:
        """Have a socket for a client that has none, or lost it to a connect that failed."""
        if client.reserved is None:
            client.reserved = self.fresh()

    def reserve(self) -> bool:
        """Have a socket for the next client; False: no descriptor is left."""
        if self._reserve is None:
            self._reserve = self.fresh()
        return self._reserve is not None

    def take_reserve(self) -> socket.socket | None:
        """Give away what :meth:`reserve` has made."""
        sock, self._reserve = self._reserve, None
        return sock

    def fresh(self) -> socket.socket | None:
        """A socket that the caller owns; None: no descriptor is left, and ``no_descriptor`` was called."""
        try:
            return self._fd_reserve.admit(socket.socket(self._family, _STREAM))
        except OSError:
            self._no_descriptor()
            return None

    def dial(self, daemon: socket.socket, upstream: Upstream, policy: Policy) -> int:
        """Connect a fresh socket; loopback answers at once. An errno as ``connect_ex`` answers it, 0: it is connected.

        A connection counts only if the daemon lived after the kernel had made it: its listener was its own then. Else
        another program may have the port, so the close of the socket resets it, and the answer is ECONNREFUSED.
        """
        daemon.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        daemon.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        daemon.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        if self._far or policy.user_timeout_s is not None:  # a peer on loopback does not vanish
            set_up(daemon, user_timeout_ms=policy.user_timeout_ms())
        address = (upstream.host, upstream.port)
        sources = self._sources
        if upstream.source:
            # it shares the address with us: once it has left, its index is ours, and no socket would refuse
            code = self._dial_member(daemon, upstream) if self._checks.is_there(upstream) else errno.ECONNREFUSED
        else:
            code = daemon.connect_ex(address) if sources.last == 1 else errno.EADDRNOTAVAIL
            if code == errno.EADDRNOTAVAIL:
                code = sources.connect(daemon, address)
        if code == errno.EINPROGRESS:  # a second look usually finds it done
            code = daemon.connect_ex(address)
        if self._doors and code not in UNDER_WAY:
            self.settle(daemon)
        if code != 0 and code != errno.EISCONN:  # noqa: PLR1714  # a set made for each connection costs more
            return code
        if self._meets_itself and daemon.getsockname()[:2] == address:
            # RFC 9293, 3.5: with no listener TCP can connect to itself, and would keep the port from the daemon
            reset_on_close(daemon)
            return errno.ECONNREFUSED
        return self._refused_if_ended(daemon, upstream)

    def answered(self, daemon: socket.socket, upstream: Upstream) -> int:
        """The same for a socket whose connect took its time, now that the kernel has an answer."""
        self.settle(daemon)
        return daemon.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or self._refused_if_ended(daemon, upstream)

    def _refused_if_ended(self, daemon: socket.socket, upstream: Upstream) -> int:
        if self._has_ended(upstream):
            reset_on_close(daemon)
            return errno.ECONNREFUSED
        return 0

    def _dial_member(self, daemon: socket.socket, upstream: Upstream) -> int:
        """Connect a fresh socket to one daemon of the group at the fixed address; answers as ``connect_ex``.

        A router that does not steer the group connects as a client does, and so to the active daemon.
        """
        address, doors = (upstream.host, upstream.port), self._checks.doors
        if doors and doors.have_moved:
            return daemon.connect_ex(address)
        try:
            host = _bind_any((LOCAL, upstream.source), daemon)
            if doors:
                door = index_of(upstream.source), host, daemon.getsockname()[1]
                doors.open(*door)
                self._doors[daemon] = door
                self._note_recent(door[2], upstream.boot_id)
        except OSError as error:
            # without a port, a door or memory clients wait; the daemon does not refuse them
            return errno.EADDRNOTAVAIL if error.errno in _SHORTAGES else errno.ECONNREFUSED
        return daemon.connect_ex(address)

    def _note_recent(self, port: int, boot_id: str) -> None:
        if len(self._recent) >= RECENT_MOST:
            del self._recent[next(iter(self._recent))]
        self._recent.pop(port, None)
        self._recent[port] = boot_id

    def meant(self, peer: tuple[str, int]) -> str:
        """The daemon to which a connection from there was just made here; empty: it is not one of the last."""
        return self._recent.get(peer[1], "") if peer[0] == LOCAL else ""

    def settle(self, daemon: socket.socket) -> None:
        """The connect of this socket is done or given up, and the socket is open still: shut its door."""
        door = self._doors.pop(daemon, None)
        if door and self._checks.doors:
            with contextlib.suppress(OSError):  # it is shut with the next one
                self._checks.doors.close(*door)

    def close(self) -> None:
        """Give the reserve back; another one may be made later."""
        if self._reserve is not None:
            self._reserve.close()
            self._reserve = None


class Sources:
    """Connects from the next loopback address where one has no port left.

    127.0.0.1 is what daemons know as local (``pg_hba.conf``), so it is gone back to every few seconds: by then some
    connections may have ended. In between the last one that had a port is tried first, for finding none costs a walk
    through all.

    ``counters``: ``other_source`` and ``ports_exhausted`` are kept there. ``last``: the last byte of the address that
    had a port; 1: nothing is tight, a plain connect will do.
    """

    def __init__(self, counters: Counters, clock: Callable[[], float]) -> None:
        self._counters = counters
        self._clock = clock
        self.last = 1
        self._again_at = 0.0

    def connect(self, daemon: socket.socket, address: tuple[str, int]) -> int:
        """Connect a fresh socket from another address; answers as ``connect_ex``. EADDRNOTAVAIL: none has a port left.

        An IPv6 daemon has one loopback address, so there is no other one to come from; nor for one on another host.
        """
        if ":" in address[0] or not is_loopback(address[0]):
            self._counters.ports_exhausted += 1
            return errno.EADDRNOTAVAIL
        now = self._clock()
        if now >= self._again_at:
            self.last = 1
            self._again_at = now + FIRST_AGAIN_S
        daemon.setsockopt(socket.IPPROTO_IP, _LATE_PORT, 1)
        for step in range(SOURCES):
            last = (self.last - 1 + step) % SOURCES + 1
            try:
                daemon.bind((f"127.0.0.{last}", 0))
            except OSError as error:
                return error.errno or errno.EADDRNOTAVAIL
            code = daemon.connect_ex(address)
            if code != errno.EADDRNOTAVAIL:
                self.last = last
                self._counters.other_source += last > 1
                return code
        self._counters.ports_exhausted += 1
        return errno.EADDRNOTAVAIL


def _bind_any(hosts: Sequence[str], sock: socket.socket) -> str:
    """Bind a socket to a port of the first of these addresses that has one; answers the address.

    bind(2) passes over ports whose last connection ended within a minute (TIME_WAIT), so one address may have none.

    Raises:
        OSError: none has; or the socket cannot be bound.
    """
    for host in hosts[:-1]:
        try:
            sock.bind((host, 0))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            return host
    sock.bind((hosts[-1], 0))
    return hosts[-1]
