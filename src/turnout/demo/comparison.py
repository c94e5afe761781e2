"""One daemon, direct and through turnout, in turn; then switches under load. Nothing that runs already is touched."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from turnout.config.settings import Address, Health, PlaneName, ServiceRequest, Settings
from turnout.control.router_client import RouterClient
from turnout.core.rollout_step import RolloutStep
from turnout.demo.scenario import clear_away
from turnout.demo.timing import Clients, Latency, dial, end, exchange, in_turn, latency, whole
from turnout.errors import TurnoutError
from turnout.lifecycle.observation import await_verdict
from turnout.lifecycle.progress import Progress
from turnout.lifecycle.verb_request import VerbRequest
from turnout.lifecycle.verbs import Lifecycle
from turnout.state.home import Home
from turnout.system.net.ports import choose_port

LINE: Final = b"hello\n"  # the bundled daemon answers lines
END_S: Final = 1.0  # a daemon that has not ended its side by then does not follow its client's end
HINT: Final = "--send TEXT: something that it answers"
SWITCHES: Final = 20
SWITCHES_S: Final = 8.0
OBSERVE_S: Final = 0.05
LOCK_TIMEOUT_S: Final = 8.0
ANSWERED, ENDED, BOTH = "connect, exchange", "connect, end", "connect, exchange, end"


@dataclass(frozen=True, slots=True)
class ComparisonRow:
    """One thing that was done, direct and through turnout; ``daemon``: "yours" or "bundled"."""

    name: str
    daemon: str
    direct: Latency
    through: Latency


@dataclass(frozen=True, slots=True)
class Switches:
    """What clients saw meanwhile.

    Args:
        count: how many switches there were.
        took_ms: from the decision to the router's word that it is done, median.
        connections: how many were made; ``failed`` of them failed, by ``errors``.
        worst_ms: the longest of them, from connect to end; ``p50_ms``: the median.
    """

    count: int
    took_ms: float
    connections: int
    failed: int
    errors: dict[str, int]
    p50_ms: float
    worst_ms: float


@dataclass(frozen=True, slots=True)
class ComparisonResult:
    """All that was found; ``notes``: what could not be, and what to know."""

    daemon: str
    plane: str
    rows: tuple[ComparisonRow, ...]
    switches: Switches
    notes: tuple[str, ...]
    took_s: float


@dataclass(slots=True)
class _Measured:
    """A daemon behind the temporary router: where it is, where its fixed address is, what it answers."""

    name: str
    own: Address
    settings: Settings
    send: bytes
    ends: bool = True
    took_s: list[float] = field(default_factory=list[float])

    @property
    def fixed(self) -> Address:
        return self.settings.listen[0]


class SideBySide:
    """Runs the comparison in a home of its own. Owns that directory, the clients and all that is started in it.

    Args:
        target: where the daemon listens; None: the bundled one is started.
        send: what the daemon answers; empty: unknown, so its connections are only opened and ended.
        plane: the plane to measure.
        say: gets a line for each thing that happens.
    """

    def __init__(self, target: Address | None, *, send: bytes, plane: PlaneName, say: Callable[[str], None]) -> None:
        self._target = target
        self._send = send
        self._plane: PlaneName = plane
        self._say = say
        self._home = Home(Path(tempfile.mkdtemp(prefix="turnout-bench-")))
        self._clients: Clients | None = None

    def run(self) -> ComparisonResult:
        """Measure; whatever happens, nothing is left behind.

        Raises:
            NotRunningError: nothing listens where the daemon should.
            TurnoutError: it answers neither ``send`` nor an end of stream, or cannot be attached.
        """
        try:
            return self._measure()
        finally:
            if self._clients:
                self._clients.stop()
            clear_away(self._home)

    def _measure(self) -> ComparisonResult:
        began = time.monotonic()
        notes = ["the client is in Python: its own cost is in both columns, and the difference is what turnout costs"]
        if self._target is None:
            measured = self._attached("bundled", self._bundled().own, LINE)
        else:
            measured = self._attached("yours", self._target, self._send)
        speaker = measured
        if not measured.send:
            speaker = self._bundled()
            notes.append(f"what {measured.own} answers is unknown: --send TEXT measures exchanges with it")
        if not measured.ends:
            goes_on = f"{measured.own} goes on when its client has ended"
            notes.append(f"{goes_on}: the end of a connection is not in the figures")
        self._say("connections, direct and through, in turn")
        through, direct = (
            partial(whole, address, measured.send, ends=measured.ends) for address in (measured.fixed, measured.own)
        )
        name = (BOTH if measured.ends else ANSWERED) if measured.send else ENDED
        rows = [ComparisonRow(name, measured.name, *in_turn(direct, through))]
        self._say("exchanges on one connection, direct and through, in turn")
        with dial(speaker.own) as near, dial(speaker.fixed) as far:
            pair = in_turn(partial(exchange, near, speaker.send), partial(exchange, far, speaker.send))
        rows.append(ComparisonRow("exchange", speaker.name, *pair))
        self._say(f"{SWITCHES} switches under load")
        switches = self._switches(measured, through)
        plane = RouterClient(self._home).status()["services"][measured.settings.name]["plane"]
        return ComparisonResult(str(measured.own), plane, tuple(rows), switches, tuple(notes), time.monotonic() - began)

    def _bundled(self) -> _Measured:
        self._say("starting the bundled daemon")
        settings = self._settings("bundled")
        command = (sys.executable, "-P", "-m", "turnout.demo.daemon", "--port", "{port}")
        wanted = ServiceRequest(settings=settings, command=command, cwd=str(self._home.root), version="bundled")
        with Lifecycle(self._home, wanted, VerbRequest("up"), lock_timeout_s=LOCK_TIMEOUT_S) as lifecycle:
            lifecycle.run()
            active = lifecycle.service.registry.read().snapshot.active
        assert active is not None
        return _Measured("bundled", Address(active.host, active.port), settings, LINE)

    def _attached(self, name: str, target: Address, send: bytes) -> _Measured:
        self._say(f"attaching {target} to a router of its own")
        measured = _Measured(name, target, self._settings("attached"), send)
        self._switch(measured)
        with dial(target) as sock:
            if send:
                try:
                    exchange(sock, send)
                except OSError as error:
                    raise TurnoutError(f"{target} does not answer {send!r}: {error}", hint=HINT) from None
            sock.settimeout(END_S)
            try:
                end(sock)
            except TimeoutError:
                if not send:
                    unknown = (
                        f"{target} does not end a connection whose client has ended, so nothing of it can be timed"
                    )
                    raise TurnoutError(unknown, hint=HINT) from None
                measured.ends = False
        return measured

    def _settings(self, name: str) -> Settings:
        with choose_port() as reserved:
            address = Address("127.0.0.1", reserved.port)
        return Settings(
            name=name,
            listen=(address,),
            plane=self._plane,
            health=Health(interval_s=OBSERVE_S),
            observe_s=OBSERVE_S,
            drain_grace_s=1.0,
        )

    def _switches(self, measured: _Measured, connection: Callable[[], None]) -> Switches:
        measured.took_s.clear()
        clients = self._clients = Clients(connection)
        clients.start()
        deadline = time.monotonic() + SWITCHES_S
        while len(measured.took_s) < SWITCHES and time.monotonic() < deadline:
            self._switch(measured)
        clients.stop()
        seen, took = latency(clients.took_s or [0.0]), latency(measured.took_s)
        failed = sum(clients.errors.values())
        return Switches(
            count=len(measured.took_s),
            took_ms=took.p50_us / 1e3,
            connections=len(clients.took_s) + failed,
            failed=failed,
            errors=dict(clients.errors),
            p50_ms=seen.p50_us / 1e3,
            worst_ms=max(clients.took_s, default=0.0) * 1e3,
        )

    def _switch(self, measured: _Measured) -> None:
        """Attach the daemon once more, under another boot id: to turnout that is a switch like any other."""
        began = [0.0]

        def on_step(step: RolloutStep, _text: str) -> None:
            if step is RolloutStep.SWITCH:
                began[0] = time.monotonic()

        wanted = ServiceRequest(settings=measured.settings)
        request = VerbRequest("attach", address=measured.own)
        progress = Progress(step=on_step)
        with Lifecycle(self._home, wanted, request, lock_timeout_s=LOCK_TIMEOUT_S, progress=progress) as lifecycle:
            done = lifecycle.run()
            measured.took_s.append(time.monotonic() - began[0])
            lifecycle.unlock()
            if done.switched and done.switched.observed:
                await_verdict(lifecycle.service, done.switched)


def table(result: ComparisonResult) -> str:
    """The result for people."""
    rows = [("", "direct", "through", "more")]
    for row in result.rows:
        label = row.name if row.daemon == "yours" else f"{row.name} ({row.daemon} daemon)"
        p50 = (f"{label}, p50", row.direct.p50_us, row.through.p50_us)
        for name, direct, through in (p50, ("p99", row.direct.p99_us, row.through.p99_us)):
            rows.append((name, f"{direct:.0f} µs", f"{through:.0f} µs", f"{through - direct:+.0f} µs"))
    width = max(len(row[0]) for row in rows)
    lines = [f"{result.daemon} with the {result.plane} plane in front of it, measured in {result.took_s:.0f} s", ""]
    lines += [f"{name:>{width}}{direct:>12}{through:>12}{more:>12}" for name, direct, through, more in rows]
    seen = result.switches
    lines += [
        "",
        f"{seen.count} switches under load, {seen.took_ms:.0f} ms each",
        f"{seen.connections} connections: {seen.failed} failed, p50 {seen.p50_ms:.1f} ms, worst {seen.worst_ms:.1f} ms",
        *(f"  {count} x {error}" for error, count in seen.errors.items()),
        "",
        *(f"- {note}" for note in result.notes),
    ]
    return "\n".join(lines)
