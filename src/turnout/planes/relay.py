"""The relay: accepts on the fixed address, connects to the active daemon, and pumps. Any daemon, no privileges.

It is on an epoll beside the loop's own (:mod:`turnout.planes.poller`): a uvloop reader is not called again for a reset
that comes behind unread bytes, and one that is paused never hears of it. Here every descriptor stays registered, and
hears.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence

from turnout.planes.front import Front, IsThere
from turnout.planes.hold import Waiting
from turnout.planes.idle import IdleTimeout
from turnout.planes.plane import Carried, Census, Counters, Target
from turnout.planes.policy import DEFAULT_POLICY, Policy
from turnout.planes.poller import Poller
from turnout.planes.pump import EDEAD, Pair, Pump
from turnout.planes.tally import Tallies


class Relay:
    """The plane for any daemon. Owns its front and every connection.

    Args:
        loop: the loop that runs it; only its thread may call.
        policy: see there; :meth:`apply` changes it.
        connect_timeout_s: after so many seconds a connect that is not answered is tried anew.
        poller: the epoll that it shares with others; None: it has one of its own.
        release_per_tick: how many held connections are let go at once; the rest follows with the next ticks.
        clock: monotonic seconds.
        is_there: whether a daemon that shares the fixed address still listens there.
    """

    name: str = "relay"

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        policy: Policy = DEFAULT_POLICY,
        poller: Poller | None = None,
        connect_timeout_s: float = 5.0,
        release_per_tick: int = 64,
        clock: Callable[[], float] = time.monotonic,
        is_there: IsThere = lambda _target: True,
    ) -> None:
        self.counters = Counters()
        self.trouble = ""
        self._loop = loop
        self._clock = clock
        self._own = poller is None
        self._poller = poller = poller or Poller(loop, clock=clock)
        self._pump = Pump(poller.epoll, poller.flows, self.counters, self._ended, self._read_later)
        self._tallies: Tallies[Pair] = Tallies()
        self._front = Front(
            loop,
            poller.epoll,
            self.counters,
            self._begin,
            self._tallies.connections,
            policy=policy,
            connect_timeout_s=connect_timeout_s,
            release_per_tick=release_per_tick,
            clock=clock,
            is_there=is_there,
        )
        self._idle = IdleTimeout(loop, self._tallies, self._end_idle, clock=clock)
        self._idle.set(policy.idle_timeout_s)
        self._again: asyncio.Handle | None = None
        self._closed = False
        poller.join(self)

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

    def relayed(self, boot_id: str) -> int:
        return self._tallies.open_of(boot_id)

    def waiting(self) -> int:
        return len(self._front.waiting)

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
        if self._closed:
            return
        self._closed = True
        if self._again:
            self._again.cancel()
        self._idle.set(None)
        self._front.close()
        self._pump.close()
        self._poller.leave(self)
        if self._own:
            self._poller.close()

    # -- events ------------------------------------------------------------------------------------------------------

    def is_listener(self, fd: int) -> bool:
        return fd in self._front.listeners

    def accept(self) -> None:
        self._front.accept()

    def heard(self, fd: int, events: int) -> None:
        front = self._front
        waiting = front.connecting.get(fd)
        if waiting is not None:
            front.connected(waiting)
        elif events & EDEAD and fd in front.waiting:
            front.forget(front.waiting[fd])  # a held client that resets leaves at once

    def _read_later(self) -> None:
        if self._again is None:
            self._again = self._loop.call_soon(self._go_on)
            self._poller.let_go()

    def _go_on(self) -> None:
        """Read on from sources that no event will call for; what is left comes with the loop's next round."""
        self._again = None
        self._pump.run_again()
        if self._pump.again:
            self._read_later()

    # -- for the front -----------------------------------------------------------------------------------------------

    def _begin(self, waiting: Waiting, daemon: socket.socket, target: Target) -> None:
        boot_id = target.boot_id
        pair = self._pump.add(waiting.client, daemon, boot_id, since=waiting.since, fresh=not waiting.listed)
        if not pair.closed:
            self._tallies.of(boot_id).pairs.add(pair)

    def _ended(self, pair: Pair) -> None:
        self._tallies.closed(pair)
        self.counters.closed += 1
        if self._front.full:
            self._front.room()

    def _end_idle(self, pair: Pair) -> None:
        self.counters.idle_closed += 1
        self._pump.end(pair)
