"""What the caller of a verb hands on to everything it starts: blocked and ignored signals, descriptors, a directory."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from e2e_support import Turnout, ask, line_daemon
from support import eventually
from turnout.system.process import identify, is_alive

LATE_FAILURE = '["sh", "-c", "sleep 0.2; exit 1"]'  # so late that it is waited for while it runs
TAKEN = (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


def blocks() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, TAKEN)


def ignores_children() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)


def status_of(pid: int, field: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1], 16)


@pytest.mark.parametrize("handed_on", [blocks, ignores_children])
def test_signals_that_the_caller_blocks_or_ignores_reach_keeper_router_and_daemon(
    turnout: Turnout, handed_on: object
) -> None:
    turnout.configure(line_daemon("--version", "v1"), observe="200ms")
    turnout.run("up", preexec_fn=handed_on)
    pids = [turnout.keeper_pid(), turnout.router_pid(), turnout.active()["pid"]]
    mask = sum(1 << (number - 1) for number in TAKEN)
    assert [status_of(pid, "SigBlk") & mask for pid in pids] == [0, 0, 0]
    assert [status_of(pid, "SigIgn") & 1 << (signal.SIGCHLD - 1) for pid in pids] == [0, 0, 0]
    turnout.kill(pids[1])
    eventually(lambda: turnout.router_pid() not in {0, pids[1]}, timeout_s=60)
    assert ask(turnout.address) == "v1"
    keeper = identify(pids[0])
    turnout.run("down")
    eventually(lambda: not is_alive(keeper))


def test_a_health_command_that_fails_is_seen_where_the_caller_ignores_its_children(
    turnout: Turnout,
) -> None:
    """The kernel would reap it, and "no such child" would be taken for exit code 0 (wait(2), NOTES)."""
    turnout.configure(line_daemon("--version", "v1"), probe="exec", extra=f", command = {LATE_FAILURE}")
    turnout.tune(start_timeout='"3s"')
    failed = turnout.run("up", preexec_fn=ignores_children, code=None)
    assert failed.returncode != 0, "it was taken for well"


def test_a_working_directory_that_was_removed_is_said(turnout: Turnout, tmp_path: Path) -> None:
    turnout.configure(line_daemon("--version", "v1"), observe="200ms")
    turnout.run("up")
    gone = tmp_path / "gone"
    gone.mkdir()

    def stands_nowhere() -> None:
        os.chdir(gone)
        gone.rmdir()

    failed = turnout.run("deploy", "--", *line_daemon("--version", "v2"), preexec_fn=stands_nowhere, code=2)
    assert "Traceback" not in failed.stderr
    assert "the working directory was deleted" in failed.stderr
    assert ask(turnout.address) == "v1"


def test_a_keeper_stands_in_no_directory_of_its_caller(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"), observe="200ms")
    turnout.run("up")
    assert str(Path(f"/proc/{turnout.keeper_pid()}/cwd").readlink()) == "/"


def test_a_verb_whose_streams_are_closed_starts_all_the_same(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"), observe="200ms")

    for verb in ("up", "status"):
        process = subprocess.Popen(
            ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *turnout.argv(verb)],
            cwd=turnout.home.root.parent,
            env=turnout.env,
        )
        assert process.wait(90) == 0
    assert ask(turnout.address) == "v1"
    for pid in (turnout.keeper_pid(), turnout.router_pid()):
        for number in (0, 1, 2):
            assert not str(Path(f"/proc/{pid}/fd/{number}").readlink()).startswith("socket:")
