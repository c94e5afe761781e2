"""The port of a daemon that is gone is anybody's: no client of the fixed address may reach who takes it."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e_support import Turnout, ask, line_daemon
from support import eventually
from turnout.demo.load import Load, line_exchange
from turnout.system.net.sockets import listening_at
from turnout.testing import free_port

CLOSING = [sys.executable, str(Path(__file__).parents[1] / "support" / "closing_daemon.py"), "{port}"]


class Taker:
    """Another program, which takes a port as soon as it is free, and answers who comes. Owns a thread."""

    def __init__(self, port: int) -> None:
        self.met = 0
        self.heard = b""
        self.listens = threading.Event()
        self._port = port
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(0.0005):
            with contextlib.suppress(OSError), socket.socket() as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(("127.0.0.1", self._port))
                sock.listen(64)
                sock.settimeout(0.05)
                self.listens.set()
                while not self._stop.is_set():
                    with contextlib.suppress(TimeoutError):
                        self._answer(sock.accept()[0])

    def _answer(self, client: socket.socket) -> None:
        self.met += 1
        with contextlib.suppress(OSError), client:
            client.settimeout(0.2)
            self.heard += client.recv(1000)
            client.sendall(b"stranger " + self.heard)

    def met_so_far(self) -> int:
        """How many it met, once it has answered a client of our own: whoever came before that is counted."""
        with socket.create_connection(("127.0.0.1", self._port), 20) as sock:
            sock.sendall(b"ours")
            assert sock.recv(100).startswith(b"stranger")
        return self.met

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(20)


@contextlib.contextmanager
def taken(port: int) -> Iterator[Taker]:
    """Somebody waits for that port all the while."""
    found = Taker(port)
    try:
        yield found
    finally:
        found.stop()


@contextlib.contextmanager
def load(turnout: Turnout) -> Iterator[Load]:
    found = Load(turnout.address, line_exchange, clients=4)
    found.start()
    try:
        eventually(lambda: found.made > 20)
        yield found
    finally:
        found.stop()


@pytest.mark.parametrize(
    ("plane", "also"), [("relay", "alone"), ("stream", "alone"), ("relay", "with its router")], ids="-".join
)
def test_no_client_reaches_who_takes_the_port_of_a_daemon_that_died(turnout: Turnout, plane: str, also: str) -> None:
    """A router that follows a dead one has the process from the registry."""
    turnout.configure(line_daemon("--version", "v1", "--start-delay", "1"), observe="0s")
    turnout.tune(plane=f'"{plane}"')
    turnout.run("up")
    first = turnout.active()
    with taken(first["port"]) as taker, load(turnout) as clients:
        turnout.kill(first["pid"])
        assert taker.listens.wait(20)
        if also != "alone":
            turnout.kill(turnout.router_pid())
        eventually(lambda: turnout.snapshot().deployment.active_boot_id not in {"", first["boot_id"]})
        before = clients.made
        eventually(lambda: clients.made > before + 20)
    assert taker.heard == b""
    assert set(clients.answered) == {"v1"}


def test_no_client_reaches_who_takes_the_port_of_a_candidate_that_died_in_its_window(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"), observe="60s", interval="500ms")
    turnout.run("up")
    turnout.configure(line_daemon("--version", "v2"), version="v2", observe="60s", interval="500ms")
    turnout.run("deploy", "--detach")
    candidate = turnout.active()
    with taken(candidate["port"]) as taker, load(turnout) as clients:
        turnout.kill(candidate["pid"])
        assert taker.listens.wait(20)
        eventually(lambda: clients.answered["v1"] > 20)
    assert taker.heard == b""
    assert set(clients.answered) == {"v1", "v2"}


def test_clients_of_a_living_daemon_that_lost_its_listener_are_held_until_it_has_it_again(turnout: Turnout) -> None:
    """What comes before the next check is not covered: the daemon lives, so its port is still taken for its own."""
    turnout.configure(CLOSING, observe="0s")
    turnout.run("up")
    daemon = turnout.active()
    with taken(daemon["port"]) as taker:
        turnout.kill(daemon["pid"], signal.SIGUSR1)
        assert taker.listens.wait(20)
        eventually(lambda: "clients are held: port" in turnout.home.router_log.read_text())
        met = taker.met_so_far()
        with contextlib.ExitStack() as stack:
            socks = [stack.enter_context(socket.create_connection(turnout.address, 20)) for _ in range(10)]
            eventually(lambda: turnout.status()["counters"]["held_now"] == len(socks))
            assert taker.met == met
            taker.stop()
            turnout.kill(daemon["pid"], signal.SIGUSR2)
            assert {line_exchange(sock) for sock in socks} == {"v1"}
    assert turnout.active()["pid"] == daemon["pid"]


def test_clients_that_a_leaving_router_holds_for_a_listener_are_served_once_it_is_back(turnout: Turnout) -> None:
    """The successor does the health checks: the router that leaves has to look at the listener by itself."""
    turnout.configure(CLOSING, observe="0s")
    turnout.run("up")
    daemon = turnout.active()
    with taken(daemon["port"]) as taker:
        turnout.kill(daemon["pid"], signal.SIGUSR1)
        assert taker.listens.wait(20)
        eventually(lambda: "clients are held: port" in turnout.home.router_log.read_text())
        with contextlib.ExitStack() as stack:
            socks = [stack.enter_context(socket.create_connection(turnout.address, 20)) for _ in range(3)]
            eventually(lambda: turnout.status()["counters"]["held_now"] == len(socks))
            turnout.run("router", "--replace")
            taker.stop()
            turnout.kill(daemon["pid"], signal.SIGUSR2)
            assert {line_exchange(sock) for sock in socks} == {"v1"}


@pytest.mark.parametrize("died", ["died", "was killed while the router was"])
def test_the_port_of_an_attached_daemon_that_ended_is_not_trusted(turnout: Turnout, died: str) -> None:
    """Nothing is on its way then, as far as turnout knows, so the client is reset after a moment."""
    port = free_port()
    command = [part.replace("{port}", str(port)) for part in line_daemon("--version", "v1")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as daemon:
        try:
            eventually(lambda: listening_at("127.0.0.1", port))
            turnout.run("attach", f"127.0.0.1:{port}", "--listen", f"127.0.0.1:{turnout.port}", "--observe", "0s")
            assert ask(turnout.address) == "v1"
        finally:
            daemon.kill()
    if died != "died":
        turnout.kill(turnout.router_pid())
    with taken(port) as taker:
        assert taker.listens.wait(20)
        for _ in range(5):
            with contextlib.suppress(ConnectionError), socket.create_connection(turnout.address, 20) as sock:
                sock.sendall(b"hello\n")
                assert not sock.recv(100)
        assert taker.heard == b""
