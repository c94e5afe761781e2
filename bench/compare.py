"""The relay beside HAProxy, in one run: alternating pairs, and the median of their ratios with its spread.

    python bench/compare.py [--pairs 9] [--seconds 1.5] [--write]

Needs gcc (for the load generator) and turnout; haproxy where it is installed, else it is named as left out. ``--write``
puts the table into bench/RESULTS.md and the raw figures beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from turnout import __version__
from turnout.system.spawn import choose_port

HERE = Path(__file__).parent
IDLE_CONNECTIONS = 5000
IDLE_S = 10
HAPROXY = """
global
    nbthread 1
    maxconn 6400
defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    option splice-auto
"""

LISTEN = """
listen {name}
    bind 127.0.0.1:{front}
    server one 127.0.0.1:{back}
"""


@dataclass(frozen=True)
class Case:
    """One row: what is run against a port, which figure counts, and what it must and should be against HAProxy."""

    name: str
    load: tuple[str, ...]
    figure: str
    sink: bool = False
    less_is_better: bool = False
    must: float = 1.0
    aim: float = 1.0


CASES = (
    Case("64 B, 1 connection, p50", ("pingpong", "1", "64"), "p50_us", less_is_better=True, must=1.10, aim=1.0),
    Case("64 B, 50 connections, ops/s", ("pingpong", "50", "64"), "ops_s", must=0.70, aim=0.9),
    Case("connect + exchange + close, /s", ("connects", "64"), "per_s", must=0.60, aim=0.8),
    Case("bulk, 1 stream", ("bulk", "1"), "bytes_s", sink=True, must=1.0, aim=1.5),
    Case("bulk, 16 streams", ("bulk", "16"), "bytes_s", sink=True, must=1.1, aim=1.5),
)


@dataclass(frozen=True)
class Contender:
    """A way to the daemon, up and running: a port for echo, one for bulk, and the process that carries the bytes."""

    name: str
    echo: int
    sink: int
    pid: int


def free_port() -> int:
    with choose_port() as reserved:
        return reserved.port


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 20
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if time.monotonic() > deadline:
            raise SystemExit(f"nothing listens on port {port}")
        time.sleep(0.02)


class Arena:
    """Owns every process of a run, and its directory."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="turnout-bench-"))
        self.load = str(self.directory / "load")
        subprocess.run(["gcc", "-O2", "-o", self.load, str(HERE / "tools" / "load.c")], check=True)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._homes: list[Path] = []
        self.back = {"echo": self._daemon("echo"), "sink": self._daemon("sink")}

    def start(self, *argv: str, **more: Any) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(argv, **more)
        self._processes.append(process)
        return process

    def _daemon(self, kind: str) -> int:
        port = free_port()
        self.start(self.load, "serve", str(port), kind)
        wait_for(port)
        return port

    def direct(self) -> Contender:
        return Contender("direct", self.back["echo"], self.back["sink"], 0)

    def haproxy(self) -> Contender:
        ports = {kind: free_port() for kind in self.back}
        text = HAPROXY + "".join(
            LISTEN.format(name=kind, front=port, back=self.back[kind]) for kind, port in ports.items()
        )
        config = self.directory / "haproxy.cfg"
        config.write_text(text)
        process = self.start("haproxy", "-db", "-f", str(config), stderr=subprocess.DEVNULL)
        for port in ports.values():
            wait_for(port)
        return Contender("haproxy", ports["echo"], ports["sink"], process.pid)

    def turnout(self, plane: str) -> Contender:
        """The whole of it: keeper, router, checks every second. Both services live in one router."""
        home = self.directory / f"home-{plane}"
        self._homes.append(home)
        ports = {kind: free_port() for kind in self.back}
        config = self.directory / f"{plane}.toml"
        config.write_text(
            "\n".join(
                f'[service.{kind}]\nlisten = "127.0.0.1:{port}"\nplane = "{plane}"\nobserve = "1s"\n'
                f'command = ["{self.load}", "serve", "{{port}}", "{kind}"]\n'
                for kind, port in ports.items()
            )
        )
        for kind in ports:
            self.verb(home, "-q", "-c", str(config), "--service", kind, verb="up")
        status = self.verb(home, "--json", verb="status")
        return Contender(plane, ports["echo"], ports["sink"], json.loads(status)["services"][0]["router"]["pid"])

    @staticmethod
    def verb(home: Path, *args: str, verb: str) -> str:
        argv = [sys.executable, "-P", "-m", "turnout", verb, *args]
        env = {**os.environ, "TURNOUT_HOME": str(home)}
        return subprocess.run(argv, env=env, check=True, capture_output=True, text=True).stdout

    def run(self, contender: Contender, case: Case, seconds: float) -> float:
        port = contender.sink if case.sink else contender.echo
        kind, *arguments = case.load
        argv = [self.load, kind, str(port), *arguments, str(seconds)]
        said = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=seconds + 60).stdout
        return float(json.loads(said)[case.figure])

    @contextlib.contextmanager
    def idle(self, contender: Contender) -> Iterator[None]:
        process = subprocess.Popen(
            [self.load, "idle", str(contender.echo), str(IDLE_CONNECTIONS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            assert process.stdout
            assert process.stdout.readline() == b"ready\n"
            time.sleep(1)
            yield
        finally:
            process.communicate()

    def close(self) -> None:
        for home in self._homes:
            for kind in self.back:
                with contextlib.suppress(subprocess.CalledProcessError):
                    self.verb(home, "-q", "--service", kind, verb="down")
        for process in self._processes:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            process.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


def memory_per_connection(arena: Arena, contender: Contender) -> tuple[float, float]:
    """Bytes of resident memory for an idle connection, and the share of a core that so many idle ones use."""
    process = psutil.Process(contender.pid)
    before = process.memory_info().rss
    with arena.idle(contender):
        after = process.memory_info().rss
        cpu = sum(process.cpu_times()[:2])
        time.sleep(IDLE_S)
        used = (sum(process.cpu_times()[:2]) - cpu) / IDLE_S
    return (after - before) / IDLE_CONNECTIONS, used


def compare(arena: Arena, ours: Contender, peer: Contender, case: Case, pairs: int, seconds: float) -> dict[str, Any]:
    """Alternating, each pair in the other order, so that a drift of the machine meets both."""
    mine: list[float] = []
    theirs: list[float] = []
    for number in range(pairs):
        order = [(ours, mine), (peer, theirs)]
        for contender, figures in order if number % 2 else reversed(order):
            figures.append(arena.run(contender, case, seconds))
    ratios = sorted(a / b for a, b in zip(mine, theirs, strict=True))
    quarter = len(ratios) // 4
    return {
        "case": case.name,
        "plane": ours.name,
        "peer": peer.name,
        "ratio": statistics.median(ratios),
        "spread": [ratios[quarter], ratios[-1 - quarter]],
        "ours": statistics.median(mine),
        "theirs": statistics.median(theirs),
        "raw": {ours.name: mine, peer.name: theirs},
    }


def verdict(case: Case, ratio: float) -> str:
    better: Callable[[float], bool] = (lambda bound: ratio <= bound) if case.less_is_better else (lambda b: ratio >= b)
    return "aim" if better(case.aim) else "must" if better(case.must) else "missed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--plane", default="relay")
    parser.add_argument("--case", default="", help="only cases whose name has this in it")
    parser.add_argument("--write", action="store_true", help="write bench/RESULTS.md")
    options = parser.parse_args()
    arena = Arena()
    lines = ["| case | turnout | peer | ratio (quartiles) | must | aim | |", "|---|---|---|---|---|---|---|"]
    raw: list[dict[str, Any]] = []
    try:
        ours = arena.turnout(options.plane)
        if shutil.which("haproxy"):
            peer = arena.haproxy()
        else:
            print("haproxy is not installed and left out; the ratios are against a direct connection")
            peer = arena.direct()
        for case in CASES:
            if options.case not in case.name:
                continue
            found = compare(arena, ours, peer, case, options.pairs, options.seconds)
            raw.append(found)
            low, high = found["spread"]
            sign = "≤" if case.less_is_better else "≥"
            shown = f"{found['ratio']:.2f} ({low:.2f} to {high:.2f})"
            bounds = f"{sign} {case.must} | {sign} {case.aim} | {verdict(case, found['ratio'])}"
            line = f"| {case.name} | {found['ours']:,.4g} | {found['theirs']:,.4g} | {shown} | {bounds} |"
            lines.append(line)
            print(line, flush=True)
        if peer.pid and not options.case:
            (mine, busy), (theirs, _) = memory_per_connection(arena, ours), memory_per_connection(arena, peer)
            ratio = mine / theirs
            grade = "aim" if ratio <= 0.5 else "must" if ratio <= 1 else "missed"
            many = f"{IDLE_CONNECTIONS:,}"
            memory = f"{mine:,.0f} | {theirs:,.0f} | {ratio:.2f} | ≤ 1.0 | ≤ 0.5 | {grade}"
            lines.append(f"| memory of an idle connection, {many} open, bytes | {memory} |")
            grade = "must" if busy < 0.005 else "missed"
            lines.append(f"| router, {many} idle connections, % of a core | {busy * 100:.2f} | | | < 0.5 | | {grade} |")
            print(*lines[-2:], sep="\n")
            raw.append({"memory": {"ours": mine, "theirs": theirs}, "idle_cpu": busy})
    finally:
        arena.close()
    if options.write:
        write(lines, raw, options)


def write(lines: list[str], raw: list[dict[str, Any]], options: argparse.Namespace) -> None:
    about = {
        "date": f"{dt.datetime.now(dt.UTC):%Y-%m-%d}",
        "turnout": __version__,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cores": os.cpu_count(),
        "pairs": options.pairs,
        "seconds": options.seconds,
        "haproxy": _version("haproxy", "-v"),
    }
    told = ", ".join(f"{key} {value}" for key, value in about.items())
    text = [
        "# Results",
        "",
        "The relay beside HAProxy with one thread and splice-auto: alternating pairs in one run, the median of their",
        "ratios and its quartiles. Made by `python bench/compare.py --write`; each pair is in `results.json`.",
        "Absolute figures are this machine's; the ratios are what counts.",
        "",
        told + ".",
        "",
        *lines,
        "",
    ]
    (HERE / "RESULTS.md").write_text("\n".join(text))
    (HERE / "results.json").write_text(json.dumps({"about": about, "cases": raw}, indent=1) + "\n")


def _version(*argv: str) -> str:
    with contextlib.suppress(OSError):
        return (
            subprocess.run(argv, capture_output=True, text=True, check=False)
            .stdout.splitlines()[0]
            .split("(")[0]
            .strip()
        )
    return "not installed"


if __name__ == "__main__":
    main()
