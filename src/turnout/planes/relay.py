"""The relay: accepts on the fixed address, connects to the active daemon, and pumps. Any daemon, no privileges.

It has an epoll of its own, nested as one reader in uvloop: a uvloop reader is not called again for a reset that comes
behind unread bytes, and one that is paused never hears of it. Here every descriptor stays registered, and hears.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import select
import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

from turnout.planes.hold import Hold, Waiting
from turnout.planes.plane import Carried, Census, Counters, Target
from turnout.planes.pump import EDEAD, EIN, FLOWING, RESET_LINGER, Pair, Pump

ACCEPTS_PER_WAKEUP: Final = 64
EVENTS_PER_WAKEUP: Final = 256
ROUNDS_PER_WAKEUP: Final = 4
MANY_EVENTS: Final = 8
TICK_S: Final = 0.02
FD_PAUSE_S: Final = 0.05
PROBE_FIRST_S: Final = 0.02
PROBE_MOST_S: Final = 0.25
_NO_RESOURCES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_UNDER_WAY: Final = frozenset({errno.EINPROGRESS, errno.EALREADY})


class Tally:
    """What one boot has open, and what its closed connections moved."""

    __slots__ = ("bytes_in", "bytes_out", "pairs")

    def __init__(self) -> None:
        self.pairs: set[Pair] = set()
        self.bytes_in = 0
        self.bytes_out = 0


class Relay:
    """The plane for any daemon. Owns its epoll, its listeners and every connection.

    Args:
        loop: the loop that runs it; only its thread may call.
        hold_max: how many connections may wait at most, 0 or more; one more is reset at once.
        connect_timeout_s: after so many seconds a connect that is not answered is tried anew.
        release_per_tick: how many held connections are let go at once; the rest follows with the next ticks.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        hold_max: int = 1024,
        connect_timeout_s: float = 5.0,
        release_per_tick: int = 64,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counters = Counters()
        self._loop = loop
        self._clock = clock
        self._connect_timeout_s = connect_timeout_s
        self._release_per_tick = release_per_tick
        self._target: Target | None = None
        self._patience_s = 0.0
        self._epoll = select.epoll()
        self._pump = Pump(self._epoll, self.counters, self._closed)
        # bound once: these run for every event
        self._poll = self._epoll.poll
        self._flow_of = self._pump.flows.get
        self._read = self._pump.read
        self._listeners: dict[int, socket.socket] = {}
        self._accepting = False
        self._hold = Hold(hold_max, self.counters)
        self._connecting: dict[int, Waiting] = {}  # by the daemon's descriptor
        self._waiting: dict[int, Waiting] = {}  # by the client's descriptor
        self._tallies: dict[str, Tally] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._again: asyncio.Handle | None = None
        self._probe_at = 0.0
        self._probe_pause_s = PROBE_FIRST_S
        loop.add_reader(self._epoll.fileno(), self._ready)

    # -- the contract ------------------------------------------------------------------------------------------------

    def point_at(self, target: Target | None, *, patience_s: float) -> None:
        moved = target != self._target
        self._target = target
        self._patience_s = patience_s
        if not moved and target is not None:
            return
        self._probe_pause_s = PROBE_FIRST_S
        self._probe_at = 0.0
        for waiting in reversed(list(self._connecting.values())):  # the first of them ends up in front again
            if waiting.target != target:  # nothing was sent yet: it may as well go to the new one
                self._unconnect(waiting)
                self._hold.return_to_front(waiting)
        if target is None and patience_s <= 0:
            while (nobody := self._hold.next()) is not None:
                self._turn_away(nobody)
                self.counters.reset_unrouted += 1
        self._release(self._release_per_tick)
        self._schedule()
        self._go_on()

    def census(self) -> Mapping[str, Census]:
        found: dict[str, Census] = {}
        for boot_id, tally in self._tallies.items():
            bytes_in = tally.bytes_in + sum(pair.up.count for pair in tally.pairs)
            bytes_out = tally.bytes_out + sum(pair.down.count for pair in tally.pairs)
            found[boot_id] = Census(len(tally.pairs), bytes_in, bytes_out)
        return found

    def connections(self) -> int:
        return sum(len(tally.pairs) for tally in self._tallies.values())

    def carried(self, boot_id: str, *, peers: bool = False) -> Sequence[Carried]:
        tally = self._tallies.get(boot_id)
        now = self._clock()
        return [pair.carried(now, peers=peers) for pair in tally.pairs] if tally else []

    def cut(self, boot_id: str, ids: Collection[int] | None = None) -> int:
        tally = self._tallies.get(boot_id)
        pairs = [pair for pair in tally.pairs if ids is None or pair.id in ids] if tally else []
        end = self._pump.reset if ids is None else self._pump.end
        for pair in pairs:
            end(pair)
        self.counters.cut += len(pairs)
        return len(pairs)

    def add_listener(self, sock: socket.socket) -> None:
        own = sock.dup()
        own.setblocking(False)
        self._listeners[own.fileno()] = own
        self._epoll.register(own.fileno(), select.EPOLLIN)
        self._accepting = True

    def stop_accepting(self) -> None:
        for sock in self._listeners.values():
            self._epoll.unregister(sock.fileno())
            sock.close()
        self._listeners.clear()

    def close(self) -> None:
        if self._epoll.closed:
            return
        self._loop.remove_reader(self._epoll.fileno())
        for handle in (self._timer, self._again):
            if handle:
                handle.cancel()
        self.stop_accepting()
        for waiting in list(self._waiting.values()):
            self._turn_away(waiting)
        self._pump.close()
        self._epoll.close()

    # -- events ------------------------------------------------------------------------------------------------------

    def _ready(self) -> None:
        """Handle what is there; while that is much, look again at once, which is cheaper than a round of the loop."""
        for _ in range(ROUNDS_PER_WAKEUP):
            if self._handle_events() < MANY_EVENTS or self._epoll.closed:
                break
        self._go_on()

    def _handle_events(self) -> int:
        """One look. New descriptors are made last, so that no event meets a number that changed hands."""
        flow_of = self._flow_of
        read = self._read
        knocking = False
        made: list[Waiting] | None = None
        events = self._poll(0, EVENTS_PER_WAKEUP)
        for fd, what in events:
            flow = flow_of(fd)
            if flow is not None:
                # by far the most frequent: something to read, and nothing in its way
                if what == EIN and flow.state is FLOWING:
                    read(flow)
                else:
                    self._pump.handle(flow, what)
            elif fd in self._listeners:
                knocking = True
            elif fd in self._connecting:
                made = made or []
                made.append(self._connecting[fd])
            elif fd in self._waiting and what & EDEAD:
                self._forget(self._waiting[fd])  # a held client that resets leaves at once
        for waiting in made or ():
            if not waiting.gone and waiting.daemon is not None:
                self._connected(waiting)
        if knocking:
            self._accept()
        return len(events)

    def _go_on(self) -> None:
        """Read on from sources that no event will call for; what is left comes with the loop's next round."""
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if self._pump.again and not self._epoll.closed:
            self._pump.run_again()
        if self._pump.again:
            self._again = self._loop.call_soon(self._go_on)

    # -- accepting ---------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        before = self.counters.accepted
        self._accept_all()
        if len(self._hold):  # the queue must get shorter however many come: two leave for each that joins it
            self._release(2 * (self.counters.accepted - before))

    def _accept_all(self) -> None:
        for listener in list(self._listeners.values()):
            for _ in range(ACCEPTS_PER_WAKEUP):
                try:
                    client, _ = listener.accept()
                except BlockingIOError:
                    break
                except OSError as error:
                    if error.errno in _NO_RESOURCES:
                        self._pause_accepting()
                        return
                    continue  # accept(2): errors of the new connection itself, which is gone
                self.counters.accepted += 1
                client.setblocking(False)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                self._welcome(Waiting(client, self._clock()))

    def _pause_accepting(self) -> None:
        """No descriptors: the listener stays readable, so it is not watched for a moment instead of spinning."""
        self.counters.fd_exhausted += 1
        if not self._accepting:
            return
        self._accepting = False
        for fd in self._listeners:
            self._epoll.modify(fd, 0)
        self._loop.call_later(FD_PAUSE_S, self._resume_accepting)

    def _resume_accepting(self) -> None:
        self._accepting = True
        if not self._epoll.closed:
            for fd in self._listeners:
                self._epoll.modify(fd, select.EPOLLIN)

    def _welcome(self, waiting: Waiting) -> None:
        """A new connection: to the daemon at once, unless others were here first."""
        self._waiting[waiting.client_fd] = waiting
        self._epoll.register(waiting.client_fd, 0)
        if self._target is not None and not len(self._hold) and self._connect(waiting):
            return
        self._keep(waiting)

    # -- connecting --------------------------------------------------------------------------------------------------

    def _connect(self, waiting: Waiting) -> bool:
        """Try it now; loopback answers at once. False: refused, or no resources, and the client is as it was.

        A reset is no refusal: the daemon had the connection and ended it, so it is passed on and not tried again.
        """
        target = self._target
        assert target is not None
        try:
            daemon = socket.socket(
                socket.AF_INET6 if ":" in target.host else socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK
            )
        except OSError:
            self.counters.fd_exhausted += 1
            return False
        daemon.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        daemon.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        address = (target.host, target.port)
        code = daemon.connect_ex(address)
        if code == errno.EADDRNOTAVAIL:
            code = _from_another_source(daemon, address)
        if code == errno.EINPROGRESS:  # a second look usually finds it done
            code = daemon.connect_ex(address)
        if code in {0, errno.EISCONN}:
            self._begin(waiting, daemon, target)
            return True
        if code not in _UNDER_WAY:
            daemon.close()
            self.counters.connect_failed += 1
            if code == errno.ECONNRESET:
                self._turn_away(waiting)
                return True
            return False
        waiting.daemon, waiting.daemon_fd, waiting.target = daemon, daemon.fileno(), target
        waiting.tried_at = self._clock()
        self._connecting[waiting.daemon_fd] = waiting
        self._epoll.register(waiting.daemon_fd, select.EPOLLOUT)
        self._schedule()
        return True

    def _connected(self, waiting: Waiting) -> None:
        daemon, target = waiting.daemon, waiting.target
        assert daemon is not None
        assert target is not None
        code = daemon.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self.counters.connect_failed += 1
            self._unconnect(waiting)
            if code == errno.ECONNRESET:
                self._turn_away(waiting)
                return
            self._hold.return_to_front(waiting)
            self._schedule()
            return
        del self._connecting[waiting.daemon_fd]
        self._begin(waiting, daemon, target)

    def _unconnect(self, waiting: Waiting) -> None:
        if waiting.daemon is not None:
            del self._connecting[waiting.daemon_fd]
            waiting.daemon.close()
            waiting.daemon, waiting.daemon_fd, waiting.target = None, -1, None

    def _begin(self, waiting: Waiting, daemon: socket.socket, target: Target) -> None:
        waiting.gone = True
        waiting.daemon = None
        self._waiting.pop(waiting.client_fd, None)
        pair = self._pump.add(waiting.client, daemon, target.boot_id, since=waiting.since)
        if not pair.closed:
            self._tallies.setdefault(target.boot_id, Tally()).pairs.add(pair)

    def _closed(self, pair: Pair) -> None:
        tally = self._tallies.setdefault(pair.boot_id, Tally())
        tally.pairs.discard(pair)
        tally.bytes_in += pair.up.count
        tally.bytes_out += pair.down.count
        self.counters.closed += 1

    # -- holding -----------------------------------------------------------------------------------------------------

    def _keep(self, waiting: Waiting) -> None:
        if self._patience_s <= 0:
            self.counters.reset_unrouted += 1
            self._turn_away(waiting)
        elif self._hold.enter(waiting):
            self._schedule()
        else:
            self.counters.hold_overflow += 1
            self._turn_away(waiting)

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
        for waiting in list(self._connecting.values()):
            if now - waiting.tried_at > self._connect_timeout_s:
                self.counters.connect_failed += 1
                self._unconnect(waiting)
                self._hold.return_to_front(waiting)
        for waiting in self._hold.leave_late(now, self._patience_s):
            self.counters.hold_timeout += 1
            self._turn_away(waiting)
        self._schedule()
        self._go_on()

    def _schedule(self) -> None:
        if self._timer is None and (len(self._hold) or self._connecting):
            self._timer = self._loop.call_later(TICK_S, self._tick)

    def _turn_away(self, waiting: Waiting) -> None:
        """Reset a client that nobody serves."""
        if not waiting.gone:
            waiting.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_LINGER)
            self._forget(waiting)

    def _forget(self, waiting: Waiting) -> None:
        waiting.gone = True
        self._unconnect(waiting)
        self._waiting.pop(waiting.client_fd, None)
        waiting.client.close()


def _from_another_source(daemon: socket.socket, address: tuple[str, int]) -> int:
    """One source address has about 28,000 ports towards one daemon; loopback has more addresses (ip(7))."""
    if not ipaddress.ip_address(address[0]).is_loopback or ":" in address[0]:
        return errno.EADDRNOTAVAIL
    for last in range(2, 10):
        try:
            daemon.bind((f"127.0.0.{last}", 0))
        except OSError:
            return errno.EADDRNOTAVAIL
        code = daemon.connect_ex(address)
        if code != errno.EADDRNOTAVAIL:
            return code
    return errno.EADDRNOTAVAIL
