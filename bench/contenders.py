"""Who takes part: one entry each, with its settings in the open. Every one has a single thread for the bytes."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.arena import HERE, KINDS, Arena, BenchError, Way, wait_for
from turnout import __version__
from turnout.config.keys import KEYS
from turnout.errors import TurnoutError
from turnout.planes.direct import sk_lookup
from turnout.testing import free_port

REFERENCE: Final = "reference"  # what the guard measures against; it competes with nobody
PROXYD: Final = ("/lib/systemd/systemd-socket-proxyd", "/usr/lib/systemd/systemd-socket-proxyd")
Kinds = tuple[str, ...]
STREAM_MODULE: Final = Path("/usr/lib/nginx/modules/ngx_stream_module.so")


@dataclass(frozen=True)
class Contender:
    """One way to reach the daemon.

    Args:
        name: what the tables call it.
        start: brings it up in front of the arena's daemons of the given kinds.
        missing: why it cannot run here; empty where it can.
        version: what is running.
        settings: what a reader needs to judge whether it was treated well.
        process_each: a process for each connection: left out where thousands of those are opened.
    """

    name: str
    start: Callable[[Arena, Kinds], Way]
    missing: Callable[[], str]
    version: Callable[[], str]
    settings: str
    process_each: bool = False


def _first_line(*argv: str) -> str:
    with contextlib.suppress(OSError, IndexError):
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        return (done.stdout + done.stderr).splitlines()[0]
    return ""


def _all(*argv: str) -> str:
    with contextlib.suppress(OSError):
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr
    return ""


def needs(*names: str) -> Callable[[], str]:
    return lambda: ", ".join(f"{name} is not installed" for name in names if not find(name))


def find(name: str) -> str | None:
    """A program on the PATH, or beside the interpreter that runs this (a wheel's)."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


# -- turnout -----------------------------------------------------------------------------------------------------------


def start_turnout(arena: Arena, plane: str, kinds: Kinds = KINDS, *, env: dict[str, str] | None = None) -> Way:
    """The whole of it: keeper, router, checks every second; a service for each kind of daemon, all in one router."""
    home = arena.directory / f"home-{plane}-{free_port()}"
    ports = {kind: free_port() for kind in kinds}
    config = home.with_suffix(".toml")
    config.write_text(
        "\n".join(
            f'[service.{kind}]\nlisten = "127.0.0.1:{port}"\nplane = "{plane}"\nobserve = "1s"\n'
            f"command = {json.dumps(command(arena, plane, kind))}\n"
            for kind, port in ports.items()
        )
    )
    for kind in kinds:
        arena.verb(home, "up", "-q", "-c", str(config), "--service", kind, env=env)
    status = json.loads(arena.verb(home, "status", "--json"))
    return Way(plane, ports, (status["services"][0]["router"]["pid"],), home)


def command(arena: Arena, plane: str, kind: str) -> list[str]:
    """How that daemon is started; where it shares the fixed address, by a listener that it is given."""
    given = plane == "reuseport"
    return [word.replace("{port}", "fd={fd}") if given else word for word in arena.commands[kind]]


def plane_missing(plane: str) -> str:
    try:
        KEYS["plane"].read(plane)
    except TurnoutError as error:
        return f"turnout {__version__}: {error.message}"
    return sk_lookup.lacking() if plane == "sk_lookup" else ""


def turnout(plane: str, told: str) -> Contender:
    """A plane of turnout's: another one joins the benchmarks by one more call of this."""
    return Contender(
        plane,
        lambda arena, kinds: start_turnout(arena, plane, kinds),
        lambda: plane_missing(plane),
        lambda: f"turnout {__version__}, Python {sys.version.split()[0]}",
        f'`plane = "{plane}"`: {told}',
    )


# -- peers -------------------------------------------------------------------------------------------------------------


def _direct(arena: Arena, kinds: Kinds) -> Way:
    return Way("direct", {kind: arena.back[kind] for kind in kinds}, ())


def _reference(arena: Arena, kinds: Kinds) -> Way:
    return _one_each(
        arena,
        kinds,
        "reference",
        lambda port, back: (sys.executable, str(HERE / "tools" / "reference.py"), str(port), str(back)),
    )


def haproxy_config(ports: dict[str, int], back: dict[str, int], extra: str = "") -> str:
    text = (
        f"global\n    nbthread 1\n    maxconn 6400\n{extra}"
        "defaults\n    mode tcp\n    timeout connect 5s\n    timeout client 1h\n    timeout server 1h\n"
        "    option splice-auto\n"
    )
    for kind, port in ports.items():
        text += f"listen {kind}\n    bind 127.0.0.1:{port}\n    server one 127.0.0.1:{back[kind]}\n"
    return text


def _haproxy(arena: Arena, kinds: Kinds) -> Way:
    ports = {kind: free_port() for kind in kinds}
    config = arena.directory / f"haproxy-{free_port()}.cfg"
    config.write_text(haproxy_config(ports, arena.back))
    process = arena.start("haproxy", "-db", "-f", str(config))
    return _up(Way("haproxy", ports, (process.pid,)), process)


def nginx_config(ports: dict[str, int], back: dict[str, int], pid_file: Path) -> str:
    module = f"load_module {STREAM_MODULE};\n" if STREAM_MODULE.exists() else ""
    servers = "".join(
        f"    server {{ listen 127.0.0.1:{port} backlog=4096; proxy_pass 127.0.0.1:{back[kind]}; }}\n"
        for kind, port in ports.items()
    )
    return (
        f"{module}daemon off;\nworker_processes 1;\nworker_rlimit_nofile 20000;\npid {pid_file};\n"
        "error_log /dev/null crit;\nevents { worker_connections 16384; }\n"
        f"stream {{\n    tcp_nodelay on;\n    proxy_timeout 1h;\n{servers}}}\n"
    )


def nginx_missing() -> str:
    """Why nginx cannot take part; empty where it can."""
    if needs("nginx")():
        return needs("nginx")()
    if STREAM_MODULE.exists() or "--with-stream " in _all("nginx", "-V"):
        return ""
    return "its stream module is not installed"


def _nginx(arena: Arena, kinds: Kinds) -> Way:
    ports = {kind: free_port() for kind in kinds}
    config = arena.directory / f"nginx-{free_port()}.conf"
    config.write_text(nginx_config(ports, arena.back, config.with_suffix(".pid")))
    process = arena.start("nginx", "-p", str(arena.directory), "-c", str(config))
    return _up(Way("nginx", ports, (process.pid,)), process)


def _proxyd(arena: Arena, kinds: Kinds) -> Way:
    binary = next(path for path in PROXYD if Path(path).exists())
    launcher = str(HERE / "tools" / "with_listener.py")
    return _one_each(
        arena,
        kinds,
        "socket-proxyd",
        lambda port, back: (
            *(sys.executable, launcher, str(port)),
            *(binary, "--connections-max=8192", f"127.0.0.1:{back}"),
        ),
    )


def _socat(arena: Arena, kinds: Kinds) -> Way:
    return _one_each(
        arena,
        kinds,
        "socat",
        lambda port, back: (
            "socat",
            f"TCP-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr,nodelay,backlog=4096",
            f"TCP:127.0.0.1:{back},nodelay",
        ),
    )


def _one_each(arena: Arena, kinds: Kinds, name: str, command: Callable[[int, int], tuple[str, ...]]) -> Way:
    """For those that have one target for each process."""
    ports: dict[str, int] = {}
    pids: list[int] = []
    for kind in kinds:
        ports[kind] = free_port()
        process = arena.start(*command(ports[kind], arena.back[kind]))
        wait_for(ports[kind], process)
        pids.append(process.pid)
    return Way(name, ports, tuple(pids))


def _envoy(arena: Arena, kinds: Kinds) -> Way:
    ports = {kind: free_port() for kind in kinds}
    listeners, clusters = [], []
    for kind, port in ports.items():
        proxy = {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": kind,
            "cluster": kind,
        }
        filters = [{"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}]
        listeners.append({"address": _envoy_address(port), "filter_chains": [{"filters": filters}]})
        endpoint = {"endpoint": {"address": _envoy_address(arena.back[kind])}}
        assigned = {"cluster_name": kind, "endpoints": [{"lb_endpoints": [endpoint]}]}
        most = [{"max_connections": 20000, "max_pending_requests": 20000}]
        clusters.append(
            {"name": kind, "type": "STATIC", "load_assignment": assigned, "circuit_breakers": {"thresholds": most}}
        )
    config = arena.directory / f"envoy-{free_port()}.json"
    config.write_text(json.dumps({"static_resources": {"listeners": listeners, "clusters": clusters}}))
    binary = find("envoy")
    assert binary
    process = arena.start(
        binary, "-c", str(config), "--concurrency", "1", "--disable-hot-restart", "--log-level", "off"
    )
    return _up(Way("envoy", ports, (process.pid,)), process)


def _envoy_version() -> str:
    """What it says is ``PATH/envoy  version: COMMIT/VERSION/…``."""
    return _all(find("envoy") or "envoy", "--version").partition("version: ")[2].strip()


def _envoy_address(port: int) -> dict[str, dict[str, str | int]]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _up(way: Way, process: subprocess.Popen[bytes]) -> Way:
    for port in way.ports.values():
        wait_for(port, process)
    return way


CONTENDERS: Final = (
    Contender("direct", _direct, lambda: "", lambda: "", "no proxy: what the machine and the daemon do by themselves"),
    turnout("relay", "the default"),
    turnout("reuseport", "no proxy in the path; the daemon is given its listener"),
    turnout("sk_lookup", "no proxy in the path; the daemon knows nothing of it"),
    turnout("stream", "uvloop streams, for systems without splice"),
    Contender(
        "haproxy",
        _haproxy,
        needs("haproxy"),
        lambda: _first_line("haproxy", "-v").split(" - ")[0],
        "`nbthread 1`, `option splice-auto`, `maxconn 6400`",
    ),
    Contender(
        "nginx",
        _nginx,
        nginx_missing,
        lambda: _first_line("nginx", "-v"),
        "stream module, `worker_processes 1`, `tcp_nodelay on`, default buffers (16 KiB)",
    ),
    Contender(
        "socket-proxyd",
        _proxyd,
        lambda: "" if any(Path(path).exists() for path in PROXYD) else "systemd-socket-proxyd is not installed",
        lambda: _first_line(next(path for path in PROXYD if Path(path).exists()), "--version"),
        "`--connections-max=8192`",
    ),
    Contender(
        "socat",
        _socat,
        needs("socat"),
        lambda: next((line for line in _all("socat", "-V").splitlines() if "version" in line), "").partition(" on ")[0],
        "`TCP-LISTEN:…,fork,nodelay`: a process for each connection, default buffer (8 KiB)",
        process_each=True,
    ),
    Contender(
        "envoy",
        _envoy,
        needs("envoy"),
        _envoy_version,
        "`tcp_proxy`, `--concurrency 1`, default buffers",
    ),
    Contender(
        REFERENCE,
        _reference,
        lambda: "",
        lambda: f"Python {sys.version.split()[0]}",
        "bench/tools/reference.py, the least a relay in Python can do: what the guard measures against",
    ),
)


def named(name: str) -> Contender:
    """The entry with this name.

    Raises:
        BenchError: there is none.
    """
    for contender in CONTENDERS:
        if contender.name == name:
            return contender
    raise BenchError(f"no contender {name!r}; there are {', '.join(each.name for each in CONTENDERS)}")
