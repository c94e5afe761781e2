"""Direct planes: the kernel hands new connections straight to the active daemon, and what it does not, a relay takes.

A direct plane is a relay with a steering before it. The relay has the fixed address' own listener: whatever the kernel
does not hand elsewhere comes there, and is relayed or held as ever. So every fault of the steering ends in the relay,
never in an error for a client; why, and that it is tried again, is kept for people (``degraded_reason``).

What the kernel handed over passes through no process of ours. Only the kernel knows which daemon has it.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from turnout.core.connection_policy import DEFAULT_POLICY, Policy, needs_relay
from turnout.errors import SteeringError
from turnout.planes.direct.steering import Kernel, Steering, in_words
from turnout.planes.plane import ConnectionInfo, Counters, Plane, TrafficStats, Upstream

LOOK_S: Final = 0.1  # how soon a daemon that stopped accepting is seen
AGAIN_FIRST_S: Final = 0.1
AGAIN_MOST_S: Final = 5.0
CLEAR_LOOKS: Final = 2  # a retired listener is clear when nothing is on its way to it, seen so often,
CLEAR_APART_S: Final = 0.1  # and so far apart
PENDING: Final = 0  # the number of what is on its way to a daemon: no plane numbers a connection so


@dataclass(slots=True)
class _Retired:
    """A listener that new connections do not go to any more, since ``at``; ``clear`` looks in a row saw nothing.

    The last of them was at ``looked_at``.
    """

    at: float
    look_at: float = 0.0
    looked_at: float = 0.0
    clear: int = 0


class Direct:
    """A relay with a steering before it. Owns both.

    ``kernel``: answers which daemon has which connections. ``policy``: the relay's; what only a relay can enforce makes
    the plane relay everything. ``clock``: monotonic seconds.
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
        self.degraded_reason = ""
        self._loop = loop
        self._relay = relay
        self._steering = steering
        self._kernel = kernel
        self._clock = clock
        self._demands = needs_relay(policy)
        self._leads = False
        self._upstream_set = False  # since it leads, an upstream was set, or none
        self._released = False  # a successor leads: what the kernel serves is its concern
        self._wanted: Upstream | None = None
        self._steered: Upstream | None = None
        self._withdrawn = False  # the kernel was told to steer to no daemon
        self._again_at = 0.0
        self._again_s = AGAIN_FIRST_S
        self._timer: asyncio.TimerHandle | None = None
        self._retired: dict[str, _Retired] = {}
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

    def set_upstream(self, upstream: Upstream | None, *, patience_s: float) -> None:
        """The relay first: what falls through while the kernel is steered must find the new daemon."""
        self._relay.set_upstream(upstream, patience_s=patience_s)
        self._upstream_set = self._leads
        in_effect = self._withdrawn or self._steered is not None
        if upstream != self._wanted or not in_effect:
            self._wanted = upstream
            self._renew()

    def _renew(self) -> None:
        """Something else is wanted: try at once what failed before."""
        self._again_s = AGAIN_FIRST_S
        if self._leads:
            self._steer()

    def _steer(self) -> None:
        """Bring the kernel in line with what is wanted; while that cannot be had, the relay serves."""
        upstream = self._wanted
        if upstream is None:
            self._withdraw("")
            return
        why = self._blocker(upstream)
        if why:
            self._withdraw(why)
            self._again_at = 0.0  # to look costs little, and it may be over soon
            return
        before = self._steered
        self._withdrawn = False
        try:
            self._steering.steer(upstream)
        except (OSError, SteeringError) as error:
            self._fail(error)
            return
        self._steered = upstream
        self.degraded_reason = ""
        self._again_s = AGAIN_FIRST_S
        self._ever.add(upstream.boot_id)
        self._retired.pop(upstream.boot_id, None)
        if before is not None and before.boot_id != upstream.boot_id:
            self._retired[before.boot_id] = _Retired(self._clock())

    def _blocker(self, upstream: Upstream) -> str:
        """Why the kernel must not hand connections to this daemon, although it may be able to."""
        if self._demands:
            return f"{' and '.join(self._demands)}: only a relay can enforce that"
        if upstream.proxy_protocol:
            return "the daemon expects a PROXY header, which only a relay sends"
        return self._kernel.not_accepting_reason(upstream.boot_id)

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
            self._retired[self._steered.boot_id] = _Retired(self._clock())
            self._steered = None
        if why and not self.degraded_reason:
            self.counters.unsteered += 1
        self.degraded_reason = why

    def _look(self) -> None:
        """Withdraw from a daemon that stops accepting: the kernel does not fall through to the relay by itself."""
        self._timer = self._loop.call_later(LOOK_S, self._look)
        steered = self._steered
        if steered is not None:
            why = self._kernel.not_accepting_reason(steered.boot_id)
            if why:
                self._withdraw(why)
            elif not self._steering.is_in_effect():
                self._steer()  # it may have opened another one
        elif self._wanted is None:
            if self._upstream_set:
                self._withdraw("")
        elif self._clock() >= self._again_at:
            self._steer()

    # -- listeners ---------------------------------------------------------------------------------------------------

    def add_listener(self, sock: socket.socket) -> None:
        """With the first one this router leads: from here on it steers the kernel.

        Until an upstream is set, however long the registry takes to be read, what a dead router left goes on: the
        kernel holds the listening socket itself, which no other program can have.
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
        """First the kernel, then the relay: clients that come in between are relayed."""
        try:
            self._steering.unlisten(address)
        except (OSError, SteeringError) as error:
            self._withdrawn = False
            self._fail(error)
        self._relay.remove_listener(address)

    def stop_accepting(self) -> None:
        """A successor leads: what this one relayed goes on here, what the kernel placed is the successor's to count."""
        self._relay.stop_accepting()
        self._stop_steering()
        self._released = True
        self._steering.release()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        led = self._leads
        self._stop_steering()
        if led:
            self._steering.close()
        self._relay.close()

    def _stop_steering(self) -> None:
        self._leads = self._upstream_set = False
        self._steered = None
        if self._timer:
            self._timer.cancel()
            self._timer = None

    # -- connections -------------------------------------------------------------------------------------------------

    def traffic(self) -> Mapping[str, TrafficStats]:
        """The relay's, with what the kernel serves. The bytes of steered connections are not counted."""
        found = dict(self._relay.traffic())
        if self._released:
            return found
        boots = self._kernel.boots()
        known = {*boots, *([self._wanted.boot_id] if self._wanted else [])}
        self._ever &= known
        self._retired = {boot_id: retired for boot_id, retired in self._retired.items() if boot_id in known}
        for boot_id in boots:
            served, queued = self._kernel.served(boot_id), self._kernel.queued(boot_id)
            relayed = found.get(boot_id, TrafficStats(0, 0, 0))
            if served or queued:
                self._ever.add(boot_id)
            count = None
            if served is not None and relayed.connections is not None:
                count = relayed.connections + len(served) + queued
            if boot_id in self._ever or served is None:
                found[boot_id] = TrafficStats(count, None, None)
            else:
                found[boot_id] = replace(relayed, connections=count)
        return found

    def connections(self) -> int:
        """Those of the relay, and until a successor leads those that the kernel serves, as far as it shows them."""
        count = self._relay.connections()
        if not self._released:
            for boot_id in self._kernel.boots():
                count += len(self._kernel.served(boot_id) or ()) + self._kernel.queued(boot_id)
        return count

    def relayed(self, boot_id: str) -> int:
        return self._relay.relayed(boot_id)

    def waiting(self) -> int:
        return self._relay.waiting()

    def open_connections(self, boot_id: str, *, peers: bool = False) -> Sequence[ConnectionInfo] | None:
        """The relay's and the kernel's, and an entry for those that are still on their way to a retired listener.

        That entry (``PENDING``) counts as half sent: it keeps the daemon from being stopped too early, and nothing cuts
        it before the deadline.
        """
        relayed = self._relay.open_connections(boot_id, peers=peers)
        if self._released:
            return relayed
        served = self._kernel.served(boot_id, peers=peers)
        if relayed is None or served is None:
            return None
        found = [*relayed, *served]
        if self._is_pending(boot_id):
            found.append(ConnectionInfo(PENDING, "", 0.0, 0, 0, answered=False, half_sent=True))
        return found

    def _is_pending(self, boot_id: str) -> bool:
        """Whether connections may still be on their way to a daemon's retired listener, in its queue or in a handshake.

        A handshake that was begun before the switch stays with the listener that got its SYN. So it must be seen
        twice, a while apart, that nothing is on its way; and the kernel's table of connections must have been read
        after that, for an older count may lack the last ones. How long that may take is the drain's own deadline.
        """
        steered = self._steered is not None and self._steered.boot_id == boot_id
        if steered or boot_id not in self._kernel.boots():
            return False
        now = self._clock()
        # after a restart it is not known when it was retired: at the latest now
        listener = self._retired.setdefault(boot_id, _Retired(now))
        if listener.clear < CLEAR_LOOKS and now >= listener.look_at:
            listener.looked_at, listener.look_at = now, now + CLEAR_APART_S
            listener.clear = 0 if self._kernel.pending(boot_id, now - listener.at) else listener.clear + 1
        return listener.clear < CLEAR_LOOKS or not self._kernel.settled(listener.looked_at)

    def cut(self, boot_id: str, ids: Collection[int] | None = None) -> int:
        relayed = ids if ids is None else {number for number in ids if number > PENDING}
        steered = ids if ids is None else {number for number in ids if number < PENDING}
        count = 0 if relayed == set() else self._relay.cut(boot_id, relayed)
        if self._released or steered == set():
            return count
        by_kernel = self._kernel.cut(boot_id, steered)
        self.counters.cut += by_kernel
        return count + by_kernel
