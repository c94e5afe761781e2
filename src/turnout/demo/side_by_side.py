"""One daemon, direct and through turnout, in turn; then switches under load. Nothing that runs already is touched."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from turnout.admin import RouterClient
from turnout.config import Address, Health, PlaneName, Settings, Wanted
from turnout.core.step import Step
from turnout.demo.timing import Clients, Latency, dial, end, exchange, in_turn, latency, whole
from turnout.errors import NotRunningError, TurnoutError
from turnout.keeper_client import KeeperClient
from turnout.lifecycle import Lifecycle
from turnout.system.home import Home
from turnout.system.spawn import choose_port
from turnout.verdict import await_verdict

LINE: Final = b"hello\n"  # the bundled daemon answers lines
END_S: Final = 1.0  # a daemon that has not ended its side by then does not follow its client's end
SWITCHES: Final = 20
SWITCHES_S: Final = 8.0
OBSERVE_S: Final = 0.05
LOCK_TIMEOUT_S: Final = 8.0
ANSWERED, ENDED, BOTH = "connect, exchange", "connect, end", "connect, exchange, end"


@dataclass(frozen=True, slots=True)
class Row:
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
class Result:
    """All that was found; ``notes``: what could not be, and what to know."""

    daemon: str
    plane: str
    rows: tuple[Row, ...]
    switches: Switches
    notes: tuple[str, ...]
    took_s: float


@dataclass(slots=True)
class _Subject:
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
        send: what the daemon answers; empty: nobody knows, so its connections are only opened and ended.
        plane: the plane to measure.
        say: told each thing that happens, one line at a time.
    """

    def __init__(self, target: Address | None, *, send: bytes, plane: PlaneName, say: Callable[[str], None]) -> None:
        self._target = target
        self._send = send
        self._plane: PlaneName = plane
        self._say = say
        self._home = Home(Path(tempfile.mkdtemp(prefix="turnout-bench-")))
        self._clients: Clients | None = None

    def run(self) -> Result:
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
            with suppress(NotRunningError), KeeperClient.connect(self._home) as keeper:
                keeper.shutdown()
            shutil.rmtree(self._home.root, ignore_errors=True)

    def _measure(self) -> Result:
        began = time.monotonic()
        notes = ["the client is in Python: its own cost is in both columns, and the difference is what turnout costs"]
        if self._target is None:
            subject = self._attached("bundled", self._bundled().own, LINE)
        else:
            subject = self._attached("yours", self._target, self._send)
        speaker = subject
        if not subject.send:
            speaker = self._bundled()
            notes.append(f"what {subject.own} answers is unknown: --send TEXT measures exchanges with it")
        if not subject.ends:
            notes.append(
                f"{subject.own} goes on when its client has ended: the end of a connection is not in the figures"
            )
        self._say("connections, direct and through, in turn")
        through, direct = (
            partial(whole, address, subject.send, ends=subject.ends) for address in (subject.fixed, subject.own)
        )
        name = (BOTH if subject.ends else ANSWERED) if subject.send else ENDED
        rows = [Row(name, subject.name, *in_turn(direct, through))]
        self._say("exchanges on one connection, direct and through, in turn")
        with dial(speaker.own) as near, dial(speaker.fixed) as far:
            pair = in_turn(partial(exchange, near, speaker.send), partial(exchange, far, speaker.send))
        rows.append(Row("exchange", speaker.name, *pair))
        self._say(f"{SWITCHES} switches under load")
        switches = self._switches(subject, through)
        plane = RouterClient(self._home).status()["services"][subject.settings.name]["plane"]
        return Result(str(subject.own), plane, tuple(rows), switches, tuple(notes), time.monotonic() - began)

    # -- daemons -----------------------------------------------------------------------------------------------------

    def _bundled(self) -> _Subject:
        self._say("starting the bundled daemon")
        settings = self._settings("bundled")
        command = (sys.executable, "-P", "-m", "turnout.demo.daemon", "--port", "{port}")
        wanted = Wanted(settings=settings, command=command, cwd=str(self._home.root), version="bundled")
        with Lifecycle(self._home, wanted, "bench", lock_timeout_s=LOCK_TIMEOUT_S) as lifecycle:
            lifecycle.up()
            active = lifecycle.service.registry.read().snapshot.active
        assert active is not None
        return _Subject("bundled", Address(active.host, active.port), settings, LINE)

    def _attached(self, name: str, target: Address, send: bytes) -> _Subject:
        self._say(f"attaching {target} to a router of its own")
        subject = _Subject(name, target, self._settings("attached"), send)
        self._switch(subject)
        with dial(target) as sock:
            if send:
                try:
                    exchange(sock, send)
                except OSError as error:
                    raise TurnoutError(
                        f"{target} does not answer {send!r}: {error}",
                        hint="--send TEXT: something that it answers",
                    ) from None
            sock.settimeout(END_S)
            try:
                end(sock)
            except TimeoutError:
                if not send:
                    raise TurnoutError(
                        f"{target} does not end a connection whose client has ended, so nothing of it can be timed",
                        hint="--send TEXT: something that it answers",
                    ) from None
                subject.ends = False
        return subject

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

    # -- switches ----------------------------------------------------------------------------------------------------

    def _switches(self, subject: _Subject, way: Callable[[], None]) -> Switches:
        subject.took_s.clear()
        clients = self._clients = Clients(way)
        clients.start()
        deadline = time.monotonic() + SWITCHES_S
        while len(subject.took_s) < SWITCHES and time.monotonic() < deadline:
            self._switch(subject)
        clients.stop()
        seen, took = latency(clients.took_s or [0.0]), latency(subject.took_s)
        failed = sum(clients.errors.values())
        return Switches(
            count=len(subject.took_s),
            took_ms=took.p50_us / 1e3,
            connections=len(clients.took_s) + failed,
            failed=failed,
            errors=dict(clients.errors),
            p50_ms=seen.p50_us / 1e3,
            worst_ms=max(clients.took_s, default=0.0) * 1e3,
        )

    def _switch(self, subject: _Subject) -> None:
        """Attach the daemon once more, under another boot id: to turnout that is a switch like any other."""
        began = [0.0]

        def on_step(step: Step, _text: str) -> None:
            if step is Step.SWITCH:
                began[0] = time.monotonic()

        wanted = Wanted(settings=subject.settings)
        with Lifecycle(self._home, wanted, "bench", lock_timeout_s=LOCK_TIMEOUT_S, on_step=on_step) as lifecycle:
            done = lifecycle.attach(subject.own)
            subject.took_s.append(time.monotonic() - began[0])
            lifecycle.unlock()
            if done.switched and done.switched.observed:
                await_verdict(lifecycle.service, done.switched)


def table(said: Result) -> str:
    """What a person reads."""
    rows = [("", "direct", "through", "more")]
    for row in said.rows:
        label = row.name if row.daemon == "yours" else f"{row.name} ({row.daemon} daemon)"
        for name, direct, through in (
            (f"{label}, p50", row.direct.p50_us, row.through.p50_us),
            ("p99", row.direct.p99_us, row.through.p99_us),
        ):
            rows.append((name, f"{direct:.0f} µs", f"{through:.0f} µs", f"{through - direct:+.0f} µs"))
    width = max(len(row[0]) for row in rows)
    lines = [f"{said.daemon} with the {said.plane} plane in front of it, measured in {said.took_s:.0f} s", ""]
    lines += [f"{name:>{width}}{direct:>12}{through:>12}{more:>12}" for name, direct, through, more in rows]
    seen = said.switches
    lines += [
        "",
        f"{seen.count} switches under load, {seen.took_ms:.0f} ms each",
        f"{seen.connections} connections: {seen.failed} failed, p50 {seen.p50_ms:.1f} ms, worst {seen.worst_ms:.1f} ms",
        *(f"  {count} x {error}" for error, count in seen.errors.items()),
        "",
        *(f"- {note}" for note in said.notes),
    ]
    return "\n".join(lines)
