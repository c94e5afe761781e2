"""Fakes of what turnout touches: a clock, processes, a plane, a registry. For turnout's tests and for yours."""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import sys
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from turnout.core.connection_policy import Policy
from turnout.core.model import Identity, Snapshot
from turnout.core.outcome import Outcome
from turnout.planes.plane import ConnectionInfo, Counters, TrafficStats, Upstream
from turnout.system.files import undone_on_error

BOOT: str = "00000000-0000-4000-8000-000000000000"
# Below those that turnout gives to daemons (20000 on) and that the kernel gives to clients (32768 on, ip(7)).
_FREE_PORTS: Final = range(10000, 20000)
# A socket each; a caller of so many ports has bound the first of them long since.
_claims: deque[socket.socket] = deque(maxlen=64)


def free_port() -> int:
    """A TCP port for something to be started a moment later: a fixed address, a peer.

    No other call on this machine returns the same port while this process runs and has not asked for 64 more; turnout
    gives none of these to daemons. A port that was bound and closed again could go to any process meanwhile.

    Raises:
        RuntimeError: none of 10,000 is free.
    """
    for port in random.sample(_FREE_PORTS, len(_FREE_PORTS)):
        with contextlib.suppress(OSError):
            claim = _claim(port)
            try:
                with socket.socket() as sock:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    sock.bind(("127.0.0.1", port))
            except OSError:
                claim.close()
                continue
            if len(_claims) == _claims.maxlen:
                _claims.popleft().close()
            _claims.append(claim)
            return port
    raise RuntimeError("no port from 10000 to 19999 is free")


def _claim(port: int) -> socket.socket:
    """A name that one socket of this machine can have at a time, and that goes with the process (unix(7), abstract)."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    with undone_on_error(sock.close):
        sock.bind(f"\0turnout.testing.port.{port}")
    return sock


class FakeClock:
    """Seconds that pass by :meth:`advance` and :meth:`sleep` alone. Pass ``clock.now`` and ``clock.sleep`` on."""

    def __init__(self, now: float = 0.0) -> None:
        self._now = now
        self.slept: list[float] = []

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass, 0 or more."""
        if seconds < 0:
            raise ValueError("this clock never goes back")
        self._now += seconds

    def sleep(self, seconds: float) -> None:
        """Let the time pass at once, and note it in ``slept``."""
        self.slept.append(seconds)
        self.advance(max(0.0, seconds))


class FakeProcesses:
    """A table of processes, with the questions that :mod:`turnout.system.process` answers."""

    def __init__(self) -> None:
        self._ticks = itertools.count(1000)
        self._pids = itertools.count(100)
        self._alive: dict[int, Identity] = {}

    def start(self, pid: int | None = None) -> Identity:
        """A new process; with ``pid`` given, it gets that number, as after a reuse."""
        number = next(self._pids) if pid is None else pid
        self._alive[number] = Identity(number, next(self._ticks), BOOT, 1)
        return self._alive[number]

    def end(self, identity: Identity) -> None:
        """That process ends; another process that has its pid by now does not."""
        if self.is_alive(identity):
            del self._alive[identity.pid]

    def identify(self, pid: int) -> Identity:
        """Raises ProcessLookupError: there is none."""
        try:
            return self._alive[pid]
        except KeyError:
            raise ProcessLookupError(f"no process {pid}") from None

    def is_alive(self, identity: Identity) -> bool:
        found = self._alive.get(identity.pid)
        return found is not None and (found == identity or not identity.start_ticks)

    def provably_dead(self, identity: Identity) -> bool:
        return identity.pid > 0 and not self.is_alive(identity)


@dataclass(frozen=True, slots=True)
class Pointed:
    """One call of :meth:`FakePlane.set_upstream`."""

    target: Upstream | None
    patience_s: float


class FakePlane:
    """A plane (:class:`turnout.planes.plane.Plane`) that carries nothing and records the calls.

    Connections are made up by :meth:`connect` and :meth:`disconnect`. Listeners stay their givers'.
    """

    name: str = "fake"

    def __init__(self) -> None:
        self.counters = Counters()
        self.degraded_reason = ""
        self.policy = Policy()
        self.pointed: list[Pointed] = []
        self.cuts: list[str] = []
        self.listeners: list[socket.socket] = []
        self.accepting = True
        self.closed = False
        self._traffic: dict[str, TrafficStats] = {}

    @property
    def target(self) -> Upstream | None:
        """Where new connections go now."""
        return self.pointed[-1].target if self.pointed else None

    def apply(self, policy: Policy) -> None:
        self.policy = policy

    def set_upstream(self, upstream: Upstream | None, *, patience_s: float) -> None:
        self.pointed.append(Pointed(upstream, patience_s))
        if upstream and self.counters.held_now:
            held, self.counters.held_now = self.counters.held_now, 0
            self._open(upstream, held)

    def connect(self, count: int = 1) -> None:
        """``count`` clients come, to the daemon that it points at; held or reset where there is none."""
        self.counters.accepted += count
        if self.target:
            self._open(self.target, count)
        elif self.pointed and self.pointed[-1].patience_s:
            self.counters.held_now += count
            self.counters.held_total += count
        else:
            self.counters.reset_unrouted += count

    def _open(self, upstream: Upstream, count: int) -> None:
        known = self._traffic.get(upstream.boot_id, TrafficStats(0, 0, 0))
        self._traffic[upstream.boot_id] = replace(known, connections=(known.connections or 0) + count)

    def disconnect(self, boot_id: str, count: int = 1) -> None:
        """``count`` connections of that daemon end by themselves."""
        known, there = self._traffic[boot_id], self.relayed(boot_id)
        if count > there:
            raise ValueError(f"{boot_id} has {there} connections")
        self._traffic[boot_id] = replace(known, connections=there - count)
        self.counters.closed += count

    def traffic(self) -> Mapping[str, TrafficStats]:
        return dict(self._traffic)

    def connections(self) -> int:
        return sum(stats.connections or 0 for stats in self._traffic.values())

    def relayed(self, boot_id: str) -> int:
        return self._traffic.get(boot_id, TrafficStats(0, 0, 0)).connections or 0

    def waiting(self) -> int:
        return self.counters.held_now

    def open_connections(self, boot_id: str, *, peers: bool = False) -> Sequence[ConnectionInfo] | None:
        """As many as :meth:`traffic` counts, numbered from 0, all of them quiet."""
        peer = "127.0.0.1:1" if peers else ""
        return [
            ConnectionInfo(n, peer, 0.0, 0, 0, answered=True, half_sent=False) for n in range(self.relayed(boot_id))
        ]

    def cut(self, boot_id: str, ids: Collection[int] | None = None) -> int:
        self.cuts.append(boot_id)
        there = self.relayed(boot_id)
        cut = there if ids is None else min(len(ids), there)
        if cut:
            self.disconnect(boot_id, cut)
            self.counters.cut += cut
        return cut

    def add_listener(self, sock: socket.socket) -> None:
        self.listeners.append(sock)

    def remove_listener(self, address: tuple[str, int]) -> None:
        self.listeners = [sock for sock in self.listeners if sock.getsockname()[:2] != address]

    def stop_accepting(self) -> None:
        self.accepting = False
        self.listeners.clear()

    def close(self) -> None:
        self.stop_accepting()
        self.closed = True
        for boot_id in self._traffic:
            self.disconnect(boot_id, self.relayed(boot_id))

    # the names that they had in 0.1.0
    point_at, census, carried = set_upstream, traffic, open_connections

    @property
    def trouble(self) -> str:
        return self.degraded_reason


@dataclass(frozen=True, slots=True)
class MemoryRead:
    """What :meth:`MemoryRegistry.read` answers."""

    snapshot: Snapshot


class MemoryRegistry:
    """A registry without a file: the same reads and updates, with every outcome kept in ``outcomes``."""

    def __init__(self, snapshot: Snapshot | None = None) -> None:
        self._snapshot = Snapshot() if snapshot is None else snapshot
        self.outcomes: list[Outcome] = []

    def read(self) -> MemoryRead:
        return MemoryRead(self._snapshot)

    def update(self, change: Callable[[Snapshot], Outcome]) -> Outcome:
        outcome = change(self._snapshot)
        if outcome.applied:
            self._snapshot = outcome.snapshot
        self.outcomes.append(outcome)
        return outcome


class Misbehaviour(Enum):
    """The ways in which a daemon misbehaves, as flags for :func:`demo_command`. Some take a value of your own."""

    EXITS_AT_ONCE = ("--exit-after", "0")
    EXITS_WELL = ("--exit-after", "0", "--exit-code", "0")
    EXITS_LATER = ("--exit-after", "1")
    NEVER_LISTENS = ("--never-listen",)
    NEVER_LISTENS_NOR_ENDS = ("--never-listen", "--ignore-term")
    LISTENS_ELSEWHERE = ("--listen-on", "0")
    FORKS_TWICE = ("--fork-twice",)
    IGNORES_TERM = ("--ignore-term",)
    STARTS_SLOWLY = ("--start-delay", "1")
    PRINTS_A_LOT = ("--spew", str(64 << 20))
    LEAVES_GRANDCHILDREN = ("--grandchildren", "2")
    LEAVES_GRANDCHILDREN_AND_EXITS = ("--grandchildren", "2", "--exit-after", "0")
    BINDS_EVERY_ADDRESS = ("--host", "0.0.0.0")  # noqa: S104  # that is the misbehaviour
    NEEDS_A_FILE = ("--needs-file", "needed.txt")
    ACCEPTS_AND_HANGS = ("--hang-after", "0")
    HANGS_LATER = ("--hang-after", "1")
    ANSWERS_SLOWLY = ("--answer-delay", "1")
    SPEAKS_FIRST = ("--banner", "hello")
    CLOSES_AFTER_ONE_ANSWER = ("--lines-limit", "1")
    TURNS_UNWELL = ("--unwell-after-lines", "1")


def misbehaving_command(how: Misbehaviour, *flags: str, version: str = "bad") -> tuple[str, ...]:
    """The command of a daemon that misbehaves, with ``{port}`` to be filled in.

    Args:
        how: in which way.
        flags: further ones of ``python -m turnout.demo.daemon``; of two that are the same, the last counts.
        version: the first word of each of its answers, should it come to that.
    """
    return demo_command(version, *how.value, *flags)


def demo_command(version: str, *flags: str) -> tuple[str, ...]:
    """The command of the bundled daemon (``python -m turnout.demo.daemon``), with ``{port}`` to be filled in.

    Args:
        version: the first word of each of its answers.
        flags: further ones, for its misbehaviour.
    """
    # -P: a file named like one of ours in the working directory must not be imported in its place
    daemon = (sys.executable, "-P", "-m", "turnout.demo.daemon")
    return (*daemon, "--port", "{port}", "--version", version, *flags)
