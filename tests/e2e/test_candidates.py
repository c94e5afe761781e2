"""What a candidate can do to whoever starts it: what serves goes on, nothing is left over, and the error says why."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e_support import Turnout, ask, line_daemon, under_load
from support import eventually, scaled
from turnout.system.daemon_log import BOUND_BYTES, KEPT_BYTES
from turnout.testing import Misbehaviour, misbehaving_command


@pytest.fixture
def serving(turnout: Turnout) -> Iterator[Turnout]:
    """A service with v1 active and under load; at the end nobody was refused, and v1 alone is left."""
    turnout.configure(line_daemon("--version", "v1"))
    turnout.tune(stop='{ grace = "500ms" }', start_timeout='"60s"')
    turnout.run("up")
    v1 = turnout.active()["pid"]
    with under_load(turnout):
        yield turnout
        assert turnout.active()["pid"] == v1
        assert ask(turnout.address) == "v1"
    only = {v1, turnout.router_pid()}
    eventually(lambda: turnout.everything() == only, why="something of the candidate is left")
    eventually(lambda: len(turnout.snapshot().daemons) == 1, why="an entry of the candidate is left")


def deploy(turnout: Turnout, command: tuple[str, ...] | list[str], *, start_timeout: str = '"60s"') -> str:
    """A deploy that fails before its switch; what it said."""
    turnout.configure(list(command), version="bad")
    turnout.tune(stop='{ grace = "500ms" }', start_timeout=start_timeout)
    said = turnout.run("deploy", code=1).stderr
    assert "still serving" in said
    assert "hint:" in said
    return said


@pytest.mark.parametrize(
    ("how", "code"), [(Misbehaviour.EXITS_AT_ONCE, "exit code 1"), (Misbehaviour.EXITS_WELL, "exit code 0")]
)
def test_one_that_exits_at_once_is_told_with_its_exit_code(serving: Turnout, how: Misbehaviour, code: str) -> None:
    assert code in deploy(serving, misbehaving_command(how))


def test_one_that_is_killed_is_told_with_the_signal_and_the_end_of_its_log(serving: Turnout) -> None:
    said = deploy(serving, ["sh", "-c", "echo the last words; kill -KILL $$"])
    assert "SIGKILL" in said
    assert "  | the last words" in said


def test_one_that_never_listens_is_given_up_after_its_time_and_killed(serving: Turnout) -> None:
    said = deploy(serving, misbehaving_command(Misbehaviour.NEVER_LISTENS_NOR_ENDS), start_timeout='"1s"')
    assert "within 1 s" in said
    assert "does not listen" in said


NEVER_ACCEPTS = (
    "import socket, sys, time\n"
    "number = int(sys.argv[1])\n"
    "own = socket.socket(fileno=number) if sys.argv[2:] else socket.create_server(('127.0.0.1', number), backlog=511)\n"
    "time.sleep(600)\n"
)


@pytest.mark.parametrize("listener", [["{port}"], ["{fd}", "inherited"]])
def test_one_that_listens_and_never_accepts_gets_no_client(serving: Turnout, listener: list[str]) -> None:
    said = deploy(serving, [sys.executable, "-I", "-S", "-c", NEVER_ACCEPTS, *listener], start_timeout='"2s"')
    assert "within 2 s" in said
    assert "accept" in said


def test_one_that_listens_on_another_port_is_told_which_and_what_to_add(serving: Turnout) -> None:
    said = deploy(serving, misbehaving_command(Misbehaviour.LISTENS_ELSEWHERE))
    assert "listens on port" in said
    assert "{port}" in said


def test_one_that_forks_twice_is_told_to_stay_and_what_it_forked_is_ended(serving: Turnout) -> None:
    assert "foreground" in deploy(serving, misbehaving_command(Misbehaviour.FORKS_TWICE, "--ignore-term"))


def test_one_that_exits_and_leaves_grandchildren_in_other_sessions_leaves_none_of_them(serving: Turnout) -> None:
    deploy(serving, misbehaving_command(Misbehaviour.LEAVES_GRANDCHILDREN_AND_EXITS))


def test_one_that_needs_its_directory_says_so_in_its_log(serving: Turnout) -> None:
    assert "needed.txt is not in" in deploy(serving, misbehaving_command(Misbehaviour.NEEDS_A_FILE))


def test_one_that_accepts_and_hangs_fails_a_probe_that_asks(serving: Turnout) -> None:
    serving.configure(
        list(misbehaving_command(Misbehaviour.ACCEPTS_AND_HANGS)),
        version="bad",
        probe="expect",
        extra=r', send = "HEALTH\n", match = "ok"',
    )
    serving.tune(stop='{ grace = "500ms" }', start_timeout='"3s"')  # it has to listen before that, and to be asked
    said = serving.run("deploy", code=1).stderr
    assert "did not answer in time" in said
    assert "still serving" in said


def test_a_command_that_does_not_exist_or_may_not_run_touches_nothing(serving: Turnout, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("no program")
    generation = serving.snapshot().deployment.generation
    for command in ("/no/such/daemon", str(plain)):
        assert command in serving.run("deploy", "--", command, code=1).stderr
    assert serving.snapshot().deployment.generation == generation, "no rollout was begun"


@pytest.mark.parametrize(
    "how", [Misbehaviour.STARTS_SLOWLY, Misbehaviour.BINDS_EVERY_ADDRESS, Misbehaviour.SPEAKS_FIRST]
)
def test_one_that_is_merely_peculiar_is_served(turnout: Turnout, how: Misbehaviour) -> None:
    more = ("--start-delay", str(scaled(1, 60))) if how is Misbehaviour.STARTS_SLOWLY else ()
    turnout.configure(list(misbehaving_command(how, *more, version="odd")))
    turnout.tune(start_timeout='"120s"')
    turnout.run("up", timeout_s=150)
    assert ask(turnout.address) == ("hello" if how is Misbehaviour.SPEAKS_FIRST else "odd")


def test_one_that_finds_what_it_needs_in_its_directory_is_served(turnout: Turnout, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "needed.txt").touch()
    turnout.configure(list(misbehaving_command(Misbehaviour.NEEDS_A_FILE, version="odd")))
    turnout.tune(cwd='"sub"')
    turnout.run("up")
    assert ask(turnout.address) == "odd"


def test_one_that_prints_without_end_does_not_fill_the_disk(turnout: Turnout) -> None:
    size = scaled(64 << 20, 1 << 30)
    turnout.configure(list(misbehaving_command(Misbehaviour.PRINTS_A_LOT, "--spew", str(size), version="loud")))
    turnout.tune(start_timeout='"150s"')
    turnout.run("up", timeout_s=170)
    logs = turnout.home.service("default").logs
    bound = BOUND_BYTES + KEPT_BYTES
    eventually(lambda: sum(path.stat().st_size for path in logs.iterdir()) <= bound, why="its log was never cut")
    assert ask(turnout.address) == "loud"
    assert "loud, pid" in turnout.run("logs", "-n", "3").stdout, "what it said last is there, cut or not"


def test_a_daemon_that_ignores_term_is_killed_after_its_grace_and_not_before(turnout: Turnout) -> None:
    turnout.configure(list(misbehaving_command(Misbehaviour.IGNORES_TERM)))
    turnout.tune(stop='{ grace = "700ms" }')
    turnout.run("up")
    (boot_id,) = turnout.daemons()
    turnout.run("stop")
    record = turnout.home.service("default").record(boot_id)
    assert f'"status": {int(signal.SIGKILL)}' in record.read_text()


@pytest.mark.parametrize("verb", ["stop", "down"])
def test_grandchildren_of_a_daemon_end_with_it_and_processes_of_others_do_not(turnout: Turnout, verb: str) -> None:
    turnout.configure(list(misbehaving_command(Misbehaviour.LEAVES_GRANDCHILDREN)))
    turnout.tune(stop='{ grace = "500ms" }')
    turnout.run("up")
    grandchildren = turnout.everything() - {turnout.active()["pid"], turnout.router_pid()}
    assert len(grandchildren) == 2
    foreign = turnout.begin("status", "--json")  # any process that is not the daemon's
    os.kill(foreign.pid, signal.SIGSTOP)
    turnout.run(verb)
    eventually(lambda: not any(_runs(pid) for pid in grandchildren), why="grandchildren are left")
    os.kill(foreign.pid, signal.SIGCONT)
    foreign.communicate(timeout=60)
    assert foreign.returncode == 0


@pytest.mark.parametrize("verb", ["stop", "down"])
def test_a_grandchild_with_a_session_and_an_environment_of_its_own_ends_with_its_daemon(
    turnout: Turnout, tmp_path: Path, verb: str
) -> None:
    note = tmp_path / "pid"
    turnout.configure(["sh", "-c", f"{escape_to(note)}; exec {' '.join(line_daemon('--version', 'v1'))}"])
    turnout.run("up")
    pid = int(note.read_text())
    turnout.run(verb)
    assert not _runs(pid), "the verb is over when it is gone"


def test_a_candidate_that_exits_leaves_no_grandchild_with_a_session_and_an_environment_of_its_own(
    serving: Turnout, tmp_path: Path
) -> None:
    note = tmp_path / "pid"
    deploy(serving, ["sh", "-c", f"{escape_to(note)}; exit 3"])
    assert not _runs(int(note.read_text()))


def test_doctor_shows_what_a_dead_daemon_left_behind_and_down_ends_it(turnout: Turnout, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    turnout.configure(["sh", "-c", f"{escape_to(note)}; exec {' '.join(line_daemon('--version', 'v1'))}"])
    turnout.run("up")
    pid = int(note.read_text())
    turnout.kill(turnout.keeper_pid())  # nobody is there to end it
    turnout.kill(turnout.active()["pid"])
    said = turnout.run("doctor", code=1).stdout
    assert f"left behind: pid {pid} (sleep" in said
    assert f"kill {pid}" in said
    turnout.run("down")
    assert not _runs(pid)


def escape_to(note: Path) -> str:
    """A line of a shell that leaves a process without a parent, in a session of its own, with nothing of ours in it."""
    return f"env -i /bin/sh -c 'setsid sleep 600 & echo $! > {note}.new; mv {note}.new {note}'"


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def test_an_empty_table_of_misbehaviours_would_go_unnoticed() -> None:
    assert len({how.value for how in Misbehaviour}) == len(Misbehaviour)
    assert sys.executable in misbehaving_command(Misbehaviour.EXITS_AT_ONCE)


def test_one_that_went_to_the_background_and_does_not_listen_yet_is_told_to_stay(serving: Turnout) -> None:
    assert "foreground" in deploy(serving, misbehaving_command(Misbehaviour.FORKS_TWICE, "--never-listen"))
