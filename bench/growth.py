"""How cost grows: with idle connections, with services, with daemons that drain, with the size of the registry."""

from __future__ import annotations

import contextlib
import json
import socket
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from bench import switching
from bench.arena import Arena, Way
from bench.cases import EXCHANGES
from bench.contenders import named
from bench.measure import Figures, column, placed, run_once
from bench.usage import cpu_us, memory_bytes
from turnout.core.model import Daemon, Snapshot
from turnout.state.home import Home
from turnout.state.registry.encoder import dumps
from turnout.state.registry.file import RegistryFile
from turnout.testing import free_port

ONE = EXCHANGES[0]
ROUNDS = 5
SETTLE_S = 1.0
SWITCHES = 10


def exchange(arena: Arena, way: Way, seconds: float) -> Figures:
    """One busy connection, all on one core: median of its latency and of its CPU time."""
    with placed(arena, [way], ONE.placement):
        found = [run_once(arena, way, ONE, seconds) for _ in range(ROUNDS)]
    return {name: statistics.median(column(found, name)) for name in ("p50_us", "p99_us", "cpu_us")}


def at_rest(way: Way, seconds: float) -> Figures:
    """What the proxy uses while nothing happens."""
    time.sleep(SETTLE_S)
    before, began = cpu_us(way.pids), time.monotonic()
    time.sleep(seconds)
    share = (cpu_us(way.pids) - before) / 1e6 / (time.monotonic() - began)
    return {"cpu_share": share, "memory": float(memory_bytes(way.pids))}


def connections(arena: Arena, name: str, count: int, seconds: float) -> Figures:
    """One busy connection beside ``count`` idle ones."""
    way = named(name).start(arena, ("echo",))
    with arena.idle(way.ports["echo"], count) if count else contextlib.nullcontext():
        found = exchange(arena, way, seconds)
    arena.stop(way)
    return found


def services(arena: Arena, plane: str, count: int, seconds: float, idle_s: float) -> Figures:
    """One busy connection in a router with ``count`` services, and that router at rest."""
    home = arena.directory / f"many-{free_port()}"
    ports = [free_port() for _ in range(count)]
    config = home.with_suffix(".toml")
    config.write_text(
        "\n".join(
            f'[service.s{number}]\nlisten = "127.0.0.1:{port}"\nplane = "{plane}"\nobserve = "1s"\n'
            f'command = ["{arena.serve}", "{{port}}", "echo"]\n'
            for number, port in enumerate(ports)
        )
    )
    for number in range(count):
        arena.verb(home, "up", "-q", "-c", str(config), "--service", f"s{number}")
    way = Way(plane, {"echo": ports[0]}, (router_pid(arena, home),))
    found = at_rest(way, idle_s) | exchange(arena, way, seconds)
    arena.end_home(home)
    return found


def draining(arena: Arena, plane: str, count: int, seconds: float, idle_s: float) -> Figures:
    """One busy connection while ``count`` old daemons drain, each kept by a connection, and that router at rest."""
    home, port = arena.directory / f"drains-{free_port()}", free_port()
    config = home.with_suffix(".toml")
    config.write_text(
        f'[service.echo]\nlisten = "127.0.0.1:{port}"\nplane = "{plane}"\nobserve = "10ms"\n'
        f'command = ["{arena.serve}", "{{port}}", "echo"]\n'
        f'drain = {{ grace = "10m", deadline = "none", max_draining = {count + 1} }}\n'
    )
    kept: list[socket.socket] = []
    arena.verb(home, "up", "-q", "-c", str(config), "--service", "echo")
    try:
        for _ in range(count):
            sock = socket.create_connection(("127.0.0.1", port), 10)
            kept.append(sock)
            sock.sendall(b"x")
            sock.recv(1)  # it has its daemon now, and keeps it
            arena.verb(home, "deploy", "-q", "-c", str(config), "--service", "echo")
        way = Way(plane, {"echo": port}, (router_pid(arena, home),))
        found = at_rest(way, idle_s) | exchange(arena, way, seconds)
    finally:
        for sock in kept:
            sock.close()
    arena.end_home(home)
    return found


def registry(arena: Arena, plane: str, count: int, idle_s: float) -> Figures:
    """From rename to the first new connection in a registry of ``count`` daemons, and the router at rest."""
    home = arena.directory / f"registry-{free_port()}"
    switcher = switching.start_registry(arena, plane, home=home)
    file = RegistryFile(Home(home).service("name").registry)
    fill(file, count)
    way = Way(plane, {}, (router_pid(arena, home),))
    found = at_rest(way, idle_s)
    told = switching.measure(arena, switcher, SWITCHES)
    arena.end_home(home)
    return found | {
        "first_ms": statistics.median(told["first_ms"]),
        "entries": float(len(file.read().snapshot.daemons)),
    }


def fill(file: RegistryFile, count: int) -> None:
    """Have other programs' daemons in the file, up to ``count`` in all."""
    snapshot = file.read().snapshot
    others = {
        f"other-{n}": Daemon(f"other-{n}", port=1024 + n, version="1.2.3") for n in range(count - len(snapshot.daemons))
    }
    temp = file.path.with_name("theirs.tmp")
    temp.write_bytes(dumps(Snapshot({**snapshot.daemons, **others}, snapshot.workspaces, snapshot.deployment)))
    temp.replace(file.path)


def router_pid(arena: Arena, home: Path) -> int:
    services: Sequence[dict[str, dict[str, int]]] = json.loads(arena.verb(home, "status", "--json"))["services"]
    return services[0]["router"]["pid"]
