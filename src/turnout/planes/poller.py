"""One epoll for all relays of a router, nested as one reader in the loop.

A round of the loop costs as much as moving a small message. So while traffic is dense the poller stays: it waits for
the next events right here, asleep in the kernel, for a moment. Since every relay is on the same epoll, none of them
waits for another; what else the loop has to do waits for :data:`WAIT_S` at most, and what is urgent not at all
(:mod:`turnout.planes.attention`). Nor does it stay beside a plane on the loop's own epoll.
"""

from __future__ import annotations

import asyncio
import select
import time
from collections.abc import Callable
from typing import Final, Protocol

from turnout.planes.attention import Attention
from turnout.planes.pump import EIN, FLOWING, Flow

EVENTS_PER_LOOK: Final = 256
DENSE_S: Final = 0.001  # events that follow each other within so long are dense traffic
STAY_MOST_S: Final = 0.001  # of traffic without a pause
# Until the traffic is taken for paused. Not shorter: a timer that is due before the kernel's next tick (4 ms with the
# usual CONFIG_HZ=250) is programmed into the hardware for each wait, and every millisecond one fired, 30 us each.
WAIT_S: Final = 0.004


class Member(Protocol):
    """A relay on this epoll."""

    def is_listener(self, fd: int) -> bool: ...
    def heard(self, fd: int, events: int) -> None:
        """Something of a descriptor that is neither a flow nor a listener; an unknown one is somebody else's."""
        ...

    def accept(self) -> None: ...


class Poller:
    """Owns the epoll, and knows for each descriptor whose it is.

    Args:
        loop: the loop that runs it; only its thread may call.
        attention: what in the loop must not wait for it to leave; None: nothing.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        attention: Attention | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.epoll = select.epoll()
        self._attention = attention = attention or Attention()
        attention.joined(self.epoll)
        self.flows: dict[int, Flow] = {}  # by the descriptor that a flow reads from
        self._loop = loop
        self._clock = clock
        self._members: list[Member] = []
        self._last = -1.0
        self._left = False  # a member wants its turn at the loop
        # bound once: these run for every event
        self._poll = self.epoll.poll
        self._flow_of = self.flows.get
        loop.add_reader(self.epoll.fileno(), self._ready)

    def join(self, member: Member) -> None:
        self._members.append(member)

    def leave(self, member: Member) -> None:
        self._members.remove(member)

    def let_go(self) -> None:
        """Go back to the loop after these events: something was left for its next round."""
        self._left = True

    def close(self) -> None:
        """Give the epoll back; whoever is on it has closed before."""
        if not self.epoll.closed:
            self._loop.remove_reader(self.epoll.fileno())
            self.epoll.close()

    def _ready(self) -> None:
        """Handle what is there, and stay while more comes at once."""
        clock = self._clock
        self._left = False
        began = clock()
        self._look(0)
        if began - self._last < DENSE_S and not self._attention.urgent:
            until = began + STAY_MOST_S
            while not self._left and self._look(WAIT_S) and clock() < until:
                pass
        self._last = clock()

    def _look(self, wait_s: float) -> int:
        """Take what is ready, waiting so long at most for the first; answers how many events there were.

        New descriptors are made last, so that no event meets a number that changed hands.
        """
        flow_of = self._flow_of
        others: list[tuple[int, int]] | None = None
        events = self._poll(wait_s, EVENTS_PER_LOOK)
        for fd, what in events:
            flow = flow_of(fd)
            if flow is None:
                others = others or []
                others.append((fd, what))
            # by far the most frequent: something to read, and nothing in its way
            elif what == EIN and flow.state is FLOWING:
                flow.pump.read(flow)
            else:
                flow.pump.handle(flow, what)
        if others:
            self._hear(others)
        return len(events)

    def _hear(self, others: list[tuple[int, int]]) -> None:
        members = list(self._members)
        knocks: list[Member] = []
        bells = self._attention.bells
        for fd, what in others:
            if fd in bells:
                self._left = True
                continue
            for member in members:
                if member.is_listener(fd):
                    if member not in knocks:
                        knocks.append(member)
                else:
                    member.heard(fd, what)
        for member in knocks:
            member.accept()
