from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from process_support import Running, Started, line_of
from support import eventually, scaled
from turnout.system.command import fill_port
from turnout.system.net.ports import choose_port
from turnout.system.net.sockets import listeners_of, who_listens
from turnout.system.process import identify, is_alive, state_of
from turnout.testing import demo_command

TIMEOUT_S = 20.0


@pytest.fixture
def started() -> Iterator[Started]:
    with Started() as found:
        yield found


def connect(running: Running) -> socket.socket:
    return socket.create_connection(running.address, TIMEOUT_S)


def talk(running: Running, sent: bytes) -> bytes:
    """Send, close our half, and read all of the answer."""
    with connect(running) as sock:
        sock.sendall(sent)
        sock.shutdown(socket.SHUT_WR)
        return everything(sock)


def everything(sock: socket.socket) -> bytes:
    got = b""
    while data := sock.recv(65536):
        got += data
    return got


def silent(sock: socket.socket) -> bool:
    """Whether nothing comes for a while that is long against an answer, which takes well under a millisecond."""
    sock.settimeout(0.2)
    try:
        return sock.recv(1) == b"never"
    except TimeoutError:
        return True
    finally:
        sock.settimeout(TIMEOUT_S)


def reply(running: Running, line: bytes, version: bytes = b"v1") -> bytes:
    return b"%s %d %s\n" % (version, running.process.pid, line)


# -- its manners -------------------------------------------------------------------------------------------------------


def test_each_line_is_answered_with_version_pid_and_the_line(started: Started) -> None:
    running = started.demo(version="v7")
    assert talk(running, b"PING\nhello you\n") == reply(running, b"PING", b"v7") + reply(running, b"hello you", b"v7")


def test_a_version_may_be_any_bytes(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8")  # as tox sets it: what is printed is then checked strictly
    running = started.demo(version=os.fsdecode(b"v\xff"))
    assert talk(running, b"a\n") == reply(running, b"a", b"v\xff")


def test_a_last_line_without_an_end_and_an_empty_one_are_answered(started: Started) -> None:
    running = started.demo()
    assert talk(running, b"\nlast") == reply(running, b"") + reply(running, b"last")
    assert talk(running, b"") == b""


def test_a_client_that_half_closes_gets_every_answer(started: Started) -> None:
    running = started.demo()
    lines = [b"%d" % (number % 10) for number in range(scaled(150_000, 1_000_000))]  # more than it holds at a time
    assert talk(running, b"\n".join(lines) + b"\n") == b"".join(reply(running, line) for line in lines)


def test_a_client_that_reads_late_loses_nothing(started: Started) -> None:
    running = started.demo()
    lines = [b"%08d" % number * 20 for number in range(60_000)]
    with connect(running) as sock:

        def send() -> None:
            sock.sendall(b"\n".join(lines) + b"\n")
            sock.shutdown(socket.SHUT_WR)

        sent = threading.Thread(target=send, daemon=True)
        sent.start()
        eventually(lambda: state_of(running.process.pid) == "S", why="it waits for us to read")
        head = sock.recv(1)
        got = head + everything(sock)
        sent.join(TIMEOUT_S)
    assert got == b"".join(reply(running, line) for line in lines)


def test_a_line_that_never_ends_ends_the_connection_and_nothing_else(started: Started) -> None:
    running = started.demo()
    with connect(running) as sock, pytest.raises(OSError, match=r"reset|pipe"):
        sock.sendall(b"x" * (64 << 20))
    assert talk(running, b"a\n") == reply(running, b"a")


def test_many_clients_at_once_are_all_answered(started: Started) -> None:
    running = started.demo()
    clients = [connect(running) for _ in range(200)]
    for number, client in enumerate(clients):
        client.sendall(b"%d\n" % number)
    for number, client in enumerate(clients):
        with client:
            assert client.makefile("rb").readline() == reply(running, b"%d" % number)


def test_a_client_that_resets_harms_nobody(started: Started) -> None:
    running = started.demo()
    for _ in range(20):
        with connect(running) as sock:
            sock.sendall(b"x\n" * 1000)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    assert talk(running, b"a\n") == reply(running, b"a")


def test_an_idle_daemon_sleeps(started: Started) -> None:
    running = started.demo()
    with connect(running) as sock:
        sock.sendall(b"a\n")
        sock.recv(64)
        sock.shutdown(socket.SHUT_WR)

        def ticks() -> int:
            fields = Path(f"/proc/{running.process.pid}/stat").read_text().rpartition(")")[2].split()
            return int(fields[11]) + int(fields[12])

        eventually(lambda: state_of(running.process.pid) == "S")
        before = ticks()
        with pytest.raises(subprocess.TimeoutExpired):
            running.process.wait(0.5)
        assert ticks() - before <= 2, "no event that nobody serves"


# -- its end -----------------------------------------------------------------------------------------------------------


def test_at_term_it_takes_nobody_new_finishes_and_exits_well(started: Started) -> None:
    running = started.demo()
    with connect(running) as sock:
        sock.sendall(b"a\n")
        assert sock.recv(64) == reply(running, b"a")
        running.process.send_signal(signal.SIGTERM)
        eventually(lambda: who_listens(*running.address) is None or not listeners_of({running.process.pid}))
        with pytest.raises(ConnectionRefusedError):
            connect(running)
        sock.sendall(b"b\n")
        assert sock.recv(64) == reply(running, b"b")
    assert running.process.wait(TIMEOUT_S) == 0


def test_at_term_a_client_that_stays_does_not_keep_it(started: Started) -> None:
    running = started.demo()
    with connect(running) as sock:
        sock.sendall(b"a\n")
        sock.recv(64)
        running.process.terminate()
        assert running.process.wait(TIMEOUT_S) == 0


def test_at_term_clients_in_its_queue_are_still_answered(started: Started) -> None:
    running = started.demo()
    running.process.send_signal(signal.SIGSTOP)
    eventually(lambda: state_of(running.process.pid) == "T")
    clients = [connect(running) for _ in range(20)]
    for client in clients:
        client.sendall(b"q\n")
    running.process.terminate()
    running.process.send_signal(signal.SIGCONT)
    for client in clients:
        with client:
            assert client.recv(64) == reply(running, b"q")
    assert running.process.wait(TIMEOUT_S) == 0


def test_a_daemon_told_to_ignore_term_serves_on(started: Started) -> None:
    running = started.demo("--ignore-term")
    running.process.terminate()
    assert talk(running, b"a\n") == reply(running, b"a")
    assert running.process.poll() is None


def test_a_port_in_use_is_told_and_is_exit_code_1(started: Started) -> None:
    running = started.demo()
    argv = fill_port(demo_command("v1"), running.port)
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    assert done.returncode == 1
    assert "Address already in use" in done.stderr
    assert len(done.stderr.splitlines()) == 1


# -- its misbehaviour --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("flags", "code"), [((), 1), (("--exit-code", "0"), 0), (("--exit-code", "7"), 7)])
def test_it_exits_when_told_to(started: Started, flags: tuple[str, ...], code: int) -> None:
    child = started.run(*fill_port(demo_command("v1", "--exit-after", "0.05", *flags), 0))
    assert child.wait(TIMEOUT_S) == code


def test_it_exits_during_its_start_delay_too(started: Started) -> None:
    argv = fill_port(demo_command("v1", "--exit-after", "0.05", "--start-delay", "600"), 0)
    assert started.run(*argv).wait(TIMEOUT_S) == 1


def test_it_dies_on_its_word_alone(started: Started) -> None:
    running = started.demo("--die-on-line", "die", "--exit-code", "3")
    assert talk(running, b"die not\n") == reply(running, b"die not")
    assert talk(running, b"die\n") == b""
    assert running.process.wait(TIMEOUT_S) == 3


def test_it_speaks_first(started: Started) -> None:
    running = started.demo("--banner", "220 ready")
    with connect(running) as sock:
        assert sock.makefile("rb").readline() == b"220 ready\n"


def test_it_is_sick_while_the_file_is_there_and_answers_then_what_was_asked(started: Started, tmp_path: Path) -> None:
    sick = tmp_path / "sick"
    running = started.demo("--sick-file", str(sick))
    with connect(running) as sock:
        sick.touch()
        sock.sendall(b"a\n")
        sock.shutdown(socket.SHUT_WR)
        assert silent(sock)
        sick.unlink()
        assert everything(sock) == reply(running, b"a")


def test_it_hangs_after_its_time_and_still_accepts(started: Started) -> None:
    running = started.demo("--hang-after", "0")
    with connect(running) as sock:
        sock.sendall(b"a\n")
        assert silent(sock)
    with connect(running):
        pass


def test_it_never_listens_and_ends_at_term(started: Started) -> None:
    child = started.run(*fill_port(demo_command("v1", "--never-listen"), 0))
    eventually(lambda: state_of(child.pid) == "S")
    assert listeners_of({child.pid}) == []
    child.terminate()
    assert child.wait(TIMEOUT_S) == -signal.SIGTERM


def test_it_listens_on_another_port_than_told(started: Started) -> None:
    with choose_port() as told, choose_port() as other:
        child = started.run(*fill_port(demo_command("v1", "--listen-on", str(other.port)), told.port))
        assert int(line_of(child).split()[-1]) == other.port
        assert {listener.port for listener in listeners_of({child.pid})} == {other.port}


def test_it_says_that_it_is_unwell_after_so_many_lines_and_answers_on(started: Started) -> None:
    running = started.demo("--unwell-after-lines", "2")
    assert talk(running, b"HEALTH\na\nHEALTH\n") == b"ok\n" + reply(running, b"a") + b"ok\n"
    assert talk(running, b"b\nHEALTH\nc\n") == reply(running, b"b") + b"unwell\n" + reply(running, b"c")


def test_it_closes_after_so_many_answers(started: Started) -> None:
    running = started.demo("--lines-limit", "2")
    with connect(running) as sock:
        sock.sendall(b"a\nb\n")
        assert everything(sock) == reply(running, b"a") + reply(running, b"b")


def test_it_goes_to_the_background(started: Started) -> None:
    child = started.run(*fill_port(demo_command("v1", "--fork-twice"), 0))
    port = int(line_of(child).split()[-1])
    assert child.wait(TIMEOUT_S) == 0
    holder = who_listens("127.0.0.1", port)
    assert holder
    started.also(holder.pid)
    assert os.getsid(holder.pid) != child.pid
    assert is_alive(identify(holder.pid))


@pytest.mark.parametrize("size", [1, 65536, 200_001])
def test_it_writes_as_much_log_as_told(started: Started, tmp_path: Path, size: int) -> None:
    argv = fill_port(demo_command("v1", "--spew", str(size), "--exit-after", "600"), 0)
    log = tmp_path / "log"
    with log.open("wb") as file:
        started.run(*argv, stdout=file)
    eventually(lambda: b"listens on" in log.read_bytes())
    said = log.read_bytes()
    assert said.index(b"v1, pid") == size


def test_it_needs_nothing_but_the_standard_library() -> None:
    code = "import sys; import turnout.demo.daemon; print([n for n in sys.modules if n.split('.')[0] in sys.argv[1:]])"
    heavy = ["asyncio", "uvloop", "msgspec", "rich", "click", "psutil", "filelock"]
    done = subprocess.run([sys.executable, "-P", "-c", code, *heavy], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
