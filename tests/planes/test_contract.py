"""What every plane that moves bytes must hold, in every corner of TCP."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from bulk_daemon import block, expected, pump_out, take_in
from stage import RELAYS, Daemon, Stage
from support import eventually, report, scaled
from traffic import (
    PAYLOADS,
    STEP,
    Answering,
    End,
    at_once,
    is_reset,
    is_turned_away,
    open_fds,
    read_all,
    read_exactly,
    reset,
    resident_bytes,
)

SUPPORT = Path(__file__).parents[1] / "support"
MIB = 1 << 20


# -- half-close and reset --------------------------------------------------------------------------------------------


def _no_pipes(_flags: int) -> tuple[int, int]:
    raise OSError(errno.EMFILE, "no pipes in this test")


def _exchange(stage: Stage, here: End, there: End, path: str) -> None:
    """Some bytes from here to there; where the plane can splice, until it has done so."""
    before = stage.plane.counters.spliced_bytes
    for _ in range(16):
        with at_once(lambda: here.send(STEP)):
            assert there.take(STEP)
        if path == "copy" or not stage.splices or stage.plane.counters.spliced_bytes > before:
            return
    raise AssertionError("it never spliced")


@pytest.mark.parametrize("path", ["copy", "splice"])
@pytest.mark.parametrize("when", ["before any byte", "mid-stream", "with 10 MB in flight"])
@pytest.mark.parametrize("how", ["FIN", "RST"])
@pytest.mark.parametrize("who", ["client", "daemon", "both"])
def test_the_end_of_one_side_is_passed_on_as_what_it_was(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, who: str, how: str, when: str, path: str
) -> None:
    """Before any byte of the one that ends, that is: what the other one says takes the path that is tried."""
    if path == "copy":
        monkeypatch.setattr(os, "pipe2", _no_pipes)
    client, far = stage.pair(stage.daemon("v1"))
    both = [End("client", client, "daemon"), End("daemon", far, "client")]
    enders = [end for end in both if who in {end.name, "both"}]
    others = [end for end in both if end not in enders]
    of = {both[0]: both[1], both[1]: both[0]}
    for here, there in of.items():
        if when == "mid-stream" or here in others:
            _exchange(stage, here, there, path)
    if how == "RST":
        if when == "with 10 MB in flight":
            for end in enders:
                end.push(of[end])
        for end in enders:
            reset(end.sock)
        for end in others:
            with pytest.raises(ConnectionResetError):  # a truncated stream must not look whole
                end.take_all()
    elif when == "with 10 MB in flight":
        with at_once(*(end.say_all_and_end for end in enders)):
            for end in enders:
                _is_in_flight(stage, end)
            with at_once(*(of[end].take_all for end in enders)):
                pass
        assert [of[end].came for end in enders] == [len(PAYLOADS[end.name]) for end in enders]
    else:
        for end in enders:
            end.sock.shutdown(socket.SHUT_WR)
        for end in enders:
            of[end].take_all()
            assert of[end].came == end.sent
    if how == "FIN":
        for end in others:  # the other direction goes on after a half-close
            with at_once(end.say_all_and_end):
                of[end].take_all()
            assert of[end].came == len(PAYLOADS[end.name])
    eventually(lambda: stage.call(stage.plane.connections) == 0, why="the connection is still open in the plane")
    moved = stage.plane.counters
    if path == "copy":
        assert moved.spliced_bytes == 0
    elif stage.splices and sum(end.sent for end in both) > 0:
        assert moved.spliced_bytes > (moved.copied_bytes if when == "with 10 MB in flight" else 0)
    for end in both:
        end.sock.close()


def _is_in_flight(stage: Stage, end: End) -> None:
    """Wait until the plane holds bytes of this direction that the other side does not take."""

    def held() -> bool:
        (one,) = stage.call(lambda: stage.plane.open_connections("v1")) or ()
        return one.half_sent and (one.bytes_in if end.name == "client" else one.bytes_out) > 0

    eventually(held, why="nothing is in flight")


def test_bytes_before_a_reset_arrive_and_then_the_reset(stage: Stage) -> None:
    client, far = stage.pair(stage.daemon("v1"))
    client.sendall(b"x" * 1000)
    assert read_exactly(far, 1000) == b"x" * 1000
    reset(client)
    assert is_reset(far)


def test_a_reset_is_heard_while_the_reader_on_the_other_side_stalls(stage: Stage) -> None:
    """The source is paused: its descriptor must still hear of the reset, and must not spin."""
    daemon = stage.daemon("v1")
    client, far = stage.pair(daemon)
    client.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            client.send(b"x" * 65536)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    before = time.process_time()
    assert is_reset(far)
    assert time.process_time() - before < 5
    eventually(lambda: stage.call(stage.plane.connections) == 0)


def test_a_daemon_that_resets_in_the_middle_of_an_upload_is_a_reset_and_no_end(stage: Stage) -> None:
    """The relay's own send takes the error; the read that follows sees an end of stream, which it is not."""
    client, far = stage.pair(stage.daemon("v1"))
    far.sendall(b"half an ans")
    assert read_exactly(client, 11)
    client.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            client.send(b"x" * 65536)
    reset(far)
    client.settimeout(20)
    assert is_reset(client)


def test_an_early_answer_is_delivered_although_the_daemon_stopped_reading(stage: Stage) -> None:
    """It answers and closes while the client still sends: the answer is read to its end first."""
    client, far = stage.pair(stage.daemon("v1"))
    client.sendall(b"x" * 100_000)
    far.recv(10)
    far.sendall(b"no thanks")
    far.close()  # with bytes unread: the kernel sends a reset behind the answer
    with contextlib.suppress(OSError):
        for _ in range(50):
            client.sendall(b"x" * 65536)
    got = b""
    with contextlib.suppress(ConnectionResetError):
        got = read_all(client)
    assert got in {b"no thanks", b""}  # the client's own kernel may drop it at the reset
    eventually(lambda: stage.call(stage.plane.connections) == 0)


def test_a_half_close_before_the_daemon_is_there_is_kept(stage: Stage) -> None:
    stage.set_upstream(None)
    client = stage.client()
    client.sendall(b"question")
    client.shutdown(socket.SHUT_WR)
    eventually(lambda: stage.plane.counters.held_now == 1)
    far = stage.daemon("v1").accept()
    assert read_all(far) == b"question"
    far.sendall(b"answer")
    far.close()
    assert read_all(client) == b"answer"


def test_the_server_may_speak_first(stage: Stage) -> None:
    client, far = stage.pair(stage.daemon("v1"))
    far.sendall(b"220 hello\r\n")
    assert client.recv(100) == b"220 hello\r\n"


# -- payload ---------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(600)
def test_a_payload_in_both_directions_arrives_byte_for_byte_across_a_switch(stage: Stage) -> None:
    size = scaled(16, 1024) * MIB
    client, far = stage.pair(stage.daemon("v1"))
    digests: dict[str, bytes] = {}
    threads = [
        threading.Thread(target=pump_out, args=(client, size)),
        threading.Thread(target=pump_out, args=(far, size)),
        threading.Thread(target=lambda: digests.__setitem__("daemon", take_in(far, size))),
        threading.Thread(target=lambda: digests.__setitem__("client", take_in(client, size))),
    ]
    for thread in threads:
        thread.start()
    stage.daemon("v2")
    for thread in threads:
        thread.join(300)
    assert digests == {"client": expected(size), "daemon": expected(size)}
    counted = stage.call(stage.plane.traffic)["v1"]
    assert (counted.bytes_in, counted.bytes_out) == ((size, size) if stage.counts_bytes else (None, None))


@pytest.mark.parametrize("segment", [1, 1448])
def test_small_segments_to_a_slow_reader_arrive_whole(stage: Stage, segment: int) -> None:
    client, far = stage.pair(stage.daemon("v1"))
    rng = random.Random(segment)
    payload = rng.randbytes(segment * 2000)

    def send() -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(0, len(payload), segment):
            client.sendall(payload[at : at + segment])
        client.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    got = hashlib.sha256()
    while part := far.recv(777):
        got.update(part)
    sender.join()
    assert got.digest() == hashlib.sha256(payload).digest()


def test_a_reader_that_stops_for_10_seconds_costs_neither_memory_nor_cpu_and_then_gets_everything(stage: Stage) -> None:
    client, far = stage.pair(stage.daemon("v1"))
    size = 64 * MIB
    quiet = threading.Event()
    sender = threading.Thread(target=_push_and_tell, args=(client, size, quiet))
    sender.start()
    assert quiet.wait(60)
    seconds = scaled(1, 10)
    memory, cpu = resident_bytes(), time.process_time()
    threading.Event().wait(seconds)
    cpu, memory = time.process_time() - cpu, resident_bytes() - memory
    held = stage.call(lambda: stage.plane.open_connections("v1"))
    report("a stalled reader", seconds=seconds, rss_growth_bytes=memory, cpu_share=cpu / seconds)
    assert held
    assert held[0].half_sent
    assert cpu < 0.05 * seconds + 0.1, "it spins on a paused source"
    assert memory < 2_000_000, "memory grows while nobody reads"
    assert take_in(far, size) == expected(size)
    sender.join(60)


def _push_and_tell(sock: socket.socket, size: int, quiet: threading.Event) -> None:
    """Send a payload, and tell as soon as nothing more of it is taken for a quarter of a second."""
    sent = 0
    while sent < size:
        part = block(sent // MIB)[sent % MIB :]
        sock.settimeout(20 if quiet.is_set() else 0.25)
        try:
            sent += sock.send(part)
        except TimeoutError:
            quiet.set()


# -- switching -------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(600)
def test_switches_under_load_lose_nothing_and_every_connection_has_one_daemon(stage: Stage) -> None:
    switches = scaled(50, 1000)
    daemons = [stage.daemon(f"v{number}") for number in range(2)]
    for daemon in daemons:
        Answering(daemon).start()
    stop = threading.Event()
    errors: list[str] = []
    answered: Counter[str] = Counter()

    def client() -> None:
        while not stop.is_set():
            try:
                with socket.create_connection(stage.address, 20) as sock, sock.makefile("rb") as lines:
                    seen = set()
                    for number in range(3):
                        sock.sendall(b"%d\n" % number)
                        boot, _, rest = lines.readline().decode().partition(" ")
                        assert rest == f"{number}\n"
                        seen.add(boot)
                    assert len(seen) == 1
                    answered[seen.pop()] += 1
            except (OSError, AssertionError) as error:
                errors.append(repr(error))

    threads = [threading.Thread(target=client) for _ in range(8)]
    for thread in threads:
        thread.start()
    for number in range(switches):
        before = answered.total()
        stage.set_upstream(daemons[number % 2])
        eventually(lambda before=before: answered.total() > before)  # type: ignore[misc]  # mypy cannot infer defaults
    stop.set()
    for thread in threads:
        thread.join(30)
    report("switches under load", switches=switches, connections=answered.total(), errors=len(errors))
    assert errors == []
    assert min(answered["v0"], answered["v1"]) > 0


def test_a_connection_that_comes_after_the_switch_goes_to_the_new_daemon(stage: Stage) -> None:
    before = stage.daemon("v1")
    for number in range(scaled(50, 1000)):
        daemon = stage.daemon(f"n{number}")
        before.listener.close()
        before = daemon
        client = stage.client()
        far = daemon.accept()
        far.sendall(b"here")
        assert client.recv(4) == b"here"
        far.close()
        client.close()


def test_cutting_a_boot_resets_its_connections_and_no_others(stage: Stage) -> None:
    old = [stage.pair(daemon) for daemon in [stage.daemon("v1")] for _ in range(5)]
    new_client, new_far = stage.pair(stage.daemon("v2"))
    assert stage.call(lambda: stage.plane.cut("v1")) == 5
    for client, far in old:
        assert is_reset(client)
        assert is_reset(far)
    new_far.sendall(b"still here")
    assert new_client.recv(100) == b"still here"
    assert stage.call(stage.plane.traffic)["v1"].connections == 0


# -- holding ---------------------------------------------------------------------------------------------------------


def test_held_connections_are_let_go_first_in_first_out(stage: Stage) -> None:
    stage.set_upstream(None)
    clients = []
    for number in range(20):
        clients.append(stage.client())
        clients[-1].sendall(b"%02d" % number)
        eventually(lambda number=number: stage.plane.counters.held_now == number + 1)  # type: ignore[misc]  # as above
    daemon = stage.daemon("v1")
    order = []
    for _ in clients:
        far = daemon.accept()
        order.append(int(far.recv(2)))
        far.close()
    assert order == list(range(20))


def test_clients_without_a_daemon_are_counted_until_they_have_one_or_go(stage: Stage) -> None:
    stage.set_upstream(None)
    first, second = stage.client(), stage.client()
    eventually(lambda: stage.call(stage.plane.waiting) == 2)
    assert stage.call(stage.plane.connections) == 0
    second.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    second.close()
    eventually(lambda: stage.call(stage.plane.waiting) == 1, why="one that was reset is gone")
    daemon = stage.daemon("v1")
    first.sendall(b"x")
    with daemon.accept() as far:
        assert far.recv(1) == b"x"
        assert (stage.call(stage.plane.waiting), stage.call(stage.plane.connections)) == (0, 1)


def test_a_full_hold_resets_at_once_and_those_inside_stay(kind: str) -> None:
    stage = Stage(kind, hold_max=3)
    try:
        stage.set_upstream(None)
        inside = []
        for number in range(3):
            inside.append(stage.client())
            eventually(lambda number=number: stage.plane.counters.held_now == number + 1)  # type: ignore[misc]  # as above
        assert is_turned_away(stage)
        assert stage.plane.counters.hold_overflow == 1
        daemon = stage.daemon("v1")
        for client in inside:
            far = daemon.accept()
            far.sendall(b"ok")
            assert client.recv(2) == b"ok"
            far.close()
    finally:
        stage.close()


def test_patience_that_runs_out_is_a_reset(stage: Stage) -> None:
    stage.set_upstream(None, patience_s=0.1)
    assert is_turned_away(stage)
    assert stage.plane.counters.hold_timeout == 1


def test_without_patience_nobody_is_held(stage: Stage) -> None:
    stage.set_upstream(None, patience_s=0.0)
    assert is_turned_away(stage)
    assert stage.plane.counters.reset_unrouted == 1


def test_a_refused_connect_is_held_and_the_client_never_knows(stage: Stage) -> None:
    dead = stage.daemon("dead")
    stage.end(dead)
    client = stage.client()
    client.sendall(b"anyone?")
    eventually(lambda: stage.plane.counters.connect_failed > 0)
    reborn = stage.reborn(dead)
    far = reborn.accept()
    assert far.recv(100) == b"anyone?"
    far.sendall(b"me")
    assert client.recv(100) == b"me"
    far.close()


def test_a_held_client_that_resets_leaves_at_once_and_one_that_ends_its_stream_stays(stage: Stage) -> None:
    stage.set_upstream(None)
    leaves, stays = stage.client(), stage.client()
    eventually(lambda: stage.plane.counters.held_now == 2)
    stays.sendall(b"bye")
    stays.shutdown(socket.SHUT_WR)
    reset(leaves)
    eventually(lambda: stage.plane.counters.held_now == 1)
    far = stage.daemon("v1").accept()
    assert read_all(far) == b"bye"
    far.close()


# -- resources -------------------------------------------------------------------------------------------------------


def open_and_close(stage: Stage, daemon: Daemon, rng: random.Random, count: int) -> None:
    """So many connections, one after the other, each ended in an order and a way of its own."""
    for _ in range(count):
        client = socket.create_connection(stage.address, 20)
        far = daemon.accept()
        if rng.random() < 0.3:
            client.sendall(b"x" * rng.choice([1, 1000, 100_000]))
        ends = [client, far]
        rng.shuffle(ends)
        for sock in ends:
            if rng.random() < 0.3:
                reset(sock)
            elif rng.random() < 0.3:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_WR)
                sock.close()
            else:
                sock.close()


@pytest.mark.timeout(900)
def test_connections_closed_in_every_order_leave_no_descriptor(stage: Stage) -> None:
    count = scaled(5000, 100_000)
    daemon = stage.daemon("v1")
    rng = random.Random(7)
    client, far = stage.pair(daemon)
    client.close()
    far.close()
    eventually(lambda: stage.call(stage.plane.connections) == 0)
    open_and_close(stage, daemon, rng, count // 20)  # allocators, too, have reached their size
    eventually(lambda: stage.call(stage.plane.connections) == 0)
    before, memory = open_fds(), resident_bytes()
    open_and_close(stage, daemon, rng, count)
    eventually(lambda: stage.call(stage.plane.connections) == 0)
    grown = resident_bytes() - memory
    report(
        "opened and closed",
        connections=count,
        fds_before=before,
        fds_after=open_fds(),
        rss_before_bytes=memory,
        rss_after_bytes=memory + grown,
    )
    # pipes that are kept for the next burst are bounded; descriptors of connections are not among what is left
    assert open_fds() - before <= 64
    assert grown < 8 * MIB


@pytest.mark.parametrize("kind", RELAYS)  # of the others the daemon needs them, not the plane
def test_without_descriptors_it_neither_spins_nor_harms_what_it_carries(kind: str) -> None:
    _without_descriptors(kind, "run out")


@pytest.mark.parametrize("kind", RELAYS)
def test_whoever_is_held_has_the_descriptor_towards_the_daemon_already(kind: str) -> None:
    _without_descriptors(kind, "hold")


def _without_descriptors(kind: str, what: str) -> None:
    """In a process of its own, since the limit is the process's."""
    done = subprocess.run(
        [sys.executable, str(SUPPORT / "out_of_descriptors.py"), kind, what],
        env={**os.environ, "PYTHONPATH": str(SUPPORT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_connection_is_told_with_its_peer_its_bytes_and_who_spoke_last(stage: Stage) -> None:
    daemon = stage.daemon("a")
    client, far = stage.pair(daemon)
    (fresh,) = stage.call(lambda: stage.plane.open_connections("a", peers=True)) or ()
    host, port = client.getsockname()
    assert (fresh.peer, fresh.answered, fresh.half_sent) == (f"{host}:{port}", True, False)
    client.sendall(b"question")
    assert far.recv(100) == b"question"
    (asked,) = stage.call(lambda: stage.plane.open_connections("a")) or ()
    assert (asked.id, asked.bytes_in, asked.bytes_out, asked.answered) == (fresh.id, 8, 0, False)
    far.sendall(b"answer")
    assert client.recv(100) == b"answer"
    (answered,) = stage.call(lambda: stage.plane.open_connections("a")) or ()
    assert (answered.bytes_out, answered.answered, answered.peer) == (6, True, "")
    assert answered.age_s >= fresh.age_s >= 0.0
    assert not stage.call(lambda: stage.plane.open_connections("nobody"))


def test_bytes_that_the_other_side_does_not_take_are_told_as_half_sent(stage: Stage) -> None:
    daemon = stage.daemon("a")
    client, far = stage.pair(daemon)
    far.setblocking(False)

    def half_sent() -> bool:
        """Push on: one full send buffer is no proof, the plane may still empty it into those behind it."""
        with contextlib.suppress(BlockingIOError):
            while True:
                far.send(bytes(1 << 20))
        return any(one.half_sent for one in stage.call(lambda: stage.plane.open_connections("a")) or ())

    eventually(half_sent)
    client.close()


def test_some_connections_of_a_boot_can_be_ended_in_order_and_the_others_go_on(stage: Stage) -> None:
    daemon = stage.daemon("a")
    pairs = [stage.pair(daemon) for _ in range(3)]
    carried = stage.call(lambda: stage.plane.open_connections("a", peers=True)) or ()
    by_port = {one.peer.rpartition(":")[2]: one.id for one in carried}
    client, far = pairs.pop(1)
    chosen = by_port[str(client.getsockname()[1])]
    assert stage.call(lambda: stage.plane.cut("a", {chosen})) == 1
    assert client.recv(1) == b""
    assert far.recv(1) == b""
    for client, far in pairs:
        client.sendall(b"x")
        assert far.recv(1) == b"x"


# -- how long a connect took -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["relay", "stream"])
def test_each_connection_that_got_a_daemon_is_timed_once_with_its_time_in_the_hold(kind: str) -> None:
    """Where the kernel connects, nobody is there to time it."""
    stage = Stage(kind)
    try:
        _time_connects(stage)
    finally:
        stage.close()


def _time_connects(stage: Stage) -> None:
    told = stage.plane.counters.connect_s
    v1 = stage.daemon("v1", point=False)
    stage.set_upstream(None)
    held = stage.client()
    eventually(lambda: stage.plane.counters.held_now == 1)
    since = time.monotonic()
    gone = stage.client()
    eventually(lambda: stage.plane.counters.held_now == 2)
    reset(gone)
    eventually(lambda: stage.call(stage.plane.waiting) == 1)
    assert sum(told.counts) == 0, "nobody has a daemon yet"
    held_s = time.monotonic() - since
    stage.set_upstream(v1)
    far = v1.accept()
    eventually(lambda: stage.call(stage.plane.connections) == 1)
    assert sum(told.counts) == 1, "the one that went is not counted"
    assert told.total >= held_s
    for _ in range(3):
        stage.pair(v1)
    eventually(lambda: stage.call(stage.plane.connections) == 4)
    assert sum(told.counts) == 4
    held.close()
    far.close()
