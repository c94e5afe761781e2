"""One epoll for all relays of a router, nested as one reader in the loop.

A round of the loop costs as much as moving a small message. So while traffic is dense the poller stays: it waits for
the next events right here, asleep in the kernel, for a moment. Since every relay is on the same epoll, none of them
waits for another; what else the loop has to do waits for :data:`WAIT_S` at most, and what is urgent not at all
(:mod:`turnout.planes.loop_priority`). Nor does it stay beside a plane on the loop's own epoll.
"""

from __future__ import annotations

import asyncio
import select
import time
from collections.abc import Callable
from select import EPOLLIN
from typing import Final, Protocol

from turnout.planes.loop_priority import LoopPriority
from turnout.planes.pump import FLOWING, Flow

EVENTS_PER_LOOK: Final = 256
DENSE_S: Final = 0.001  # events that follow each other within so long are dense traffic
STAY_MOST_S: Final = 0.001  # of traffic without a pause
# Until the traffic is taken for paused. Not shorter: a timer that is due before the kernel's next tick (4 ms with the
# usual CONFIG_HZ=250) is programmed into the hardware for each wait, and every millisecond one fired, 30 us each.
WAIT_S: Final = 0.004


class Member(Protocol):
    """A relay on this epoll."""

    def is_listener(self, fd: int) -> bool: ...
    def on_event(self, fd: int, events: int) -> None:
        """Handle a descriptor that is neither a flow's nor a listener; it may be another member's."""
        ...

    def accept(self) -> None: ...


class Poller:
    """Owns the epoll. ``flows``: by the descriptor that each reads from; ``members``: the relays.

    ``loop_priority``: what in the loop must not wait for the poller; None: nothing. ``clock``: monotonic seconds.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        loop_priority: LoopPriority | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.epoll = select.epoll()
        self._loop_priority = loop_priority = loop_priority or LoopPriority()
        loop_priority.joined(self.epoll)
        self.flows: dict[int, Flow] = {}
        self.members: list[Member] = []
        self._loop = loop
        self._clock = clock
        self._last = -1.0
        self._leaves = False  # for the loop, after these events
        # bound once: these run for every event
        self._poll = self.epoll.poll
        self._flow_of = self.flows.get
        loop.add_reader(self.epoll.fileno(), self._ready)

    def leave_soon(self) -> None:
        """Go back to the loop after these events: something was left for its next round."""
        self._leaves = True

    def close(self) -> None:
        """Give the epoll back; its members have closed before."""
        if not self.epoll.closed:
            self._loop.remove_reader(self.epoll.fileno())
            self.epoll.close()

    def _ready(self) -> None:
        """Handle what is there, and stay while more comes at once."""
        clock = self._clock
        self._leaves = False
        began = clock()
        self._look(0)
        if began - self._last < DENSE_S and not self._loop_priority.pending:
            until = began + STAY_MOST_S
            while not self._leaves and self._look(WAIT_S) and clock() < until:
                pass
        self._last = clock()

    def _look(self, wait_s: float) -> int:
        """Take what is ready, waiting so long at most for the first; answers how many events there were.

        New descriptors are made last, so that no event meets a number that changed hands.
        """
        flow_of = self._flow_of
        others: list[tuple[int, int]] | None = None
        ready = self._poll(wait_s, EVENTS_PER_LOOK)
        for fd, events in ready:
            flow = flow_of(fd)
            if flow is None:
                others = others or []
                others.append((fd, events))
            # by far the most frequent: something to read, and nothing in its way
            elif events == EPOLLIN and flow.state is FLOWING:
                flow.pump.read(flow)
            else:
                flow.pump.handle(flow, events)
        if others:
            self._handle_others(others)
        return len(ready)

    def _handle_others(self, others: list[tuple[int, int]]) -> None:
        members = list(self.members)
        accepting: list[Member] = []
        wakeup_fds = self._loop_priority.wakeup_fds
        for fd, events in others:
            if fd in wakeup_fds:
                self._leaves = True
                continue
            for member in members:
                if member.is_listener(fd):
                    if member not in accepting:
                        accepting.append(member)
                else:
                    member.on_event(fd, events)
        for member in accepting:
            member.accept()
