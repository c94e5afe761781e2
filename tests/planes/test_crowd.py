"""Many at once: idle, coming, vanishing, held; and one that moves as much as it can beside a thousand that do not."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import selectors
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bulk_daemon import BLOCK
from stage import RELAYS, Daemon, Stage
from support import eventually, report, scaled
from traffic import is_turned_away, open_fds, read_exactly, reset, resident_bytes
from turnout.planes.plane import Upstream

SUPPORT = Path(__file__).parents[1] / "support"


def as_many_as_fit(wanted: int, *, fds_each: int, others: int = 200) -> int:
    """So many connections, or as many as this process may have descriptors for, beside so many others."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return min(wanted, (hard - open_fds() - others) // fds_each)


class Echo:
    """Answers what it is sent with the boot's name in front, on any number of connections. Owns a thread."""

    def __init__(self, daemon: Daemon) -> None:
        self._name = daemon.target.boot_id.encode() + b" "
        self._listener = daemon.listener
        self._listener.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._stop = threading.Event()
        self.met = 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            for key, _ in self._selector.select(0.1):
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                if sock is self._listener:
                    self._accept()
                else:
                    self._answer(sock)

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while True:
                sock, _ = self._listener.accept()
                self.met += 1
                sock.setblocking(True)  # answers are short
                self._selector.register(sock, selectors.EVENT_READ)

    def _answer(self, sock: socket.socket) -> None:
        try:
            said = sock.recv(65536)
            if said:
                sock.sendall(self._name + said)
                return
        except OSError:
            pass
        self._selector.unregister(sock)
        sock.close()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(20)
        for key in list(self._selector.get_map().values()):
            if key.fileobj is not self._listener:
                key.fileobj.close()  # type: ignore[union-attr]  # they are sockets
        self._selector.close()


@contextlib.contextmanager
def echoing(stage: Stage, boot_id: str, *, point: bool = True) -> Iterator[Echo]:
    with contextlib.closing(Echo(stage.daemon(boot_id, point=point))) as found:
        yield found


@pytest.mark.timeout(600)
def test_thousands_of_idle_connections_are_counted_cost_little_and_still_work(stage: Stage) -> None:
    count = as_many_as_fit(scaled(500, 5000), fds_each=4)
    daemon = stage.daemon("v1")
    memory = resident_bytes()
    pairs = [stage.pair(daemon) for _ in range(count)]
    grown = resident_bytes() - memory
    assert stage.call(stage.plane.traffic)["v1"].connections == count
    report("idle connections", connections=count, bytes_each_with_both_ends=grown // count)
    assert grown / count < 20_000
    for number, (client, far) in enumerate(pairs):
        said = number.to_bytes(8, "big")
        client.sendall(said)
        assert read_exactly(far, 8) == said
        far.sendall(said[::-1])
        assert read_exactly(client, 8) == said[::-1]
    counted = stage.call(stage.plane.traffic)["v1"]
    assert (counted.bytes_in, counted.bytes_out) == ((8 * count, 8 * count) if stage.counts_bytes else (None, None))


@pytest.mark.timeout(600)
def test_a_burst_of_10_000_connects_each_with_the_client_vanishing_leaves_nothing(stage: Stage) -> None:
    count = 10_000
    chance = random.Random(3)
    with echoing(stage, "v1") as echo:
        before, memory = open_fds(), resident_bytes()
        for number in range(count):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(stage.address)
            with contextlib.suppress(OSError):
                client.send(b"%d" % number if chance.random() < 0.5 else b"")
            if chance.random() < 0.5:
                reset(client)
            else:
                client.close()
        last = stage.client()
        last.sendall(b"the last")
        assert read_exactly(last, 11) == b"v1 the last"
        last.close()
        eventually(lambda: stage.call(stage.plane.connections) == 0, timeout_s=60)
        eventually(lambda: open_fds() <= before + 8, why="descriptors of vanished clients")
        grown = resident_bytes() - memory
    report("vanishing clients", connects=count, met_by_the_daemon=echo.met, rss_growth_bytes=grown)
    assert grown < 16 << 20


@pytest.mark.parametrize("kind", RELAYS)  # of the others none passes through the plane
def test_one_bulk_flow_does_not_starve_1000_small_ones(stage: Stage) -> None:
    """All of them are ready in the same instant; the small ones are through before the big one has had many turns."""
    count = as_many_as_fit(1000, fds_each=4)
    small = stage.daemon("small", point=False)
    flow = subprocess.Popen(
        [sys.executable, str(SUPPORT / "bulk_flow.py"), str(stage.address[1])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with flow:
        assert flow.stdin
        assert flow.stdout
        bulk = Upstream("bulk", "127.0.0.1", int(flow.stdout.readline()))
        stage.call(lambda: stage.plane.set_upstream(bulk, patience_s=20.0))
        flow.stdin.write("\n")
        flow.stdin.flush()
        eventually(lambda: _moved(stage) > 0, why="the bulk flow does not flow")
        stage.set_upstream(small)
        pairs = [stage.pair(small) for _ in range(count)]
        through = _let_all_go_at_once(stage, pairs)
        _flows_on(stage)
        flow.communicate("\n", timeout=60)
    report("fairness", small=count, bulk_bytes_meanwhile=through)
    turns = 8 if stage.splices else 32  # a turn is a pipe full, or some reads of the event loop
    assert through < turns * BLOCK, "it had more than a few turns"


def _let_all_go_at_once(stage: Stage, pairs: list[tuple[socket.socket, socket.socket]]) -> int:
    """Every client has said something when the plane looks; how much the bulk flow moved until all had got through."""
    go, waiting = threading.Event(), threading.Event()
    through: list[int] = []

    def wait_for_go() -> None:
        waiting.set()
        assert go.wait(60)
        look(stage.plane.traffic()["bulk"].bytes_in or 0)

    def look(began: int) -> None:
        """Every round of the plane's loop: are the small ones through, and how far has the big one come?"""
        census = stage.plane.traffic()
        if (census["small"].bytes_in or 0) == 8 * len(pairs):
            through.append((census["bulk"].bytes_in or 0) - began)
        else:
            stage.soon(look, began)

    _flows_on(stage)
    held = threading.Thread(target=lambda: stage.call(wait_for_go))
    held.start()
    assert waiting.wait(20)
    for number, (client, _) in enumerate(pairs):
        client.sendall(number.to_bytes(8, "big"))
    go.set()
    held.join(60)
    eventually(lambda: through, timeout_s=60, why="the small ones are starved")
    for number, (_, far) in enumerate(pairs):
        assert read_exactly(far, 8) == number.to_bytes(8, "big")
    return through[0]


def _moved(stage: Stage) -> int:
    bulk = stage.call(stage.plane.traffic).get("bulk")
    return (bulk.bytes_in or 0) if bulk else 0


def _flows_on(stage: Stage) -> None:
    before = _moved(stage)
    eventually(lambda: _moved(stage) > before + 128 * BLOCK, why="the bulk flow stands still")


@pytest.mark.parametrize("kind", RELAYS)
def test_600_bulk_connections_of_an_unprivileged_user_stay_right_beyond_the_pipe_limit(kind: str) -> None:
    """In a process of its own, since a uid cannot be taken back."""
    done = subprocess.run(
        [sys.executable, str(SUPPORT / "beyond_the_pipe_limit.py"), kind],
        env={**os.environ, "PYTHONPATH": str(SUPPORT)},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(900)
def test_a_switch_while_10_000_connections_are_held_serves_each_once_first_in_first_out(kind: str) -> None:
    count = as_many_as_fit(scaled(1000, 10_000), fds_each=2, others=4096)
    stage = Stage(kind, hold_max=count)
    argv = [sys.executable, str(SUPPORT / "many_clients.py"), str(stage.address[1]), str(count)]
    clients = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    try:
        stage.set_upstream(None, patience_s=600.0)
        assert clients.stdout
        assert clients.stdout.readline() == "connected\n"
        eventually(lambda: stage.plane.counters.held_now == count, timeout_s=60)
        daemon = stage.daemon("v2")
        order = []
        for _ in range(count):
            with daemon.accept() as far:
                said = read_exactly(far, 8)
                far.sendall(said[::-1])
            order.append(int.from_bytes(said, "big"))
        assert order == list(range(count))
        assert clients.communicate(timeout=120)[0] == "answered\n"
        counters = stage.plane.counters
        report("held over a switch", connections=count)
        assert (counters.hold_overflow, counters.hold_timeout, counters.reset_unrouted) == (0, 0, 0)
    finally:
        clients.kill()
        clients.communicate()
        stage.close()


def test_a_hold_that_is_full_of_hundreds_turns_the_rest_away_and_serves_those_inside(kind: str) -> None:
    stage = Stage(kind, hold_max=200)
    try:
        stage.set_upstream(None)
        inside = [stage.client() for _ in range(200)]
        eventually(lambda: stage.plane.counters.held_now == 200)
        for _ in range(100):
            assert is_turned_away(stage)
        assert stage.plane.counters.hold_overflow == 100
        with echoing(stage, "v2"):
            for number, client in enumerate(inside):
                client.sendall(b"%03d" % number)
            for number, client in enumerate(inside):
                assert read_exactly(client, 6) == b"v2 %03d" % number
    finally:
        stage.close()
