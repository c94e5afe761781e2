"""Settings that change while connections exist: what is taken over, what is refused, and that nobody notices."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

import pytest

from e2e_support import Turnout, ask, line_daemon
from support import eventually
from turnout.system.net.ports import choose_port

SUPPORT = Path(__file__).parents[1] / "support"


def configure(turnout: Turnout, command: list[str], *lines: str, probe: str = "alive") -> None:
    """As Turnout.configure, with further lines of the service's table."""
    turnout.configure(command, probe=probe)
    path = turnout.home.root.parent / "turnout.toml"
    path.write_text("\n".join([path.read_text(), *lines, ""]))


def test_listen_addresses_come_and_go_while_connections_go_on(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    with choose_port(avoid={turnout.port}) as reserved:
        first, second = f"127.0.0.1:{turnout.port}", ("127.0.0.1", reserved.port)
    turnout.run("up")
    with socket.create_connection(turnout.address, 20) as sock, sock.makefile("rb") as lines:
        turnout.run("up", "--listen", f"{first},127.0.0.1:{second[1]}")
        eventually(lambda: ask(second) == "v1")
        assert ask(turnout.address) == "v1"
        assert turnout.status()["listen"] == [first, f"127.0.0.1:{second[1]}"]
        turnout.run("up", "--listen", f"127.0.0.1:{second[1]}")
        eventually(lambda: not turnout.listening())
        assert ask(second) == "v1"
        sock.sendall(b"still here\n")
        assert lines.readline().startswith(b"v1"), "its connection came by an address that is gone, and goes on"
    turnout.kill(turnout.router_pid())
    eventually(lambda: ask(second) == "v1")
    assert not turnout.listening()


def test_an_address_that_is_taken_leaves_everything_as_it_was(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    before = turnout.home.service("default").settings.read_bytes()
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        done = turnout.run("up", "--listen", f"127.0.0.1:{turnout.port},{taken}", code=1)
    assert taken in done.stderr
    assert str(os.getpid()) in done.stderr, "it names the holder"
    assert turnout.home.service("default").settings.read_bytes() == before
    assert ask(turnout.address) == "v1"


def test_another_plane_comes_with_another_router_and_until_then_status_says_which_one_runs(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up", "--plane", "stream")
    assert turnout.status()["router"]["plane"] == "stream"
    assert ask(turnout.address) == "v1"
    assert "router --replace" in turnout.run("up", "--plane", "relay").stdout
    assert turnout.status()["router"]["plane"] == "stream"
    turnout.run("router", "--replace")
    assert turnout.status()["router"]["plane"] == "relay"
    assert ask(turnout.address) == "v1"


def test_an_allow_list_is_in_force_with_the_next_up_and_counted_in_status(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    daemon = turnout.active()["boot_id"]
    configure(turnout, line_daemon("--version", "v1"), 'allow = ["127.77.0.0/16"]')
    turnout.run("up")

    def denied() -> bool:
        try:
            ask(turnout.address)
        except OSError:
            return True
        return False

    eventually(denied)
    status = turnout.status()
    assert status["counters"]["denied"] > 0
    assert "denied" in turnout.run("status", "-v").stdout
    assert turnout.active()["boot_id"] == daemon, "the daemon was not touched"
    eventually(lambda: "allow list" in turnout.home.router_log.read_text())


@pytest.mark.parametrize("plane", ["relay", "stream"])
def test_a_daemon_that_wants_a_proxy_header_is_probed_and_served_with_one(turnout: Turnout, plane: str) -> None:
    command = [sys.executable, str(SUPPORT / "proxy_daemon.py"), "{port}"]
    configure(turnout, command, 'proxy_protocol = "v2"', f'plane = "{plane}"', f'env = {{ PYTHONPATH = "{SUPPORT}" }}')
    path = turnout.home.root.parent / "turnout.toml"
    text = path.read_text().replace('probe = "alive"', 'probe = "expect", send = "hello\\n", match = "local"')
    path.write_text(text)
    turnout.run("up")
    with socket.create_connection(turnout.address, 20) as sock, sock.makefile("r") as lines:
        sock.sendall(b"who am I?\n")
        host, port = sock.getsockname()
        assert lines.readline() == f"{host}:{port}\n"


def test_exposure_is_refused_with_a_hint_before_anything_is_started(turnout: Turnout) -> None:
    configure(turnout, line_daemon("--version", "v1"))
    done = turnout.run("up", "--listen", f"0.0.0.0:{turnout.port}", code=2)
    assert "beyond loopback" in done.stderr
    assert "expose" in done.stderr
    configure(turnout, line_daemon("--version", "v1"), 'expose = "clients-look-local"')
    turnout.run("up", "--listen", f"0.0.0.0:{turnout.port}")
    assert ask(turnout.address) == "v1"
    status = json.loads(turnout.run("status", "--json").stdout)
    assert status["services"][0]["listen"] == [f"0.0.0.0:{turnout.port}"]
    done = turnout.run("up", code=6)
    assert "cannot be bound beside" in done.stderr
    assert ask(turnout.address) == "v1"
