"""Daemons as they are, with the port of their own configuration: side by side, behind the fixed address."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from e2e_support import Turnout, ask, line_daemon, under_load
from support import eventually, report, scaled
from turnout.demo.load import Load, line_exchange
from turnout.testing import free_port

SUPPORT = Path(__file__).parents[1] / "support"
# binds what it is told to, in the order it is told
BINDS = """
import socket, sys, threading
kept = []
def serve(sock):
    while True:
        client = sock.accept()[0]
        client.recv(100)
        client.sendall(f"{sys.argv[1]} 1\\n".encode())
        client.close()
for word in sys.argv[2:]:
    host, _, port = word.rpartition(":")
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    if host == "::":
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind((host, int(port)))
    sock.listen()
    threading.Thread(target=serve, args=(sock,)).start()
"""


def own_port(version: str, port: int) -> list[str]:
    """The bundled daemon, with a port that is hard-coded as far as turnout knows."""
    return [word.replace("{port}", str(port)) for word in line_daemon("--version", version)]


def binds(version: str, *addresses: str) -> list[str]:
    return [sys.executable, "-c", BINDS, version, *addresses]


def up(turnout: Turnout, command: Sequence[str], *flags: str, code: int = 0) -> str:
    listen = f"127.0.0.1:{turnout.port}"
    done = turnout.run(
        "up", "--listen", listen, "--observe", "300ms", "--activation", "on", *flags, "--", *command, code=code
    )
    return done.stderr


def test_releases_with_one_hard_coded_port_run_side_by_side_and_nobody_fails(turnout: Turnout) -> None:
    own = free_port()
    said = up(turnout, own_port("v1", own))
    assert f"the daemon's own port {own} is 127.0.0.1:" in said
    assert f"for its own port {own}" in turnout.run("status", "-v").stdout
    assert turnout.active()["own_port"] == own
    with under_load(turnout) as load:
        turnout.run("deploy", "--", *own_port("v2", own))
        eventually(lambda: load.answered["v2"] > 0)
        turnout.run("deploy", "--", *own_port("v3", own))
        eventually(lambda: load.answered["v3"] > 0)
    assert set(load.answered) >= {"v1", "v3"}


def test_a_dry_run_says_that_the_daemons_port_is_not_known_before_it_binds(turnout: Turnout) -> None:
    command = own_port("v1", free_port())
    said = turnout.run("up", "--listen", f"127.0.0.1:{turnout.port}", "--activation", "on", "--dry-run", "--", *command)
    assert "give it the fixed address for the port that it binds, which is not known before" in said.stdout
    named = ["--activation", "on", "--port", "7001", "--dry-run", "--", *command]
    said = turnout.run("up", "--listen", f"127.0.0.1:{turnout.port}", *named)
    assert "give it the fixed address for its port 7001" in said.stdout


def test_no_byte_of_a_client_passes_the_router(turnout: Turnout) -> None:
    up(turnout, own_port("v1", free_port()))
    for _ in range(20):
        assert ask(turnout.address) == "v1"
    status = turnout.status()
    assert (status["router"]["plane"], status["counters"]["accepted"]) == ("reuseport", 0)


@pytest.mark.parametrize("host", ["127.0.0.1", "::"])
def test_behind_a_relay_a_hard_coded_port_does_not_matter_either(turnout: Turnout, host: str) -> None:
    own = free_port()
    up(turnout, binds("v1", f"{host}:{own}"), "--plane", "relay")
    turnout.run("deploy", "--", *binds("v2", f"{host}:{own}"))
    assert ask(turnout.address) == "v2"
    assert turnout.status()["counters"]["accepted"] > 0


def test_the_fixed_address_may_have_the_daemons_own_port(turnout: Turnout) -> None:
    """The best drop-in: clients keep the port that they know."""
    up(turnout, own_port("v1", turnout.port))
    assert ask(turnout.address) == "v1"
    turnout.run("deploy", "--", *own_port("v2", turnout.port))
    assert ask(turnout.address) == "v2"


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::", "::1", "::ffff:127.0.0.1"])
def test_a_daemon_of_either_family_is_served(turnout: Turnout, host: str) -> None:
    own = free_port()
    up(turnout, binds("v1", f"{host}:{own}"))
    assert ask(turnout.address) == "v1"
    turnout.run("deploy", "--", *binds("v2", f"{host}:{own}"))
    assert ask(turnout.address) == "v2"


def test_a_daemon_that_binds_two_ports_is_asked_for_the_one_of_its_clients(turnout: Turnout) -> None:
    peer, own = free_port(), free_port()
    command = binds("v1", f"127.0.0.1:{peer}", f"127.0.0.1:{own}")
    said = up(turnout, command, code=1)
    assert f"the daemon binds ports {', '.join(map(str, sorted((peer, own))))}" in said
    assert "--port" in said
    up(turnout, command, "--port", str(own))
    assert ask(turnout.address) == "v1"
    turnout.run("deploy", "--", *binds("v2", f"127.0.0.1:{peer}", f"127.0.0.1:{own}"))
    assert ask(turnout.address) == "v2", "the port of its peers was another one for the second daemon"


def test_a_restarted_daemon_and_a_rollback_keep_their_own_port(turnout: Turnout) -> None:
    own = free_port()
    up(turnout, own_port("v1", own))
    turnout.kill(turnout.active()["pid"])
    assert ask(turnout.address) == "v1"
    turnout.run("deploy", "--", *own_port("v2", own))
    turnout.run("rollback")
    assert ask(turnout.address) == "v1"


def test_a_daemon_that_reads_its_port_is_served_as_before(turnout: Turnout) -> None:
    up(turnout, line_daemon("--version", "v1"))
    assert ask(turnout.address) == "v1"


def test_a_bind_waits_while_there_is_no_keeper_and_the_next_one_answers_it(turnout: Turnout) -> None:
    own, later = free_port(), free_port()
    code = BINDS.replace("for word in", "for number, word in").replace("sys.argv[2:]:", "enumerate(sys.argv[2:]):")
    go = turnout.home.root.parent / "go"
    code = code.replace(
        "    host, _", f'    while number and not __import__("os").path.exists({str(go)!r}): pass\n    host, _'
    )
    up(turnout, [sys.executable, "-c", code, "v1", f"127.0.0.1:{own}", f"127.0.0.1:{later}"], "--port", str(own))
    turnout.kill(turnout.keeper_pid())
    go.touch()
    with pytest.raises(ConnectionRefusedError):
        ask(("127.0.0.1", later))
    turnout.run("up")
    eventually(lambda: answers(later), why="the bind that waited for a keeper is not answered")
    assert ask(turnout.address) == "v1"


def answers(port: int) -> bool:
    try:
        return ask(("127.0.0.1", port)) == "v1"
    except ConnectionRefusedError:
        return False


def test_a_hostile_daemon_moves_nobody_elses_clients(turnout: Turnout, tmp_path: Path) -> None:
    """It may lose a file of its own (:func:`turnout.activation.exchange.is_still`), and delays others a little."""
    go, own, rounds = tmp_path / "go", free_port(), scaled(8, 400)
    hostile = [sys.executable, "-P", str(SUPPORT / "hostile_daemon.py"), "hostile", str(own), str(go), str(rounds)]
    good = ["--service", "good", "--observe", "100ms", "--activation", "on"]
    at = free_port()
    up(turnout, hostile)
    turnout.run("up", "--listen", f"127.0.0.1:{at}", *good, "--", *own_port("good", free_port()))
    load = Load(("127.0.0.1", at), line_exchange, clients=2)
    load.start()
    try:
        idle_s = took(turnout, good)
        go.touch()
        busy_s = [took(turnout, good) for _ in range(2)]
        eventually(go.with_suffix(".lost").exists, timeout_s=300, why="the attack ends")
    finally:
        load.stop()
    lost = len(go.with_suffix(".lost").read_text().splitlines())
    beside = f"{max(busy_s) / idle_s:.1f} x"
    report("hostile daemon", refresh_beside_it=beside, answered=load.made, failed=load.failed, lost_its_own=lost)
    assert load.errors == {}
    assert set(load.answered) == {"good"}
    turnout.run("refresh")
    assert ask(turnout.address) == "hostile"


def took(turnout: Turnout, service: Sequence[str]) -> float:
    began = time.monotonic()
    turnout.run("refresh", *service[:2])
    return time.monotonic() - began
