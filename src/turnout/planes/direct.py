"""Direct planes: the kernel hands new connections straight to the active daemon, and what it does not, a relay takes.

A direct plane is a relay with a steering before it. The relay has the fixed address' own listener: whatever the kernel
is not told to hand elsewhere comes there, and is relayed or held as ever. So every fault of the steering ends in the
relay, never in an error for a client; why, and that it is tried again, is kept for people (``trouble``).

What the kernel handed over passes through no process of ours. Who has it, and how it ends, only the kernel can tell.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from turnout.errors import SteeringError
from turnout.planes.plane import Carried, Census, Counters, Plane, Target
from turnout.planes.policy import DEFAULT_POLICY, Policy, needs_relay
from turnout.planes.steering import Kernel, Steering, in_words

LOOK_S: Final = 0.1  # how soon a daemon that stopped accepting is seen
AGAIN_FIRST_S: Final = 0.1
AGAIN_MOST_S: Final = 5.0
CLEAR_LOOKS: Final = 2  # an old listener is left when nothing is on its way to it, seen so often,
CLEAR_APART_S: Final = 0.1  # and so far apart
PENDING: Final = 0  # the number of what is on its way to a daemon: no plane numbers a connection so


@dataclass(slots=True)
class _Left:
    """A listener that new connections do not go to any more, since ``at``; ``clear`` looks in a row saw nothing.

    The last of them was at ``looked_at``.
    """

    at: float
    look_at: float = 0.0
    looked_at: float = 0.0
    clear: int = 0


class Direct:
    """A relay with a steering before it. Owns both.

    Args:
        loop: the loop that runs it; only its thread may call.
        relay: has the listeners, and serves what the kernel does not place.
        steering: tells the kernel where new connections go.
        kernel: tells who has which connections.
        policy: the relay's; what only a relay can enforce makes it relay everything.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        relay: Plane,
        steering: Steering,
        kernel: Kernel,
        *,
        policy: Policy = DEFAULT_POLICY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counters: Counters = relay.counters
        self.trouble = ""
        self._loop = loop
        self._relay = relay
        self._steering = steering
        self._kernel = kernel
        self._clock = clock
        self._demands = needs_relay(policy)
        self._leads = False
        self._left = False  # a successor leads: what the kernel serves is its concern
        self._wanted: Target | None = None
        self._steered: Target | None = None
        self._withdrawn = False  # the kernel was told that nobody is steered to
        self._again_at = 0.0
        self._again_s = AGAIN_FIRST_S
        self._timer: asyncio.TimerHandle | None = None
        self._leaving: dict[str, _Left] = {}
        self._ever: set[str] = set()  # boots whose bytes are not all known
        self._closed = False

    @property
    def name(self) -> str:
        return self._steering.name

    # -- where new connections go ------------------------------------------------------------------------------------

    def apply(self, policy: Policy) -> None:
        self._relay.apply(policy)
        self._demands = needs_relay(policy)
        self._renew()

    def point_at(self, target: Target | None, *, patience_s: float) -> None:
        """The relay first: what falls through while the kernel is told must find the new daemon."""
        self._relay.point_at(target, patience_s=patience_s)
        told = self._withdrawn or self._steered is not None
        if target != self._wanted or not told:
            self._wanted = target
            self._renew()

    def _renew(self) -> None:
        """Something is wanted anew: whatever failed before is tried at once."""
        self._again_s = AGAIN_FIRST_S
        if self._leads:
            self._steer()

    def _steer(self) -> None:
        """Bring the kernel in line with what is wanted; whatever is in the way of that, the relay serves."""
        target = self._wanted
        if target is None:
            self._withdraw("")
            return
        why = self._hindrance(target)
        if why:
            self._withdraw(why)
            self._again_at = 0.0  # to look costs little, and it may be over soon
            return
        before = self._steered
        self._withdrawn = False
        try:
            self._steering.steer(target)
        except (OSError, SteeringError) as error:
            self._fail(error)
            return
        self._steered = target
        self.trouble = ""
        self._again_s = AGAIN_FIRST_S
        self._ever.add(target.boot_id)
        self._leaving.pop(target.boot_id, None)
        if before is not None and before.boot_id != target.boot_id:
            self._leaving[before.boot_id] = _Left(self._clock())

    def _hindrance(self, target: Target) -> str:
        """What keeps a daemon from being steered to, although the kernel may be able to."""
        if self._demands:
            return f"{' and '.join(self._demands)}: only a relay can enforce that"
        if target.proxy_protocol:
            return "the daemon expects a PROXY header, which only a relay sends"
        return self._kernel.deaf(target.boot_id)

    def _fail(self, error: OSError | SteeringError) -> None:
        """It cannot be had at the moment: try it again, less and less often."""
        self._withdraw(in_words(error))
        self._again_at = self._clock() + self._again_s
        self._again_s = min(AGAIN_MOST_S, 2 * self._again_s)

    def _withdraw(self, why: str) -> None:
        """Everything comes to the relay from now on; ``why`` is empty where nothing is wrong."""
        if not self._withdrawn:
            self._withdrawn = True
            try:
                self._steering.steer(None)
            except (OSError, SteeringError) as error:
                why = why or in_words(error)
                self._steering.close()
        if self._steered is not None:
            self._leaving[self._steered.boot_id] = _Left(self._clock())
            self._steered = None
        if why and not self.trouble:
            self.counters.unsteered += 1
        self.trouble = why

    def _look(self) -> None:
        """The kernel does not fall through to the relay by itself when a daemon stops accepting: see to it."""
        self._timer = self._loop.call_later(LOOK_S, self._look)
        steered = self._steered
        if steered is not None:
            why = self._kernel.deaf(steered.boot_id)
            if why:
                self._withdraw(why)
            elif not self._steering.stands():
                self._steer()  # it may have opened another one
        elif self._wanted is None:
            self._withdraw("")
        elif self._clock() >= self._again_at:
            self._steer()

    # -- listeners ---------------------------------------------------------------------------------------------------

    def add_listener(self, sock: socket.socket) -> None:
        """The first one says that this router leads: from here on the kernel is told.

        Where nobody has said yet who is active, what a dead router left goes on for a moment.
        """
        self._relay.add_listener(sock)
        self._leads = True
        try:
            self._steering.listen(sock)
        except (OSError, SteeringError) as error:
            self._withdrawn = False
            self._fail(error)
        else:
            if self._wanted is not None:
                self._steer()
        if self._timer is None:
            self._timer = self._loop.call_later(LOOK_S, self._look)

    def remove_listener(self, address: tuple[str, int]) -> None:
        """First the kernel, then the relay: who comes in between is relayed."""
        try:
            self._steering.unlisten(address)
        except (OSError, SteeringError) as error:
            self._withdrawn = False
            self._fail(error)
        self._relay.remove_listener(address)

    def stop_accepting(self) -> None:
        """A successor leads: what this one relayed goes on here, what the kernel placed is the successor's to count."""
        self._relay.stop_accepting()
        self._rest()
        self._left = True
        self._steering.leave()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        led = self._leads
        self._rest()
        if led:
            self._steering.close()
        self._relay.close()

    def _rest(self) -> None:
        self._leads = False
        self._steered = None
        if self._timer:
            self._timer.cancel()
            self._timer = None

    # -- who is there ------------------------------------------------------------------------------------------------

    def census(self) -> Mapping[str, Census]:
        """The relay's, with what the kernel serves. What was steered has bytes that nobody counted."""
        found = dict(self._relay.census())
        if self._left:
            return found
        boots = self._kernel.boots()
        self._forget_others(boots)
        for boot_id in boots:
            served, queued = self._kernel.served(boot_id), self._kernel.queued(boot_id)
            relayed = found.get(boot_id, Census(0, 0, 0))
            if served or queued:
                self._ever.add(boot_id)
            count = None
            if served is not None and relayed.connections is not None:
                count = relayed.connections + len(served) + queued
            if boot_id in self._ever or served is None:
                found[boot_id] = Census(count, None, None)
            else:
                found[boot_id] = replace(relayed, connections=count)
        return found

    def _forget_others(self, boots: Collection[str]) -> None:
        known = {*boots, *([self._wanted.boot_id] if self._wanted else [])}
        self._ever &= known
        for gone in self._leaving.keys() - known:
            del self._leaving[gone]

    def connections(self) -> int:
        """Those of the relay, and until a successor leads those that the kernel serves as far as it tells."""
        count = self._relay.connections()
        if not self._left:
            for boot_id in self._kernel.boots():
                count += len(self._kernel.served(boot_id) or ()) + self._kernel.queued(boot_id)
        return count

    def relayed(self, boot_id: str) -> int:
        return self._relay.relayed(boot_id)

    def waiting(self) -> int:
        return self._relay.waiting()

    def carried(self, boot_id: str, *, peers: bool = False) -> Sequence[Carried] | None:
        """The relay's and the kernel's, and an entry for those that are still on their way to a daemon that was left.

        That one (``PENDING``) counts as half sent: it keeps the daemon from being stopped too early, and nothing cuts
        it before the deadline.
        """
        relayed = self._relay.carried(boot_id, peers=peers)
        if self._left:
            return relayed
        served = self._kernel.served(boot_id, peers=peers)
        if relayed is None or served is None:
            return None
        found = [*relayed, *served]
        if self._is_pending(boot_id):
            found.append(Carried(PENDING, "", 0.0, 0, 0, answered=False, half_sent=True))
        return found

    def _is_pending(self, boot_id: str) -> bool:
        """Whether a daemon's listener may not be left yet: its queue must be empty, and no handshake on its way.

        A handshake that was begun before the switch stays with the listener that got its SYN. So it must be seen
        twice, a while apart, that nothing is on its way; and who has which connection must have been looked at after
        that, for a count that is older may lack the last ones. How long that may take is the drain's own deadline.
        """
        if self._steered is not None and self._steered.boot_id == boot_id:
            return False
        if boot_id not in self._kernel.boots():
            return False
        now = self._clock()
        # after a restart nobody knows when it was left: at the latest now
        left = self._leaving.setdefault(boot_id, _Left(now))
        if left.clear < CLEAR_LOOKS and now >= left.look_at:
            left.looked_at, left.look_at = now, now + CLEAR_APART_S
            left.clear = 0 if self._kernel.pending(boot_id, now - left.at) else left.clear + 1
        return left.clear < CLEAR_LOOKS or not self._kernel.settled(left.looked_at)

    def cut(self, boot_id: str, ids: Collection[int] | None = None) -> int:
        if ids is None:
            cut = self._relay.cut(boot_id)
        else:
            through = {number for number in ids if number > PENDING}
            ids = {number for number in ids if number < PENDING}
            cut = self._relay.cut(boot_id, through) if through else 0
        if self._left or ids == set():
            return cut
        straight = self._kernel.cut(boot_id, ids)
        self.counters.cut += straight
        return cut + straight
