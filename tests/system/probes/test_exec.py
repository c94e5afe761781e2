from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from probe_support import here
from process_support import Started, open_descriptors
from support import eventually
from turnout.core.model import Daemon, Identity
from turnout.system.probes.probe import ProbeResult, ProbeSpec, probe
from turnout.system.process import identify, is_alive

TIMEOUT_S = 20.0


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with ExitStack() as stack:
        yield replace(here(stack)[1], version="7.2")


@pytest.fixture
def started() -> Iterator[Started]:
    with Started() as found:
        yield found


def run(daemon: Daemon, *command: str, timeout_s: float = TIMEOUT_S, **more: str) -> ProbeResult:
    return probe(daemon, ProbeSpec("exec", command=command, **more), timeout_s=timeout_s)  # type: ignore[arg-type]  # cwd only


def written(path: Path) -> str:
    with suppress(OSError):
        return path.read_text()
    return ""


def test_exit_code_0_is_well(daemon: Daemon) -> None:
    assert run(daemon, "true").ok


def test_another_exit_code_is_unwell_with_the_last_line_it_said(daemon: Daemon) -> None:
    result = run(daemon, "sh", "-c", "echo first; echo the disk is full >&2; echo; exit 3")
    assert not result.ok
    assert "exit code 3" in result.reason
    assert result.reason.endswith("the disk is full")


def test_one_that_a_signal_ended_says_which(daemon: Daemon) -> None:
    result = run(daemon, "sh", "-c", "kill -TERM $$")
    assert not result.ok
    assert "SIGTERM" in result.reason


def test_one_that_a_real_time_signal_ended_is_unwell_too(daemon: Daemon) -> None:
    """An error in its place would end the router, which checks the daemon by it."""
    result = run(daemon, "sh", "-c", "kill -37 $$")
    assert not result.ok
    assert "SIGRTMIN+3" in result.reason


def test_it_is_told_of_the_daemon_and_of_nothing_that_an_outer_turnout_said(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TURNOUT_HOME", "/outer")
    monkeypatch.setenv("LISTEN_FDS", "3")
    wanted = f"{daemon.port} {daemon.port} {daemon.port} 127.0.0.1 {daemon.pid} boot 7.2 none none"
    line = "$PORT $TURNOUT_PORT $TURNOUT_HOST $TURNOUT_PID $TURNOUT_BOOT_ID $TURNOUT_VERSION"
    script = f'test "$1 {line} ${{TURNOUT_HOME:-none}} ${{LISTEN_FDS:-none}}" = "$2" || {{ env; exit 1; }}'
    result = run(daemon, "sh", "-c", script, "sh", "{port}", wanted)
    assert result.ok, result


def test_it_runs_in_its_directory_and_commands_may_be_relative_to_it(daemon: Daemon, tmp_path: Path) -> None:
    script = tmp_path / "check"
    script.write_text("#!/bin/sh\ntouch here\n")
    script.chmod(0o755)
    assert run(daemon, "./check", cwd=str(tmp_path)).ok
    assert (tmp_path / "here").exists()


@pytest.mark.parametrize("command", ["/no/such/check", "no-such-check", "/etc/hostname", "a\0b"])
def test_one_that_cannot_run_is_unwell_and_named(daemon: Daemon, command: str) -> None:
    result = run(daemon, command)
    assert not result.ok
    assert command in result.reason


def test_at_the_deadline_its_whole_group_is_killed(daemon: Daemon, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"trap '' TERM; sleep 600 & echo $! $$ > {pids}.new; mv {pids}.new {pids}; wait"
    result = run(daemon, "sh", "-c", script, timeout_s=2.0)
    assert not result.ok
    assert "in time" in result.reason
    numbers = [int(word) for word in eventually(lambda: written(pids)).split()]
    eventually(lambda: not any(_runs(pid) for pid in numbers), why="something of the check is left")


def test_what_it_leaves_behind_is_killed_and_not_waited_for(daemon: Daemon, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    result = run(daemon, "sh", "-c", f"sleep 600 & echo $! > {pid}")
    assert result.ok, result
    assert result.took_s < TIMEOUT_S
    eventually(lambda: not _runs(int(pid.read_text())), why="its grandchild is left")


def test_endless_output_does_not_block_it_and_is_not_kept(daemon: Daemon) -> None:
    code = "import sys\nfor _ in range(64): sys.stdout.write('x' * 65536)\nprint()\nprint('enough')\nsys.exit(2)"
    result = run(daemon, sys.executable, "-c", code)
    assert not result.ok
    assert result.reason.endswith("enough")
    assert len(result.reason) < 400


def test_one_that_closes_its_output_is_waited_for(daemon: Daemon) -> None:
    assert not run(daemon, "sh", "-c", "exec >&- 2>&-; sleep 0.1; exit 5").ok


def test_it_is_not_asked_where_another_program_has_the_port(daemon: Daemon, started: Started, tmp_path: Path) -> None:
    sleeper = started.run("sleep", "60")
    claimed = replace(daemon, identity=identify(sleeper.pid))
    result = run(claimed, "touch", str(tmp_path / "asked"))
    assert not result.ok
    assert not (tmp_path / "asked").exists()
    assert run(replace(daemon, identity=Identity()), "true").ok


def test_it_leaves_no_descriptor_and_no_zombie(daemon: Daemon) -> None:
    run(daemon, "true")
    before = open_descriptors()
    for _ in range(5):
        run(daemon, "true")
        run(daemon, "sleep", "60", timeout_s=0.05)
        run(daemon, "/no/such/check")
    assert open_descriptors() == before


def _runs(pid: int) -> bool:
    try:
        return is_alive(identify(pid))
    except ProcessLookupError:
        return False
