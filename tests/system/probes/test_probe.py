from __future__ import annotations

import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from probe_support import here, serve
from process_support import Running, Started, entry, line_of, open_descriptors
from support import eventually
from turnout.core.acceptors import Waited
from turnout.core.model import Daemon, Identity
from turnout.system.net.ports import choose_port
from turnout.system.net.sockets import accept_queue, who_listens
from turnout.system.probes import accept
from turnout.system.probes import probe as module
from turnout.system.probes.connect import no_door
from turnout.system.probes.probe import ProbeResult, ProbeSpec, Proof, probe
from turnout.system.probes.wait import wait_healthy
from turnout.system.process import identify, is_alive, own_identity, state_of
from turnout.testing import FakeClock, demo_command

TIMEOUT_S = 10.0
ALIVE = ProbeSpec()
TCP = ProbeSpec("tcp")
OWNING = pytest.mark.parametrize("kind", ["alive", "tcp", "expect"])


@pytest.fixture
def started() -> Iterator[Started]:
    with Started() as found:
        yield found


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def expect(send: bytes = b"hello\n", match: bytes = b"hello", *, verify_owner: bool = True) -> ProbeSpec:
    return ProbeSpec("expect", send, match, verify_owner)


def spec_of(kind: str) -> ProbeSpec:
    return {"alive": ALIVE, "tcp": TCP, "expect": expect(), "none": ProbeSpec("none")}[kind]


# -- well --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["alive", "tcp", "expect", "none"])
def test_a_daemon_that_serves_is_well(started: Started, kind: str) -> None:
    result = probe(started.demo().daemon, spec_of(kind), timeout_s=TIMEOUT_S)
    assert result == msgspec.structs.replace(result, ok=True, gone=False, found_port=None)
    assert result.took_s >= 0


@pytest.mark.parametrize("kind", ["alive", "tcp", "expect"])
def test_a_daemon_on_ipv6_is_well(started: Started, kind: str) -> None:
    assert probe(started.demo(host="::1").daemon, spec_of(kind), timeout_s=TIMEOUT_S).ok


def test_alive_opens_no_connection(opened: ExitStack) -> None:
    sock, daemon = here(opened)
    assert probe(daemon, ALIVE, timeout_s=TIMEOUT_S).ok
    sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        sock.accept()


def test_listening_opens_no_connection_whatever_is_to_be_shown(opened: ExitStack, started: Started) -> None:
    """sshd counts a connection without a request, and some programs end with it."""
    listening = ProbeSpec("listening")
    sock, waits_for_nothing = here(opened)
    assert probe(waits_for_nothing, listening, timeout_s=TIMEOUT_S).ok
    result = probe(waits_for_nothing, listening, timeout_s=TIMEOUT_S, proof=Proof.CONNECTION)
    assert (result.ok, result.waited) == (False, Waited.NO)
    sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        sock.accept()
    running = started.demo()
    assert eventually(lambda: probe(running.daemon, listening, timeout_s=TIMEOUT_S, proof=Proof.CONNECTION).ok)


def test_a_daemon_whose_child_listens_is_well(started: Started) -> None:
    command = " ".join(demo_command("v1")).replace("{port}", "0")
    shell = started.run("sh", "-c", f"{command} & wait")
    port = int(line_of(shell).split()[-1])
    daemon = entry(identify(shell.pid), port)
    assert probe(daemon, ALIVE, timeout_s=TIMEOUT_S).ok
    assert probe(daemon, expect(), timeout_s=TIMEOUT_S).ok


def test_a_daemon_whose_orphan_listens_in_its_session_is_well(started: Started) -> None:
    command = " ".join(demo_command("v1")).replace("{port}", "0")
    shell = started.run("sh", "-c", f"sh -c '{command} &'; exec sleep 600")
    port = int(line_of(shell).split()[-1])
    assert probe(entry(identify(shell.pid), port), ALIVE, timeout_s=TIMEOUT_S).ok


def test_a_daemon_on_every_address_is_well(opened: ExitStack) -> None:
    _, daemon = here(opened, "0.0.0.0")
    assert probe(replace(daemon, host="127.0.0.1"), TCP, timeout_s=TIMEOUT_S).ok


# -- the process -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["alive", "tcp", "expect", "none"])
@pytest.mark.parametrize("verify_owner", [True, False])
def test_a_daemon_that_has_ended_is_gone(started: Started, kind: str, verify_owner: bool) -> None:
    running = started.demo()
    running.process.kill()
    eventually(lambda: state_of(running.process.pid) == "Z", why="nobody waited for it")
    spec = msgspec.structs.replace(spec_of(kind), verify_owner=verify_owner)
    result = probe(running.daemon, spec, timeout_s=TIMEOUT_S)
    assert (result.ok, result.gone) == (False, True), result
    running.process.wait()
    assert probe(running.daemon, spec, timeout_s=TIMEOUT_S).gone


def test_a_daemon_whose_pid_was_reused_is_gone(opened: ExitStack) -> None:
    sock, daemon = here(opened)
    identity = replace(daemon.identity, start_ticks=daemon.identity.start_ticks - 1)
    sock.close()
    result = probe(replace(daemon, identity=identity), ALIVE, timeout_s=TIMEOUT_S)
    assert (result.ok, result.gone) == (False, True)


@pytest.mark.parametrize("kind", ["alive", "tcp", "none"])
def test_a_stopped_daemon_is_unwell_though_it_completes_handshakes(started: Started, kind: str) -> None:
    running = started.demo()
    running.process.send_signal(signal.SIGSTOP)
    eventually(lambda: state_of(running.process.pid) == "T")
    with socket.create_connection(running.address, TIMEOUT_S):
        result = probe(running.daemon, spec_of(kind), timeout_s=TIMEOUT_S)
    assert (result.ok, result.gone) == (False, False)
    assert "stopped" in result.reason
    running.process.send_signal(signal.SIGCONT)
    eventually(lambda: probe(running.daemon, spec_of(kind), timeout_s=TIMEOUT_S).ok)


def test_a_daemon_in_another_pid_namespace_needs_to_be_excepted(opened: ExitStack) -> None:
    _, daemon = here(opened)
    foreign = replace(daemon, identity=replace(daemon.identity, pid_ns=1))
    result = probe(foreign, ALIVE, timeout_s=TIMEOUT_S)
    assert (result.ok, result.gone) == (False, False)
    assert "verify_owner = false" in result.reason


def test_without_a_pid_whoever_listens_will_do(opened: ExitStack) -> None:
    sock, daemon = here(opened)
    attached = replace(daemon, identity=Identity(), owned=False)
    assert probe(attached, ALIVE, timeout_s=TIMEOUT_S).ok
    assert probe(attached, TCP, timeout_s=TIMEOUT_S).ok
    sock.close()
    result = probe(attached, ALIVE, timeout_s=TIMEOUT_S)
    assert (result.ok, result.gone) == (False, False)


# -- the listener ------------------------------------------------------------------------------------------------------


@OWNING
def test_a_daemon_that_never_listens_is_unwell(started: Started, kind: str) -> None:
    child = started.run(*demo_command("v1", "--never-listen"))
    with choose_port() as reserved:
        daemon = entry(identify(child.pid), reserved.port)
        result = probe(daemon, spec_of(kind), timeout_s=TIMEOUT_S)
    assert (result.ok, result.gone, result.found_port) == (False, False, None)
    assert "does not listen" in result.reason


@OWNING
def test_a_daemon_that_listens_elsewhere_is_told_with_the_port_found(started: Started, kind: str) -> None:
    running = started.demo()
    with choose_port() as reserved:
        result = probe(replace(running.daemon, port=reserved.port), spec_of(kind), timeout_s=TIMEOUT_S)
    assert (result.ok, result.gone, result.found_port) == (False, False, running.port)
    assert str(running.port) in result.reason


def test_a_daemon_on_an_address_that_is_not_reached_says_which(started: Started) -> None:
    running = started.demo(host="::1")
    result = probe(replace(running.daemon, host="127.0.0.1"), ALIVE, timeout_s=TIMEOUT_S)
    assert (result.ok, result.found_port) == (False, None)
    assert "::1" in result.reason


@OWNING
def test_another_program_on_the_port_does_not_pass_for_the_daemon(started: Started, kind: str) -> None:
    stranger = started.demo()
    candidate = started.run("sleep", "600")
    daemon = entry(identify(candidate.pid), stranger.port)
    result = probe(daemon, spec_of(kind), timeout_s=TIMEOUT_S)
    assert (result.ok, result.gone) == (False, False)
    assert f"pid {stranger.process.pid}" in result.reason
    unverified = msgspec.structs.replace(spec_of(kind), verify_owner=False)
    assert probe(daemon, unverified, timeout_s=TIMEOUT_S).ok


def test_a_stranger_bound_more_closely_gets_the_connections_so_the_daemon_is_unwell(started: Started) -> None:
    code = (
        "import socket, sys, time\n"
        "sock = socket.create_server((sys.argv[1], int(sys.argv[2])), reuse_port=True)\n"
        "print(sock.getsockname()[1], flush=True)\n"
        "time.sleep(600)\n"
    )
    own = started.python(code, "0.0.0.0", "0")
    port = int(line_of(own))
    daemon = entry(identify(own.pid), port)
    assert probe(daemon, ALIVE, timeout_s=TIMEOUT_S).ok
    stranger = started.python(code, "127.0.0.1", str(port))
    line_of(stranger)
    result = probe(daemon, ALIVE, timeout_s=TIMEOUT_S)
    assert not result.ok
    assert f"pid {stranger.pid}" in result.reason


def test_a_daemon_that_went_to_the_background_is_gone_and_told_to_stay(started: Started) -> None:
    with choose_port() as reserved:
        argv = [word.replace("{port}", str(reserved.port)) for word in demo_command("v1", "--fork-twice")]
        child = started.run(*argv)
        identity = identify(child.pid)
        line_of(child)
        holder = who_listens("127.0.0.1", reserved.port)
        assert holder
        started.also(holder.pid)
        eventually(lambda: not is_alive(identity))
        daemon = entry(identity, reserved.port)
        result = probe(daemon, ALIVE, timeout_s=TIMEOUT_S)
        assert (result.ok, result.gone) == (False, True)
        assert f"pid {holder.pid}" in result.reason
        assert "foreground" in result.reason
        assert probe(daemon, msgspec.structs.replace(ALIVE, verify_owner=False), timeout_s=TIMEOUT_S).ok


def test_an_owner_that_cannot_be_seen_is_not_taken_on_trust(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    running = started.demo()
    monkeypatch.setattr(module, "has_any", lambda *_: False)
    monkeypatch.setattr("turnout.system.net.sockets._owners", lambda _: {})
    result = probe(running.daemon, ALIVE, timeout_s=TIMEOUT_S)
    assert not result.ok
    assert "verify_owner = false" in result.reason


# -- the accept queue --------------------------------------------------------------------------------------------------


def fill(opened: ExitStack, sock: socket.socket, backlog: int) -> None:
    """Connect until more wait than may."""
    for _ in range(backlog + 1):
        opened.enter_context(socket.create_connection(sock.getsockname(), TIMEOUT_S))
    eventually(lambda: accept_queue("127.0.0.1", sock.getsockname()[1]) == (backlog + 1, backlog))


def test_a_daemon_that_accepts_nobody_while_its_queue_is_full_is_unwell(opened: ExitStack) -> None:
    sock, daemon = here(opened, backlog=3)
    fill(opened, sock, 3)
    result = probe(daemon, ALIVE, timeout_s=0.2)
    assert (result.ok, result.gone) == (False, False)
    assert "accepts none" in result.reason
    opened.enter_context(sock.accept()[0])
    assert probe(daemon, ALIVE, timeout_s=0.2).ok


def test_a_queue_that_is_not_full_is_no_fault(opened: ExitStack) -> None:
    sock, daemon = here(opened, backlog=3)
    for _ in range(3):
        opened.enter_context(socket.create_connection(sock.getsockname(), TIMEOUT_S))
    assert probe(daemon, ALIVE, timeout_s=0.2).ok


def test_at_an_address_that_it_shares_its_own_full_queue_is_a_fault_and_nobody_elses(
    opened: ExitStack, started: Started
) -> None:
    sock, daemon = here(opened, backlog=3)
    fill(opened, sock, 3)
    assert not probe(replace(daemon, source="127.47.77.1"), ALIVE, timeout_s=0.2).ok
    other = started.demo()
    owner = replace(other.daemon, port=daemon.port, source="127.47.77.1")
    assert "accepts none" not in probe(owner, ProbeSpec("alive", verify_owner=False), timeout_s=0.2).reason


def test_where_no_queue_is_full_a_daemons_descriptors_are_not_walked_through(
    opened: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    sock, daemon = here(opened, backlog=3)
    opened.enter_context(socket.create_connection(sock.getsockname(), TIMEOUT_S))
    monkeypatch.setattr("turnout.system.probes.probe.listeners_of", lambda _: pytest.fail("all of them were looked at"))
    assert probe(replace(daemon, source="127.47.77.1"), ALIVE, timeout_s=0.2).ok


def test_a_daemon_that_shares_the_fixed_address_is_reached_through_a_door_that_is_shut_behind_it(
    opened: ExitStack,
) -> None:
    """By the fixed address alone the active daemon would be reached, which is another one."""
    _, daemon = here(opened, backlog=3)
    shares, calls = replace(daemon, source="127.47.77.3"), list[tuple[str, int]]()

    @contextmanager
    def door(source: str, port: int) -> Iterator[None]:
        calls.append((source, port))
        yield
        calls.append(("", 0))

    tcp = ProbeSpec("tcp")
    assert "no router directs" in probe(shares, tcp, timeout_s=5.0).reason
    assert probe(shares, msgspec.structs.replace(tcp, door=door), timeout_s=5.0).ok
    (source, port), end = calls
    assert (source, end) == ("127.47.77.3", ("", 0))
    assert port
    assert probe(shares, msgspec.structs.replace(tcp, door=no_door), timeout_s=5.0).ok


def test_a_busy_daemon_whose_queue_is_always_full_but_moves_is_well(
    opened: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    sock, daemon = here(opened, backlog=3)
    fill(opened, sock, 3)

    def accept_one(_: float) -> None:
        """Between two looks one is accepted, and another takes its place in the queue."""
        opened.enter_context(sock.accept()[0])
        opened.enter_context(socket.create_connection(sock.getsockname(), TIMEOUT_S))

    monkeypatch.setattr(time, "sleep", accept_one)
    assert probe(daemon, ALIVE, timeout_s=TIMEOUT_S).ok
    assert accept_queue("127.0.0.1", daemon.port) == (4, 3)


# -- whether it accepts, before it is in service -----------------------------------------------------------------------

LISTENS = (
    "import socket, sys, time\n"
    "sock = socket.socket(); sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n"
    "sock.bind(('127.0.0.1', 0)); sock.listen(511); print(sock.getsockname()[1], flush=True)\n"
)
NEVER_ACCEPTS = LISTENS + "time.sleep(600)\n"
ACCEPTS_BETWEEN_SLEEPS = (
    LISTENS + "sock.setblocking(False)\nwhile True:\n"
    " try: sock.accept()[0].close()\n except BlockingIOError: time.sleep(0.05)\n"
)
SLEEPS_BETWEEN_POLLS = (
    "import select\n" + LISTENS + "while True:\n"
    " if select.select([sock], [], [], 0.02)[0]: sock.accept()[0].close()\n time.sleep(0.1)\n"
)
RESETS = LISTENS + (
    "while True:\n client = sock.accept()[0]\n"
    " client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0])); client.close()\n"
)
DEFERS = LISTENS.replace("sock.listen", "sock.setsockopt(socket.IPPROTO_TCP, 9, 30); sock.listen") + "sock.accept()\n"


def listening(started: Started, code: str) -> Daemon:
    child = started.python(code)
    return entry(identify(child.pid), int(line_of(child)))


@pytest.mark.parametrize("kind", ["alive", "tcp"])
@pytest.mark.parametrize("verify_owner", [True, False])
def test_a_candidate_that_listens_and_never_accepts_does_not_get_healthy(
    started: Started, kind: str, verify_owner: bool
) -> None:
    daemon = listening(started, NEVER_ACCEPTS)
    result = wait_healthy(
        daemon, msgspec.structs.replace(spec_of(kind), verify_owner=verify_owner), timeout_s=1.5, check_timeout_s=0.5
    )
    assert (result.ok, result.gone) == (False, False)
    assert "accept" in result.reason


@pytest.mark.parametrize("kind", ["alive", "tcp"])
@pytest.mark.parametrize("code", [ACCEPTS_BETWEEN_SLEEPS, SLEEPS_BETWEEN_POLLS, RESETS, DEFERS])
def test_a_candidate_that_accepts_in_an_unusual_way_gets_healthy(started: Started, kind: str, code: str) -> None:
    assert wait_healthy(listening(started, code), spec_of(kind), timeout_s=TIMEOUT_S).ok


def test_an_inherited_listener_proves_nothing_of_the_process_that_has_it(started: Started) -> None:
    """With {fd} a process owns its listener before it runs."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        code = "import socket, sys; sys.stdin.readline(); socket.socket(fileno=int(sys.argv[1])).accept()"
        child = started.python(code, str(sock.fileno()), stdin=-1, pass_fds=(sock.fileno(),))
        daemon = entry(identify(child.pid), sock.getsockname()[1])
    assert probe(daemon, ALIVE, timeout_s=TIMEOUT_S).ok, "it listens, and its queue is not full"
    assert not probe(daemon, ALIVE, timeout_s=TIMEOUT_S, proof=Proof.KERNEL).ok
    assert child.stdin
    child.stdin.write(b"go\n")
    child.stdin.flush()
    assert wait_healthy(daemon, ALIVE, timeout_s=20).ok


def test_a_candidate_whose_wait_the_kernel_shows_gets_no_connection(opened: ExitStack) -> None:
    sock, daemon = here(opened)
    poll = opened.enter_context(select.epoll())
    poll.register(sock, select.EPOLLIN)
    assert wait_healthy(daemon, ALIVE, timeout_s=TIMEOUT_S).ok
    assert not poll.poll(0)


def test_a_candidate_that_may_not_be_looked_at_gets_healthy_by_a_connection(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accept, "waited_on", lambda *_: Waited.UNKNOWN)
    assert wait_healthy(started.demo().daemon, ALIVE, timeout_s=TIMEOUT_S).ok
    assert not wait_healthy(listening(started, NEVER_ACCEPTS), ALIVE, timeout_s=1.0).ok


def test_where_neither_processes_nor_connections_are_to_be_seen_a_listener_has_to_do(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accept, "waited_on", lambda *_: Waited.UNKNOWN)
    monkeypatch.setattr(accept, "server_end", lambda *_: None)
    assert wait_healthy(listening(started, NEVER_ACCEPTS), ALIVE, timeout_s=TIMEOUT_S).ok


def test_a_candidate_that_never_accepts_gets_few_connections(started: Started) -> None:
    daemon = listening(started, NEVER_ACCEPTS)
    assert not wait_healthy(daemon, ALIVE, timeout_s=4.0, check_timeout_s=0.1).ok
    queue = accept_queue("127.0.0.1", daemon.port)
    assert queue
    assert 1 <= queue[0] <= 4


def test_a_daemon_in_service_that_is_busy_with_a_client_is_well(opened: ExitStack) -> None:
    """One thread, in a handler: no thread waits on the listener, and a client waits in the queue."""
    sock, daemon = here(opened)
    opened.enter_context(socket.create_connection(sock.getsockname(), TIMEOUT_S))
    for kind in ("alive", "tcp"):
        assert probe(daemon, spec_of(kind), timeout_s=0.3).ok


# -- expect ------------------------------------------------------------------------------------------------------------


def test_a_banner_is_matched_without_sending_anything(started: Started) -> None:
    running = started.demo("--banner", "SSH-2.0-demo")
    assert probe(running.daemon, expect(b"", rb"^SSH-2\.0"), timeout_s=TIMEOUT_S).ok


def test_an_answer_in_pieces_is_matched_across_them(opened: ExitStack) -> None:
    pieces = [b"+P", b"ON", b"G\r\n"]

    def talk(client: socket.socket) -> None:
        for piece in pieces:
            client.sendall(piece)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.recv(1)

    assert probe(serve(opened, talk), expect(b"PING\r\n", b"PONG"), timeout_s=TIMEOUT_S).ok


def test_a_wrong_answer_is_shown(opened: ExitStack) -> None:
    def talk(client: socket.socket) -> None:
        client.recv(64)
        client.sendall(b"-ERR no\r\n")

    result = probe(serve(opened, talk), expect(b"PING\r\n", b"PONG"), timeout_s=TIMEOUT_S)
    assert not result.ok
    assert "-ERR no" in result.reason
    assert result.reason.isprintable()


def test_a_daemon_that_accepts_and_never_answers_is_unwell(started: Started) -> None:
    running = started.demo("--hang-after", "0")
    result = probe(running.daemon, expect(), timeout_s=0.2)
    assert (result.ok, result.gone) == (False, False)
    assert "in time" in result.reason
    assert probe(running.daemon, TCP, timeout_s=TIMEOUT_S).ok, "which a bare connection does not see"


def test_one_deadline_holds_for_an_answer_that_drips(opened: ExitStack) -> None:
    stop = threading.Event()
    opened.callback(stop.set)

    def talk(client: socket.socket) -> None:
        while not stop.wait(0.02):
            client.sendall(b".")

    daemon = serve(opened, talk)
    opened.callback(stop.set)
    result = probe(daemon, expect(b"", b"never"), timeout_s=0.3)
    assert not result.ok
    assert "in time" in result.reason


def test_an_endless_answer_is_read_no_further_than_64_kib(opened: ExitStack) -> None:
    def talk(client: socket.socket) -> None:
        while True:
            client.sendall(b"x" * 65536)

    result = probe(serve(opened, talk), expect(b"", b"never"), timeout_s=TIMEOUT_S)
    assert not result.ok
    assert "65536 bytes" in result.reason


def test_a_daemon_that_closes_at_once_is_unwell(opened: ExitStack) -> None:
    result = probe(serve(opened, lambda _: None), expect(b"", b"x"), timeout_s=TIMEOUT_S)
    assert not result.ok
    assert "closed" in result.reason


def test_a_daemon_that_resets_is_unwell(opened: ExitStack) -> None:
    def talk(client: socket.socket) -> None:
        client.recv(1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    result = probe(serve(opened, talk), expect(b"hello\n", b"x"), timeout_s=TIMEOUT_S)
    assert not result.ok
    assert "reset" in result.reason


def test_a_daemon_that_reads_nothing_does_not_hold_the_probe(opened: ExitStack) -> None:
    stop = threading.Event()

    def talk(_: socket.socket) -> None:
        stop.wait(TIMEOUT_S)

    daemon = serve(opened, talk)
    opened.callback(stop.set)
    result = probe(daemon, expect(b"x" * (64 << 20), b"never"), timeout_s=0.3)
    assert not result.ok


def test_a_match_that_is_no_pattern_is_an_answer_not_an_accident(started: Started) -> None:
    result = probe(started.demo().daemon, expect(b"", b"("), timeout_s=TIMEOUT_S)
    assert not result.ok
    assert "regular expression" in result.reason


def test_a_connection_that_met_itself_reached_nobody(opened: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    itself = opened.enter_context(socket.socket())
    itself.bind(("127.0.0.1", 0))
    itself.connect(itself.getsockname())
    monkeypatch.setattr(socket, "create_connection", lambda *_: itself)
    result = module._talk(entry(own_identity(), itself.getsockname()[1]), TCP, time.monotonic() + TIMEOUT_S)
    assert not result.ok


# -- wait_healthy ------------------------------------------------------------------------------------------------------


def waiting(daemon: Daemon, clock: FakeClock, *, timeout_s: float = 30.0) -> tuple[ProbeResult, list[ProbeResult]]:
    seen: list[ProbeResult] = []
    result = wait_healthy(
        daemon, ALIVE, timeout_s=timeout_s, on_attempt=seen.append, clock=clock.now, sleep=clock.sleep
    )
    return result, seen


def test_waiting_ends_as_soon_as_the_daemon_is_well(started: Started) -> None:
    with choose_port() as reserved:
        argv = [word.replace("{port}", str(reserved.port)) for word in demo_command("v1", "--start-delay", "0.2")]
        child = started.run(*argv)
        daemon = entry(identify(child.pid), reserved.port)
        seen: list[ProbeResult] = []
        result = wait_healthy(daemon, ALIVE, timeout_s=20, on_attempt=seen.append)
    assert result.ok
    assert [attempt.ok for attempt in seen] == [False] * (len(seen) - 1) + [True]
    assert len(seen) > 1


def test_waiting_ends_as_soon_as_the_daemon_has_ended(started: Started) -> None:
    child = started.run("sh", "-c", "exit 7")
    identity = identify(child.pid)
    eventually(lambda: not is_alive(identity))
    clock = FakeClock()
    result, seen = waiting(entry(identity, 1), clock)
    assert (result.ok, result.gone) == (False, True)
    assert len(seen) == 1
    assert clock.now() == 0


def test_waiting_ends_after_a_second_of_listening_elsewhere(started: Started) -> None:
    running = started.demo()
    clock = FakeClock()
    with choose_port() as reserved:
        result, _ = waiting(replace(running.daemon, port=reserved.port), clock)
    assert result.found_port == running.port
    assert 1.0 <= clock.now() < 1.2


def test_waiting_gives_up_when_its_time_is_over_and_says_why(started: Started) -> None:
    child = started.run("sleep", "600")
    clock = FakeClock()
    with choose_port() as reserved:
        result, seen = waiting(entry(identify(child.pid), reserved.port), clock, timeout_s=2.0)
    assert not result.ok
    assert result.reason.startswith("not healthy within 2 s: it does not listen")
    assert clock.now() == pytest.approx(2.0)
    assert len(seen) == 41
    assert sum(clock.slept) == pytest.approx(2.0)


def test_waiting_for_nothing_still_checks_once(started: Started) -> None:
    running: Running = started.demo()
    assert wait_healthy(running.daemon, ALIVE, timeout_s=0).ok


def test_a_daemon_that_listens_elsewhere_first_and_then_where_it_should_is_well(started: Started) -> None:
    code = (
        "import socket, sys, time\n"
        "a = socket.create_server(('127.0.0.1', 0)); print('there', flush=True)\n"
        "sys.stdin.readline()\n"
        "b = socket.create_server(('127.0.0.1', int(sys.argv[1]))); b.accept()\n"
    )
    with choose_port() as reserved:
        child = started.run(sys.executable, "-c", code, str(reserved.port), stdin=-1)
        line_of(child)
        told: list[int] = []

        def on_attempt(result: ProbeResult) -> None:
            if result.found_port and not told:
                told.append(result.found_port)
                assert child.stdin
                child.stdin.write(b"go\n")
                child.stdin.flush()

        daemon = entry(identify(child.pid), reserved.port)
        result = wait_healthy(daemon, ALIVE, timeout_s=20, elsewhere_after_s=10, on_attempt=on_attempt)
    assert told
    assert result.ok


def test_a_probe_leaves_no_descriptor(started: Started) -> None:
    running = started.demo()
    specs = [spec_of(kind) for kind in ("alive", "tcp", "expect", "none")]
    before = open_descriptors()
    for spec in specs * 5:
        assert probe(running.daemon, spec, timeout_s=TIMEOUT_S).ok
    assert open_descriptors() == before


def test_a_sick_daemon_is_unwell_until_it_recovers(started: Started, tmp_path: Path) -> None:
    sick = tmp_path / "sick"
    running = started.demo("--sick-file", str(sick))
    assert probe(running.daemon, expect(), timeout_s=TIMEOUT_S).ok
    sick.touch()
    assert not probe(running.daemon, expect(), timeout_s=0.2).ok
    sick.unlink()
    assert probe(running.daemon, expect(), timeout_s=TIMEOUT_S).ok
