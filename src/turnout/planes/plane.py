"""The contract of every plane: how the router sets the upstream of new connections, and what the plane answers."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Final, Protocol

import msgspec

from turnout.core.connection_policy import DEFAULT_POLICY, Policy
from turnout.core.histogram import Histogram

# seconds from accept to a connected daemon: on loopback a few ten microseconds, in the hold up to its time-out
CONNECT_BOUNDS_S: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)


class Upstream(msgspec.Struct, frozen=True):
    """Where new connections go: a daemon, by its boot and its address (a numeric host).

    ``proxy_protocol``: it expects a PROXY protocol v2 header before the first byte of each. ``source``: the loopback
    address that names its index, where it listens at the fixed address itself (core/slots.py).
    """

    boot_id: str
    host: str
    port: int
    proxy_protocol: bool = False
    source: str = ""


@dataclass(frozen=True, slots=True)
class TrafficStats:
    """The traffic of one boot. ``connections``: open now; bytes since the plane began; None: cannot be counted.

    ``bytes_in`` goes from clients to the daemon, ``bytes_out`` back.
    """

    connections: int | None
    bytes_in: int | None
    bytes_out: int | None


class ConnectionInfo(msgspec.Struct, frozen=True):
    """One open connection.

    Args:
        id: its number; never used twice by one plane.
        peer: the client's address, empty unless it was asked for.
        age_s: seconds since it was accepted, or since the kernel's tables first had it.
        answered: the last bytes went to the client, or none ever went.
        half_sent: bytes were taken from one side that the other has not taken yet.
    """

    id: int
    peer: str
    age_s: float
    bytes_in: int
    bytes_out: int
    answered: bool
    half_sent: bool


@dataclass(slots=True)
class Counters:
    """Plain integers, since the plane began; ``held_now`` is a gauge.

    Each accepted client is open or waits, or exactly one of these has its end: ``closed`` (it had a connection to the
    daemon), ``denied``, ``hold_overflow``, ``hold_timeout``, ``hold_left`` (it went while it waited for a daemon),
    ``reset_unrouted``.

    ``denied``: clients outside the allow list; ``limited``: how often the limit of connections was reached;
    ``idle_closed``: ended by the idle timeout; ``other_source``: connects from a further loopback address, since the
    first had no port left; ``ports_exhausted``: connects that no address had a port for; ``unsteered``: how often a
    direct plane came to relay everything, since the kernel could not hand it over. ``connect_s``: seconds from accept
    to a connected daemon, time in the hold included.
    """

    accepted: int = 0
    closed: int = 0
    connect_failed: int = 0
    held_now: int = 0
    held_total: int = 0
    hold_overflow: int = 0
    hold_timeout: int = 0
    hold_left: int = 0
    reset_unrouted: int = 0
    fd_exhausted: int = 0
    cut: int = 0
    denied: int = 0
    limited: int = 0
    idle_closed: int = 0
    other_source: int = 0
    ports_exhausted: int = 0
    unsteered: int = 0
    pipes_denied: int = 0
    copied_bytes: int = 0
    spliced_bytes: int = 0
    connect_s: Histogram = field(default_factory=lambda: Histogram(CONNECT_BOUNDS_S), compare=False)

    def integers(self) -> dict[str, int]:
        """Each plain count by its name."""
        return {spec.name: getattr(self, spec.name) for spec in fields(self) if spec.name != "connect_s"}


class UpstreamDoors(Protocol):
    """Lets connections reach a daemon that listens at the fixed address itself (planes/direct/doors.py)."""

    have_moved: bool  # another router steers, and any connection reaches the active daemon

    def open(self, index: int | None, host: str, port: int) -> None:
        """Raises OSError: it cannot be had now."""
        ...

    def close(self, index: int | None, host: str, port: int) -> None: ...


class UpstreamChecks:
    """What an acceptor asks about the daemon to which it connects: the answers of a plane that knows its address alone.

    Only the loop's thread asks. ``doors``: what connects to daemons that share the fixed address; None: none does.
    """

    doors: UpstreamDoors | None = None

    def is_there(self, upstream: Upstream) -> bool:  # noqa: ARG002  # for subclasses
        """Whether a daemon that shares the fixed address still listens there; asked before each connect to it."""
        return True

    def has_ended(self, upstream: Upstream) -> bool:  # noqa: ARG002
        """Whether the daemon's process is known to have ended; asked after each connect."""
        return False

    def room(self, upstream: Upstream) -> int | None:  # noqa: ARG002
        """How many connections the daemon's accept queue takes before it is full; None: the system does not say."""
        return None


UNCHECKED: Final = UpstreamChecks()


class PlaneOptions(msgspec.Struct, frozen=True):
    """What each plane that accepts connections can be given.

    Args:
        policy: limits and time-outs; :meth:`Plane.apply` changes it.
        checks: asked about the daemon at each connect.
        clock: monotonic seconds.
        connect_timeout_s: seconds after which a connect without an answer is tried again.
        release_per_tick: how many held connections are released at once; the rest follows with the next ticks.
    """

    policy: Policy = DEFAULT_POLICY
    checks: UpstreamChecks = UNCHECKED
    clock: Callable[[], float] = time.monotonic
    connect_timeout_s: float = 5.0
    release_per_tick: int = 64


DEFAULT_OPTIONS: Final = PlaneOptions()


class Plane(Protocol):
    """Moves connections from the fixed address to the daemon that is its upstream. Owns every descriptor it was given.

    Only the loop's thread may call.
    """

    counters: Counters
    degraded_reason: str  # why connections do not go the plane's own way at the moment, for people; empty: they do

    @property
    def name(self) -> str: ...

    def apply(self, policy: Policy) -> None:
        """Take another policy over: for connections that come from now on, the idle timeout for all."""
        ...

    def set_upstream(self, upstream: Upstream | None, *, patience_s: float) -> None:
        """Send connections that come from now on to ``upstream``; those that exist stay.

        Args:
            upstream: None: no daemon serves at the moment.
            patience_s: how long a connection may be held without an upstream, or with an upstream that refuses, from
                its first refusal on; 0: it is reset.
        """
        ...

    def traffic(self) -> Mapping[str, TrafficStats]: ...

    def connections(self) -> int: ...

    def relayed(self, boot_id: str) -> int:
        """How many of that boot's connections pass through this process."""
        ...

    def waiting(self) -> int:
        """Clients that were accepted and have no daemon yet: held, or being connected."""
        ...

    def open_connections(self, boot_id: str, *, peers: bool = False) -> Sequence[ConnectionInfo] | None:
        """Every open connection of that boot; None: this plane cannot tell. ``peers``: with the clients' addresses."""
        ...

    def cut(self, boot_id: str, ids: Collection[int] | None = None) -> int:
        """End connections of that boot; answers how many.

        ``ids``: those that are quiet and are to be ended in order; None: all of them, by a reset, for a truncated
        stream must not look whole.
        """
        ...

    def add_listener(self, sock: socket.socket) -> None:
        """Accept from a listening socket; the plane keeps a descriptor of its own.

        Raises:
            OSError: no descriptor or no memory is left; then nothing was changed.
        """
        ...

    def remove_listener(self, address: tuple[str, int]) -> None:
        """Accept no more at this host and port; clients that are in its accept queue by now are served still."""
        ...

    def stop_accepting(self) -> None: ...

    def close(self) -> None: ...
