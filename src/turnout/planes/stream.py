"""The portable plane: transports of the loop, nothing that only Linux has. The relay's promises, without its speed.

What transports do not tell is asked for. libuv reports a reset behind unread bytes as an end of stream: the pending
error is looked at with each end. After an end it does not watch the descriptor at all: the state of half-closed
connections, and of those that wait, is looked at once a second.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

from turnout.planes.front import Front, IsThere
from turnout.planes.hold import Waiting
from turnout.planes.idle import IdleTimeout
from turnout.planes.leg import Leg, LegPair
from turnout.planes.plane import Carried, Census, Counters, Target
from turnout.planes.policy import DEFAULT_POLICY, Policy
from turnout.planes.readiness import LoopReadiness
from turnout.planes.tally import Tallies
from turnout.planes.tcp import is_dead

LOOK_S: Final = 1.0


class Stream:
    """The plane for systems without epoll or splice(2). Owns its front, every connection, and the tasks that open them.

    Args:
        loop: the loop that runs it; only its thread may call.
        policy: see there; :meth:`apply` changes it.
        connect_timeout_s: after so many seconds a connect that is not answered is tried anew.
        release_per_tick: how many held connections are let go at once; the rest follows with the next ticks.
        clock: monotonic seconds.
        is_there: whether a daemon that shares the fixed address still listens there.
    """

    name: str = "stream"

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        policy: Policy = DEFAULT_POLICY,
        connect_timeout_s: float = 5.0,
        release_per_tick: int = 64,
        clock: Callable[[], float] = time.monotonic,
        is_there: IsThere = lambda _target: True,
    ) -> None:
        self.counters = Counters()
        self.trouble = ""
        self._loop = loop
        self._clock = clock
        self._made = 0
        self._tallies: Tallies[LegPair] = Tallies()
        self._readiness = LoopReadiness(loop, self._knock, self._answered)
        self._front = Front(
            loop,
            self._readiness,
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
        self._opening: set[asyncio.Task[None]] = set()
        self._half_closed: set[LegPair] = set()
        self._look_timer: asyncio.TimerHandle = loop.call_later(LOOK_S, self._look)
        self._closed = False

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
        for pair in pairs:
            if ids is None:
                pair.reset()
            else:
                pair.end()
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
        self._look_timer.cancel()
        self._idle.set(None)
        self._front.close()
        for task in self._opening:
            task.cancel()
        for pair in list(self._tallies):
            pair.reset()

    # -- for the front -----------------------------------------------------------------------------------------------

    def _knock(self, _: int) -> None:
        self._front.accept()

    def _answered(self, fd: int) -> None:
        self._front.connected(self._front.connecting[fd])

    def _begin(self, waiting: Waiting, daemon: socket.socket, target: Target) -> None:
        if waiting.listed:
            self._readiness.unregister(waiting.client_fd)
        if waiting.daemon_fd >= 0:
            self._readiness.unregister(waiting.daemon_fd)
        self._made += 1
        pair = LegPair(
            self._made, waiting.client, daemon, target.boot_id, waiting.since, self.counters, self._half, self._ended
        )
        self._tallies.of(target.boot_id).pairs.add(pair)
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

    # -- what becomes of connections ---------------------------------------------------------------------------------

    def _half(self, pair: LegPair) -> None:
        self._half_closed.add(pair)

    def _ended(self, pair: LegPair) -> None:
        self._half_closed.discard(pair)
        self._tallies.closed(pair)
        self.counters.closed += 1
        if self._front.full:
            self._front.room()

    def _end_idle(self, pair: LegPair) -> None:
        self.counters.idle_closed += 1
        pair.end()

    def _look(self) -> None:
        """Find those that were reset where no event tells of it."""
        for pair in list(self._half_closed):
            if any(_is_lost(leg) for leg in (pair.client, pair.daemon)):
                pair.reset()
        for waiting in list(self._front.waiting.values()):
            if is_dead(waiting.client):
                self._front.forget(waiting)
        self._look_timer = self._loop.call_later(LOOK_S, self._look)


def _is_lost(leg: Leg) -> bool:
    """Whether one that had sent its end was reset after it. One that has our end too may just be done (TIME-WAIT)."""
    return leg.ended and not leg.gone and not leg.other.ended and is_dead(leg.sock)
