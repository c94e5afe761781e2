"""Well-known load tools, for figures that people know from elsewhere."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.arena import HERE, LOAD_TIMEOUT_S, Arena, BenchError, Way
from bench.contenders import find
from turnout.demo.scenario import find_redis

SECONDS: Final = 1
REQUESTS: Final = 20_000
PAGE: Final = """\
daemon off; master_process off; pid PORT.pid; error_log /dev/null crit; worker_rlimit_nofile 4096;
events { worker_connections 2048; }
http { access_log off; keepalive_requests 100000000; server { listen 127.0.0.1:PORT; return 200 "hello"; } }
"""


@dataclass(frozen=True)
class Known:
    """A tool and the daemon that it is made for.

    Args:
        name: what the tables call it, with what it measures.
        kind: the daemon, as the arena knows it.
        daemon: its command with ``{port}``, or None where it is not installed.
        tool: the tool's command for a port, or None.
        figure: finds the figure in what the tool printed; None where it is not in there.
        unit: of the figure, and whether less is better.
    """

    name: str
    kind: str
    daemon: Callable[[Arena], tuple[str, ...] | None]
    tool: Callable[[int], tuple[str, ...] | None]
    figure: Callable[[str], float | None]
    unit: str
    less_is_better: bool = False

    def missing(self, arena: Arena) -> str:
        """Why it cannot be run here; empty where it can."""
        if self.tool(0) is None:
            return f"{self.name.split()[0]} is not installed"
        return "" if self.daemon(arena) else f"the daemon for {self.name.split()[0]} is not installed"


def run(arena: Arena, known: Known, way: Way) -> float:
    """One run of the tool.

    Raises:
        BenchError: it failed, or did not say what it should.
    """
    argv = known.tool(way.ports[known.kind])
    assert argv
    done = subprocess.run(argv, capture_output=True, text=True, timeout=LOAD_TIMEOUT_S, check=False, env=arena.env)
    found = known.figure(done.stdout) if done.returncode == 0 else None
    if found is None:
        raise BenchError(f"{' '.join(argv)}: {(done.stderr or done.stdout).strip()[-300:]}")
    return found


def _tool(name: str, *arguments: str) -> Callable[[int], tuple[str, ...] | None]:
    def command(port: int) -> tuple[str, ...] | None:
        program = find(name)
        return (program, *(word.replace("PORT", str(port)) for word in arguments)) if program else None

    return command


def _number(pattern: str) -> Callable[[str], float | None]:
    def figure(text: str) -> float | None:
        found = re.search(pattern, text)
        return float(found.group(1)) if found else None

    return figure


def _iperf(text: str) -> float | None:
    said: Mapping[str, Mapping[str, Mapping[str, float]]] = json.loads(text)
    return said["end"]["sum_received"]["bits_per_second"] / 8e9


def _redis(_arena: Arena) -> tuple[str, ...] | None:
    server = find_redis()
    return (server, "--port", "{port}", "--save", "", "--appendonly", "no", "--bind", "127.0.0.1") if server else None


def _page(arena: Arena) -> tuple[str, ...] | None:
    if not find("nginx"):
        return None
    text = arena.directory / "page.conf"
    text.write_text(PAGE)
    made = f"{arena.directory}/page-{{port}}.conf"
    return ("sh", "-c", f"sed s/PORT/{{port}}/g {text} > {made} && exec nginx -p {arena.directory} -c {made}")


def _postgres_programs() -> str | None:
    """The directory with postgres, initdb and pgbench: Debian's newest, else those of the pgserver package."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    spec = importlib.util.find_spec("pgserver")
    packaged = [Path(each) / "pginstall" / "bin" for each in (spec.submodule_search_locations or () if spec else ())]
    for programs in (*reversed(installed), *packaged):
        if all((programs / name).exists() for name in ("postgres", "initdb", "pgbench")):
            return str(programs)
    return None


def _postgres(_arena: Arena) -> tuple[str, ...] | None:
    programs = _postgres_programs()
    return (sys.executable, str(HERE / "tools" / "postgres.py"), programs, "{port}") if programs else None


def _pgbench(*options: str) -> Callable[[int], tuple[str, ...] | None]:
    def command(port: int) -> tuple[str, ...] | None:
        programs = _postgres_programs()
        told = ("-h", "127.0.0.1", "-p", str(port), "-U", "postgres", "-n", "-T", str(SECONDS), *options)
        script = ("-f", str(HERE / "tools" / "select.sql"), "postgres")
        return (f"{programs}/pgbench", *told, *script) if programs else None

    return command


def _server(name: str, *arguments: str) -> Callable[[Arena], tuple[str, ...] | None]:
    return lambda _arena: (program, *arguments) if (program := find(name)) else None


KNOWN: Final = (
    Known(
        "wrk (an nginx page, 50 connections)",
        "page",
        _page,
        _tool("wrk", "-t1", "-c50", f"-d{SECONDS}s", "http://127.0.0.1:PORT/"),
        _number(r"Requests/sec:\s+([\d.]+)"),
        "requests/s",
    ),
    Known(
        "redis-benchmark (GET, 50 connections)",
        "redis",
        _redis,
        _tool("redis-benchmark", "-p", "PORT", "-c", "50", "-n", str(REQUESTS), "-t", "get", "--csv"),
        _number(r'"GET","([\d.]+)"'),
        "requests/s",
    ),
    Known(
        "pgbench (SELECT 1, 10 clients)",
        "postgres",
        _postgres,
        _pgbench("-c", "10"),
        _number(r"tps = ([\d.]+) \(without"),
        "transactions/s",
    ),
    Known(
        "pgbench -C (SELECT 1, a connection each, 4 clients)",
        "postgres",
        _postgres,
        _pgbench("-C", "-c", "4"),
        _number(r"tps = ([\d.]+) \(including"),
        "transactions/s",
    ),
    Known(
        "iperf3 (1 stream)",
        "iperf3",
        _server("iperf3", "-s", "-B", "127.0.0.1", "-p", "{port}"),
        _tool("iperf3", "-c", "127.0.0.1", "-p", "PORT", "-t", str(SECONDS), "-J"),
        _iperf,
        "GB/s",
    ),
    Known(
        "sockperf (ping-pong, half of the median round trip)",
        "sockperf",
        _server("sockperf", "server", "--tcp", "-i", "127.0.0.1", "-p", "{port}"),
        _tool("sockperf", "ping-pong", "--tcp", "-i", "127.0.0.1", "-p", "PORT", "-t", str(SECONDS)),
        _number(r"percentile 50\.000\s*=\s*([\d.]+)"),
        "µs",
        less_is_better=True,
    ),
)
