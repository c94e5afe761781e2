"""Switches under load: how soon the first new connection reaches the other daemon, and what clients see meanwhile.

Connections come by a schedule, and each counts from when it was due: one that had to wait is seen with all of its wait.
"""

from __future__ import annotations

import bisect
import math
import os
import select
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.arena import HERE, Arena, BenchError, wait_for
from bench.contenders import haproxy_config, needs, nginx_config, nginx_missing, plane_missing
from turnout.core.model import Deployment, Snapshot
from turnout.state.home import Home
from turnout.state.registry.encoder import dumps
from turnout.state.registry.file import RegistryFile
from turnout.testing import free_port

NAMES: Final = ("A", "B")
RATE: Final = 1000  # connections a second: far from what any contender can do, so that queueing is not measured
SIZE: Final = 64
SWITCH_TIMEOUT_S: Final = 3.0
ASKED_MOST: Final = 6  # a signal that comes while the last reload goes on may be lost
QUIET_S: Final = 0.06  # so long after the last change a switch counts as over
AROUND_S: Final = 0.15


@dataclass(frozen=True)
class Switcher:
    """One way to switch, up and running.

    Args:
        name: what the tables call it.
        port: where clients come.
        prepare: makes all ready for new connections to go to the daemon with this letter, and answers what has only
            to be called for it; that returns when it has been asked for, not done.
        begins: who answers before the first switch.
        quiet_s: how long both daemons may answer in turn after a switch; nginx ends its old worker 100 ms later.
    """

    name: str
    port: int
    prepare: Callable[[str], Callable[[], object]]
    quiet_s: float = QUIET_S
    begins: str = NAMES[0]


@dataclass(frozen=True)
class Switching:
    """An entry: how a switcher is started, and why it cannot be."""

    name: str
    start: Callable[[Arena], Switcher]
    missing: Callable[[], str]
    told: str


@dataclass
class Seen:
    """What clients saw: of each connection when it was due (monotonic seconds), its latency, and who answered."""

    due: list[float] = field(default_factory=list)
    took_ms: list[float] = field(default_factory=list)
    who: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Seen:
        rows = sorted(
            (float(due), float(us) / 1e3, who) for due, us, who in map(str.split, path.read_text().splitlines())
        )
        return cls([row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows])

    def between(self, begin: float, end: float) -> slice:
        return slice(bisect.bisect_left(self.due, begin), bisect.bisect_right(self.due, end))

    def first(self, who: str, after: float) -> float:
        """How long after a moment the first connection was answered by ``who``, in ms."""
        near = self.between(after - 1.0, after + SWITCH_TIMEOUT_S * ASKED_MOST)
        ends = [
            due + took / 1e3
            for due, took, one in zip(self.due[near], self.took_ms[near], self.who[near], strict=True)
            if one == who and due + took / 1e3 > after
        ]
        return (min(ends) - after) * 1e3

    def last(self, who: str, after: float, until: float) -> float:
        """How long after a moment a connection that came since was still given to ``who``, in ms; 0: none was.

        One that is answered after ``until``, when the next switch begins, may have been given to anybody.
        """
        near = self.between(after, until)
        found = zip(self.due[near], self.took_ms[near], self.who[near], strict=True)
        return max(
            ((due - after) * 1e3 for due, took, one in found if one == who and due + took / 1e3 < until), default=0.0
        )


def measure(arena: Arena, switcher: Switcher, count: int) -> dict[str, Any]:
    """So many switches, one after the other, under steady load.

    Returns:
        The time to the first new connection of each switch, failures by kind, latencies, and one switch point by point.
    """
    path = arena.directory / f"watch-{free_port()}.txt"
    process = arena.start(
        *(arena.load, "watch", str(switcher.port), str(RATE), str(SIZE), str(path)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    moments: list[tuple[float, str]] = []
    asked = 0
    try:
        letter = switcher.begins
        if not _settled(process, letter, switcher.quiet_s):
            raise BenchError(f"{switcher.name}: {letter} does not answer")
        for number in range(count):
            time.sleep(0.003 * (number % 7))  # anywhere between two looks of somebody who polls
            letter = NAMES[1 - NAMES.index(letter)]
            for again in range(ASKED_MOST):
                ask = switcher.prepare(letter)
                if not again:
                    moments.append((time.monotonic(), letter))
                ask()
                asked += 1
                if _settled(process, letter, switcher.quiet_s):
                    break
            else:
                raise BenchError(f"{switcher.name}: {letter} did not answer alone, asked {ASKED_MOST} times")
    finally:
        process.communicate()
    return {**_told(Seen.read(path), moments), "asked_again": asked - count}


def _settled(process: subprocess.Popen[bytes], wanted: str, quiet_s: float) -> bool:
    """Wait until ``wanted`` answers, and nobody else has for so long; false: it was in vain."""
    assert process.stdout
    deadline = time.monotonic() + SWITCH_TIMEOUT_S
    last = ""
    while time.monotonic() < deadline:
        if select.select([process.stdout], [], [], quiet_s)[0]:
            line = os.read(process.stdout.fileno(), 2).decode().strip()
            if not line:
                raise BenchError("the load ended in the middle of the switches")
            last = line
        elif last == wanted:
            return True
    return False


def _told(seen: Seen, moments: Sequence[tuple[float, str]]) -> dict[str, Any]:
    # what a client saw of one switch ends where the next begins
    ends = [
        min(at + AROUND_S, after)
        for (at, _), after in zip(moments, [*(at for at, _ in moments[1:]), math.inf], strict=True)
    ]
    first = [seen.first(letter, at) for at, letter in moments]
    last = [seen.last(NAMES[1 - NAMES.index(letter)], at, end) for (at, letter), end in zip(moments, ends, strict=True)]
    failed = Counter(who for who in seen.who if who not in NAMES)
    worst = [
        max(seen.took_ms[seen.between(at - 0.01, end)], default=0.0) for (at, _), end in zip(moments, ends, strict=True)
    ]
    ordered = sorted(seen.took_ms)
    typical = min(range(len(moments)), key=lambda n: abs(worst[n] - statistics.median(worst)))
    at = moments[typical][0]
    near = seen.between(at - AROUND_S / 3, ends[typical])
    return {
        "switches": len(moments),
        "connections": len(seen.due),
        "first_ms": [round(value, 3) for value in first],
        "last_old_ms": [round(value, 3) for value in last],
        "failed": dict(failed),
        "worst_ms": round(max(worst), 3),
        "worst_each_ms": [round(value, 3) for value in worst],
        "p50_ms": ordered[len(ordered) // 2],
        "p999_ms": ordered[len(ordered) * 999 // 1000],
        "timeline": [
            [round((due - at) * 1e3, 2), round(took, 3), who]
            for due, took, who in zip(seen.due[near], seen.took_ms[near], seen.who[near], strict=True)
        ],
    }


# -- turnout -----------------------------------------------------------------------------------------------------------


def turnout(plane: str) -> Switching:
    """A plane of turnout's, switched by renaming another registry into place, as a foreign program does."""
    return Switching(
        plane,
        lambda arena: start_registry(arena, plane),
        lambda: plane_missing(plane),
        "the registry renamed into place; the router notices by itself",
    )


def start_registry(
    arena: Arena, plane: str, *, home: Path | None = None, env: dict[str, str] | None = None
) -> Switcher:
    """Two daemons of one service, the second active, its window open and its drain without an end."""
    home, port = home or arena.directory / f"switch-{plane}-{free_port()}", free_port()
    config = home.with_suffix(".toml")
    for number, letter in enumerate(NAMES):
        config.write_text(
            f'[service.name]\nlisten = "127.0.0.1:{port}"\nplane = "{plane}"\nobserve = "600s"\n'
            f'command = ["{arena.serve}", "{{port}}", "name", "{letter}"]\nversion = "{letter}"\n'
            'drain = { grace = "10m", deadline = "none" }\n'
        )
        verb = ("deploy", "--detach") if number else ("up",)
        arena.verb(home, *verb, "-q", "-c", str(config), "--service", "name", env=env)
    file = RegistryFile(Home(home).service("name").registry)
    return Switcher(plane, port, lambda letter: beside(file, letter), begins=NAMES[1])


def beside(file: RegistryFile, version: str) -> Callable[[], object]:
    """Make a file in which the daemon with this version is the active one; what is answered renames it into place."""
    snapshot = file.read().snapshot
    boot = next(boot for boot, daemon in snapshot.daemons.items() if daemon.version == version)
    block = snapshot.deployment
    moved = Deployment(generation=block.generation, active_boot_id=boot, revision=block.revision + 1)
    temp = file.path.with_name("theirs.tmp")
    temp.write_bytes(dumps(Snapshot(snapshot.daemons, snapshot.workspaces, moved)))
    return lambda: temp.replace(file.path)


# -- peers -------------------------------------------------------------------------------------------------------------


def _backs(arena: Arena) -> dict[str, int]:
    return {letter: arena.daemon((arena.serve, "{port}", "name", letter)) for letter in NAMES}


def start_reference(arena: Arena) -> Switcher:
    back, port = _backs(arena), free_port()
    process = arena.start(
        sys.executable, str(HERE / "tools" / "reference.py"), str(port), *(str(back[letter]) for letter in NAMES)
    )
    wait_for(port, process)
    return Switcher("reference", port, lambda _letter: lambda: process.send_signal(signal.SIGUSR1))


def _haproxy_reload(arena: Arena) -> Switcher:
    back, port = _backs(arena), free_port()
    config = arena.directory / f"haproxy-{port}.cfg"
    stats = f"    stats socket {config.with_suffix('.sock')} mode 600 level admin expose-fd listeners\n"

    def write(letter: str) -> None:
        config.write_text(haproxy_config({"name": port}, {"name": back[letter]}, stats))

    write(NAMES[0])
    process = arena.start("haproxy", "-W", "-db", "-f", str(config))
    wait_for(port, process)

    def prepare(letter: str) -> Callable[[], object]:
        write(letter)
        return lambda: process.send_signal(signal.SIGUSR2)

    return Switcher("haproxy reload", port, prepare, quiet_s=0.15)


def _haproxy_runtime(arena: Arena) -> Switcher:
    back, port = _backs(arena), free_port()
    config = arena.directory / f"haproxy-{port}.cfg"
    path = config.with_suffix(".sock")
    stats = f"    stats socket {path} mode 600 level admin\n"
    config.write_text(haproxy_config({"name": port}, {"name": back[NAMES[0]]}, stats))
    wait_for(port, arena.start("haproxy", "-db", "-f", str(config)))

    def switch(letter: str) -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(SWITCH_TIMEOUT_S)
            sock.connect(str(path))
            sock.sendall(f"set server name/one addr 127.0.0.1 port {back[letter]}\n".encode())
            while sock.recv(4096):
                pass

    return Switcher("haproxy set server", port, lambda letter: lambda: switch(letter))


def _nginx_reload(arena: Arena) -> Switcher:
    back, port = _backs(arena), free_port()
    config = arena.directory / f"nginx-{port}.conf"

    def write(letter: str) -> None:
        config.write_text(nginx_config({"name": port}, {"name": back[letter]}, config.with_suffix(".pid")))

    write(NAMES[0])
    process = arena.start("nginx", "-p", str(arena.directory), "-c", str(config))
    wait_for(port, process)

    def prepare(letter: str) -> Callable[[], object]:
        write(letter)
        return lambda: process.send_signal(signal.SIGHUP)

    return Switcher("nginx reload", port, prepare, quiet_s=0.15)


SWITCHINGS: Final = (
    turnout("relay"),
    turnout("stream"),
    Switching("haproxy set server", _haproxy_runtime, needs("haproxy"), "one command on its runtime socket"),
    Switching("haproxy reload", _haproxy_reload, needs("haproxy"), "SIGUSR2 to the master, listeners handed over"),
    Switching("nginx reload", _nginx_reload, nginx_missing, "SIGHUP to the master"),
    Switching("reference", start_reference, lambda: "", "a signal: the least that a switch can be"),
)
