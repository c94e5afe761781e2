"""Metrics of a running router: exactly what clients counted, wherever the address is, and never in the router's way."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from e2e_support import Turnout, ask, line_daemon
from metrics_support import Key, Scrape, scrape
from support import eventually, report, scaled
from turnout.control.router_client import RouterClient
from turnout.errors import NotRunningError
from turnout.testing import free_port

LOAD_S = scaled(6, 600)


@pytest.fixture
def port() -> int:
    return free_port()


def served(turnout: Turnout, port: int) -> Scrape:
    """A scrape, once the router follows the home."""
    where = f"127.0.0.1:{port}"
    eventually(lambda: _metrics(turnout)["listen"] == where, why="it is not served", timeout_s=30)
    return scrape(port)


def _metrics(turnout: Turnout) -> dict[str, str | None]:
    """What the router says of its metrics; while one follows another nobody may answer."""
    try:
        found: dict[str, str | None] = RouterClient(turnout.home).status(timeout_s=20)["metrics"]
    except NotRunningError:
        return {"listen": None, "error": None}
    return found


class Client(threading.Thread):
    """Connects, exchanges and closes over and over, and counts the bytes of each as it sees them."""

    def __init__(self, address: tuple[str, int], over: threading.Event) -> None:
        super().__init__(daemon=True)
        self._address = address
        self._over = over
        self.connections = 0
        self.sent = 0
        self.received = 0
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            while not self._over.wait(0.01):
                self._exchange()
        except OSError as error:
            self.error = error

    def _exchange(self) -> None:
        line = b"x" * (1 + self.connections % 5000) + b"\n"
        with socket.create_connection(self._address, 20) as sock:
            self.connections += 1
            sock.sendall(line)
            self.sent += len(line)
            while not (part := sock.recv(65536)).endswith(b"\n"):
                if not part:
                    raise EOFError(f"after {self.received} bytes")
                self.received += len(part)
            self.received += len(part)


def test_after_a_load_the_counters_are_what_the_clients_counted(turnout: Turnout, port: int) -> None:
    """Over two switches, too; and no counter ever goes back meanwhile."""
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up", "--metrics", f"127.0.0.1:{port}")
    before = served(turnout, port)
    over = threading.Event()
    clients = [Client(turnout.address, over) for _ in range(4)]
    until = time.monotonic() + LOAD_S
    try:
        for client in clients:
            client.start()
        for version in ("v2", "v3"):
            turnout.configure(line_daemon("--version", version), version=version)
            turnout.run("deploy", "--detach", "--supersede")
        last = before
        while time.monotonic() < until:
            now = scrape(port)
            assert not [key for key in _counters(last) if now.samples[key] < last.samples[key]]
            last = now
            over.wait(0.5)
    finally:
        over.set()
        for client in clients:
            client.join(60)
    assert [client.error for client in clients] == [None] * len(clients)
    connections = sum(client.connections for client in clients)
    assert connections > 100

    def counted() -> Scrape | None:
        found = scrape(port)
        return found if found.value("turnout_connections_closed_total") == connections else None

    found = eventually(counted, why="connections are still open")
    assert found is not None
    assert found.value("turnout_connections_accepted_total") == connections
    assert found.value("turnout_received_bytes_total") == sum(client.sent for client in clients)
    assert found.value("turnout_sent_bytes_total") == sum(client.received for client in clients)
    assert found.value("turnout_connect_duration_seconds_count") == connections
    assert found.value("turnout_connections_open") == 0
    switches = "turnout_switches_total"
    assert (found.value(switches) or 0) - (before.value(switches) or 0) == 2
    assert found.value("turnout_switch_duration_seconds_count") == found.value(switches)
    report(
        "metrics after a load",
        connections=connections,
        seconds=LOAD_S,
        received=sum(client.received for client in clients),
    )


def _counters(told: Scrape) -> list[Key]:
    """What may only rise, of the service as a whole."""
    return [
        key
        for key in told.samples
        if key[0].startswith("turnout_") and key[0].endswith(("_total", "_count")) and "_daemon_" not in key[0]
    ]


def test_a_taken_address_is_one_error_and_nothing_was_started(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        done = turnout.run("up", "--metrics", taken, code=1)
    assert f"the metrics address {taken} is in use by pid" in done.stderr
    assert "hint: name another with --metrics" in done.stderr
    assert not turnout.home.keeper_sock.exists()


def test_a_router_whose_metrics_address_is_taken_serves_its_clients_and_doctor_names_it(
    turnout: Turnout, port: int
) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up", "--metrics", f"127.0.0.1:{port}")
    served(turnout, port)
    turnout.run("down")
    with socket.create_server(("127.0.0.1", port)):
        done = turnout.run("up")
        assert ask(turnout.address) == "v1", done.stderr
        eventually(lambda: _metrics(turnout)["error"], why="nobody says that it is taken")
        told = turnout.run("doctor", code=1).stdout
        assert f"the metrics address 127.0.0.1:{port} is in use by pid" in told
        mend = next(line for line in told.splitlines() if "turnout up --metrics" in line)
        turnout.run(*mend.split("turnout ", 1)[1].split()[:3])
    assert ask(turnout.address) == "v1"
    eventually(lambda: not _metrics(turnout)["error"])
    assert "metrics address" not in turnout.run("doctor", code=None).stdout


def test_a_replaced_router_hands_its_metrics_address_on(turnout: Turnout, port: int) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up", "--metrics", f"127.0.0.1:{port}")
    served(turnout, port)
    with socket.create_connection(turnout.address, 20) as kept:
        kept.sendall(b"before\n")
        assert kept.recv(100)
        turnout.run("router", "--replace")
        served(turnout, port)
        eventually(lambda: scrape(port).value("turnout_routers_leaving") == 1)
        found = scrape(port)
        assert found.value("turnout_daemon_connections_open") == 1, "the leaving router's"
        assert found.value("turnout_connections_open") == 0
    eventually(lambda: scrape(port).value("turnout_routers_leaving") == 0)


def test_the_file_turns_them_on_moves_them_and_turns_them_off(turnout: Turnout, port: int) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    path = turnout.home.root.parent / "turnout.toml"
    plain = path.read_text()
    path.write_text(f'{plain}\n[metrics]\nlisten = "127.0.0.1:{port}"\n')
    assert f"would serve metrics on http://127.0.0.1:{port}/metrics" in turnout.run("up", "--dry-run").stdout
    turnout.run("up")
    assert served(turnout, port).value("turnout_deployment_generation") == 1
    path.write_text(plain)
    turnout.run("up")
    eventually(lambda: turnout.router_pid() and _metrics(turnout)["listen"] is None)
    with pytest.raises(ConnectionRefusedError):
        scrape(port)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ('listen = "0.0.0.0:9477"', "beyond loopback"),
        ('listen = "nowhere"', "is no address"),
        ('lisen = "127.0.0.1:1"', "'lisen'"),
        ("expose = true", "listen"),
    ],
)
def test_a_bad_metrics_table_is_one_line_with_a_hint(turnout: Turnout, lines: str, says: str) -> None:
    turnout.configure(line_daemon())
    path = turnout.home.root.parent / "turnout.toml"
    path.write_text(f"{path.read_text()}\n[metrics]\n{lines}\n")
    done = turnout.run("up", code=2)
    error, hint = done.stderr.splitlines()
    assert says in error
    assert "turnout.toml: " in error
    assert "metrics" in error
    assert hint.startswith("hint: ")


def test_without_the_extra_up_says_what_to_install(turnout: Turnout, port: int) -> None:
    """An installation without it: the package is hidden from the interpreter."""
    turnout.configure(line_daemon())
    hidden = turnout.home.root.parent / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text("import sys\nsys.modules['prometheus_client'] = None\n")
    env = turnout.env | {"PYTHONPATH": str(hidden)}
    done = turnout.run("up", "--metrics", f"127.0.0.1:{port}", code=2, env=env)
    assert "prometheus-client" in done.stderr
    assert "hint: pip install 'turnout[metrics]'" in done.stderr
    assert not turnout.home.keeper_sock.exists()
