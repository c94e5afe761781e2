"""The relay: accepts on the fixed address, connects to the active daemon, and pumps. Any daemon, no privileges.

It has an epoll of its own, nested as one reader in uvloop: a uvloop reader is not called again for a reset that comes
behind unread bytes, and one that is paused never hears of it. Here every descriptor stays registered, and hears.
"""

from __future__ import annotations

import asyncio
import select
import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import ClassVar, Final

from turnout.planes.front import Front
from turnout.planes.hold import Waiting
from turnout.planes.idle import IdleTimeout
from turnout.planes.plane import Carried, Census, Counters, Target
from turnout.planes.policy import DEFAULT_POLICY, Policy
from turnout.planes.pump import EDEAD, EIN, FLOWING, Pair, Pump
from turnout.planes.tally import Tallies

EVENTS_PER_WAKEUP: Final = 256
ROUNDS_PER_WAKEUP: Final = 4
MANY_EVENTS: Final = 8


class Relay:
    """The plane for any daemon. Owns its epoll, its front and every connection.

    Args:
        loop: the loop that runs it; only its thread may call.
        policy: see there; :meth:`apply` changes it.
        connect_timeout_s: after so many seconds a connect that is not answered is tried anew.
        release_per_tick: how many held connections are let go at once; the rest follows with the next ticks.
        clock: monotonic seconds.
    """

    name: ClassVar[str] = "relay"

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        policy: Policy = DEFAULT_POLICY,
        connect_timeout_s: float = 5.0,
        release_per_tick: int = 64,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counters = Counters()
        self._loop = loop
        self._clock = clock
        self._epoll = select.epoll()
        self._pump = Pump(self._epoll, self.counters, self._closed)
        self._tallies: Tallies[Pair] = Tallies()
        self._front = front = Front(
            loop,
            self._epoll,
            self.counters,
            self._begin,
            self._tallies.connections,
            policy=policy,
            connect_timeout_s=connect_timeout_s,
            release_per_tick=release_per_tick,
            clock=clock,
        )
        self._idle = IdleTimeout(loop, self._tallies, self._end_idle, clock=clock)
        self._idle.set(policy.idle_timeout_s)
        # bound once: these run for every event
        self._poll = self._epoll.poll
        self._flow_of = self._pump.flows.get
        self._read = self._pump.read
        self._listeners = front.listeners
        self._connecting = front.connecting
        self._waiting = front.waiting
        self._again: asyncio.Handle | None = None
        loop.add_reader(self._epoll.fileno(), self._ready)

    # -- the contract ------------------------------------------------------------------------------------------------

    def apply(self, policy: Policy) -> None:
        self._front.apply(policy)
        self._idle.set(policy.idle_timeout_s)

    def point_at(self, target: Target | None, *, patience_s: float) -> None:
        self._front.point_at(target, patience_s=patience_s)

    def census(self) -> Mapping[str, Census]:
        return self._tallies.census()

    def connections(self) -> int:
        return self._tallies.connections()

    def carried(self, boot_id: str, *, peers: bool = False) -> Sequence[Carried]:
        return self._tallies.carried(boot_id, self._clock(), peers=peers)

    def cut(self, boot_id: str, ids: Collection[int] | None = None) -> int:
        pairs = self._tallies.chosen(boot_id, ids)
        end = self._pump.reset if ids is None else self._pump.end
        for pair in pairs:
            end(pair)
        self.counters.cut += len(pairs)
        return len(pairs)

    def add_listener(self, sock: socket.socket) -> None:
        self._front.add_listener(sock)

    def remove_listener(self, address: tuple[str, int]) -> None:
        self._front.remove_listener(address)

    def stop_accepting(self) -> None:
        self._front.stop_accepting()

    def close(self) -> None:
        if self._epoll.closed:
            return
        self._loop.remove_reader(self._epoll.fileno())
        if self._again:
            self._again.cancel()
        self._idle.set(None)
        self._front.close()
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
                self._front.forget(self._waiting[fd])  # a held client that resets leaves at once
        for waiting in made or ():
            if not waiting.gone and waiting.daemon is not None:
                self._front.connected(waiting)
        if knocking:
            self._front.accept()
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

    # -- for the front -----------------------------------------------------------------------------------------------

    def _begin(self, waiting: Waiting, daemon: socket.socket, target: Target) -> None:
        boot_id = target.boot_id
        pair = self._pump.add(waiting.client, daemon, boot_id, since=waiting.since, fresh=not waiting.listed)
        if not pair.closed:
            self._tallies.of(boot_id).pairs.add(pair)
        if self._pump.again and self._again is None:
            self._again = self._loop.call_soon(self._go_on)

    def _closed(self, pair: Pair) -> None:
        self._tallies.closed(pair)
        self.counters.closed += 1
        if self._front.full:
            self._front.room()

    def _end_idle(self, pair: Pair) -> None:
        self.counters.idle_closed += 1
        self._pump.end(pair)
