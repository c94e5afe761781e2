"""Switching in bad company: to a daemon that dies, back while draining, over and over while all of them drain."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

import pytest

from bulk_daemon import expected, pump_out, take_in
from stage import Daemon, Stage
from support import eventually, report, scaled
from traffic import Answering, is_reset, read_exactly

MIB = 1 << 20


class Transfer:
    """A payload in both directions of one connection, hashed at both ends. It begins at once."""

    def __init__(self, stage: Stage, daemon: Daemon, size: int) -> None:
        self.size = size
        self.boot_id = daemon.target.boot_id
        self.client, self.far = stage.pair(daemon)
        self.digests: dict[str, bytes] = {}
        self._half = threading.Event()  # until it is let go, nobody gets beyond the first half
        acts: list[Callable[[], None]] = [
            lambda: self._send(self.client),
            lambda: self._send(self.far),
            lambda: self._take("client", self.client),
            lambda: self._take("daemon", self.far),
        ]
        self._threads = [threading.Thread(target=act) for act in acts]
        for thread in self._threads:
            thread.start()

    def _send(self, sock: socket.socket) -> None:
        pump_out(sock, self.size // 2)
        assert self._half.wait(120)
        pump_out(sock, self.size, start=self.size // 2)

    def _take(self, name: str, sock: socket.socket) -> None:
        sock.settimeout(120)
        self.digests[name] = take_in(sock, self.size)

    def finish(self) -> None:
        """The rest goes through, and every byte was right."""
        self._half.set()
        for thread in self._threads:
            thread.join(120)
        assert self.digests == {"client": expected(self.size), "daemon": expected(self.size)}, self.boot_id

    def close(self) -> None:
        self.client.close()
        self.far.close()


def test_three_switches_with_three_drains_leave_every_transfer_with_its_daemon(stage: Stage) -> None:
    """Each old daemon goes on with what it has, to the last byte, however many came after it."""
    size = scaled(8, 64) * MIB
    transfers = [Transfer(stage, stage.daemon(f"v{number}"), size) for number in range(4)]
    census = stage.call(stage.plane.traffic)
    assert {boot: counted.connections for boot, counted in census.items()} == {f"v{n}": 1 for n in range(4)}
    for transfer in transfers:
        transfer.finish()
    known = (size, size) if stage.counts_bytes else (None, None)
    for boot_id, counted in stage.call(stage.plane.traffic).items():
        assert (counted.bytes_in, counted.bytes_out) == known, boot_id
    transfers[0].close()
    eventually(lambda: stage.call(stage.plane.traffic)["v0"].connections == 0)
    assert stage.call(stage.plane.connections) == 3
    for transfer in transfers[1:]:
        transfer.close()


def test_a_rollback_while_the_previous_daemon_drains_disturbs_neither_sides_connections(stage: Stage) -> None:
    first = stage.daemon("v1")
    kept = Transfer(stage, first, 8 * MIB)
    second = stage.daemon("v2")
    doomed = stage.pair(second)
    quiet = {one.id for one in stage.call(lambda: stage.plane.open_connections("v2")) or ()}
    staying = Transfer(stage, second, 8 * MIB)
    stage.set_upstream(first)
    back = Transfer(stage, first, 8 * MIB)
    assert stage.call(lambda: stage.plane.cut("v2", quiet)) == 1
    assert doomed[0].recv(1) == doomed[1].recv(1) == b"", "one is cut in order"
    for transfer in (kept, staying, back):
        transfer.finish()
        transfer.close()
    census = stage.call(stage.plane.traffic)
    assert census["v1"].bytes_in == (16 * MIB if stage.counts_bytes else None)
    assert census["v2"].bytes_in == (8 * MIB if stage.counts_bytes else None)


def test_a_switch_to_a_daemon_that_dies_right_then_holds_the_new_clients_until_the_next(stage: Stage) -> None:
    """Nobody is refused: those that its queue had are reset with it, those that come after it wait."""
    first = stage.daemon("v1")
    Answering(first).start()
    old = stage.client()
    old.sendall(b"before\n")
    assert read_exactly(old, 10) == b"v1 before\n"
    dying = Daemon("dying")
    stage.set_upstream(dying)
    dying.listener.close()
    before = stage.plane.counters.accepted
    clients = [stage.client() for _ in range(20)]
    for number, client in enumerate(clients):
        client.sendall(b"%02d\n" % number)
    eventually(lambda: stage.plane.counters.accepted >= before + 20)
    eventually(lambda: stage.plane.counters.connect_failed > 0)
    old.sendall(b"during\n")
    assert read_exactly(old, 10) == b"v1 during\n", "what the old daemon has goes on"
    stage.set_upstream(first)
    for number, client in enumerate(clients):
        assert read_exactly(client, 6) == b"v1 %02d\n" % number
    assert stage.plane.counters.reset_unrouted == 0


def test_a_daemon_that_dies_with_what_it_accepted_resets_exactly_those(stage: Stage) -> None:
    first = stage.daemon("v1")
    kept, kept_far = stage.pair(first)
    dying = stage.daemon("dying")
    lost = [stage.pair(dying) for _ in range(10)]
    for client, _ in lost:
        client.sendall(b"unread")  # the kernel resets what is closed with bytes unread, as it does for a dead process
    eventually(
        lambda: sum(one.bytes_in for one in stage.call(lambda: stage.plane.open_connections("dying")) or ()) == 60
    )
    stage.set_upstream(first)
    dying.listener.close()
    for _, far in lost:
        far.close()
    for client, _ in lost:
        assert is_reset(client)
    kept_far.sendall(b"still here")
    assert kept.recv(100) == b"still here"
    eventually(lambda: stage.call(stage.plane.connections) == 1)


@pytest.mark.timeout(600)
def test_switches_over_a_hold_that_never_empties_lose_nobody(stage: Stage) -> None:
    """To nobody, to one, to another: whoever came in between is answered by one of them, and all are."""
    rounds = scaled(10, 200)
    daemons = [stage.daemon(f"v{number}", point=False) for number in range(2)]
    for daemon in daemons:
        Answering(daemon).start()
    answered = 0
    errors: list[str] = []
    lock, stop = threading.Lock(), threading.Event()

    def client() -> None:
        nonlocal answered
        while not stop.is_set():
            try:
                with socket.create_connection(stage.address, 30) as sock:
                    sock.sendall(b"question\n")
                    said = read_exactly(sock, 12)
                    assert said in {b"v0 question\n", b"v1 question\n"}
            except (OSError, AssertionError) as error:
                errors.append(repr(error))
            with lock:
                answered += 1

    threads = [threading.Thread(target=client) for _ in range(20)]
    stage.set_upstream(None)
    for thread in threads:
        thread.start()
    held = 0
    for number in range(rounds):
        stage.set_upstream(None)
        eventually(lambda: stage.plane.counters.held_now >= 10)
        held += stage.plane.counters.held_now
        stage.set_upstream(daemons[number % 2])
        before = answered
        eventually(lambda before=before: answered > before + 20)  # type: ignore[misc]  # bound by default
    stop.set()
    for thread in threads:
        thread.join(60)
    report("switches over a hold", rounds=rounds, held=held, answered=answered, errors=len(errors))
    assert errors == []
