"""Wrong input: one clear line, a hint, the right exit code, nothing started, nothing left over."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from e2e_support import Turnout, ask, line_daemon
from support import eventually
from turnout.control.keeper_client import KeeperClient
from turnout.errors import NotRunningError
from turnout.testing import free_port


def assert_one_line(stderr: str) -> str:
    """The error is one line, with a hint below it; answers the line."""
    lines = [line for line in stderr.splitlines() if not line.startswith(("[", "  |"))]
    assert len(lines) == 2, stderr
    assert lines[0].startswith("turnout: ")
    assert lines[1].startswith("hint: ")
    return lines[0]


def assert_nothing_left(turnout: Turnout) -> None:
    eventually(lambda: not turnout.processes(), why="a process of the failed verb is left")
    with pytest.raises(NotRunningError):
        KeeperClient.connect(turnout.home)
    assert not turnout.listening()


def _listen(turnout: Turnout) -> tuple[str, str]:
    return "--listen", f"127.0.0.1:{turnout.port}"


def test_a_command_that_does_not_exist_starts_nothing(turnout: Turnout) -> None:
    done = turnout.run("up", *_listen(turnout), "--", "no-such-daemon", "--port", "{port}", code=1)
    assert "no-such-daemon" in assert_one_line(done.stderr)
    assert_nothing_left(turnout)


def test_a_command_that_is_not_executable_starts_nothing(turnout: Turnout, tmp_path: Path) -> None:
    plain = tmp_path / "plain.txt"
    plain.write_text("not a program")
    done = turnout.run("up", *_listen(turnout), "--", str(plain), code=1)
    assert str(plain) in assert_one_line(done.stderr)
    assert_nothing_left(turnout)


def test_a_port_in_use_is_reported_with_the_process_that_has_it(turnout: Turnout) -> None:
    with socket.create_server(turnout.address):
        done = turnout.run("up", *_listen(turnout), "--", *line_daemon(), code=1)
    line = assert_one_line(done.stderr)
    assert f"pid {os.getpid()}" in line
    assert str(turnout.port) in line
    assert_nothing_left(turnout)


def test_a_service_nobody_knows_is_exit_code_4(turnout: Turnout) -> None:
    for verb in ("refresh", "stop", "start", "rollback", "logs", "down", "up"):
        done = turnout.run(verb, "--service", "nobody", code=4)
        assert "nobody" in assert_one_line(done.stderr)
    turnout.run("status", "--service", "nobody", code=4)
    assert_nothing_left(turnout)


def test_malformed_toml_is_reported_by_line_and_column(turnout: Turnout) -> None:
    (turnout.home.root.parent / "turnout.toml").write_text('[service.default]\ncommand = ["a", \nlisten = 1\n')
    done = turnout.run("up", code=2)
    line = assert_one_line(done.stderr)
    assert "turnout.toml" in line
    assert "line 3" in line
    assert "column" in line
    assert_nothing_left(turnout)


def test_an_unknown_key_names_the_nearest_known_one(turnout: Turnout) -> None:
    (turnout.home.root.parent / "turnout.toml").write_text('[service.default]\ncomand = ["a"]\n')
    done = turnout.run("up", code=2)
    assert "'comand'" in assert_one_line(done.stderr)
    assert "'command'" in done.stderr


def test_a_home_that_cannot_be_written_is_one_clear_error(turnout: Turnout, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o555)
    # root ignores modes, so the verb runs as a root without capabilities (CAP_DAC_OVERRIDE is the one that does)
    prefix = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*prefix, *turnout.argv("up", *_listen(turnout), "--", *line_daemon())],
        env={**turnout.env, "TURNOUT_HOME": str(locked / "home")},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert str(locked) in assert_one_line(done.stderr)
    assert not turnout.listening()


def test_a_daemon_that_listens_elsewhere_is_told_apart_and_the_flag_is_named(turnout: Turnout) -> None:
    elsewhere = str(free_port())
    command = [sys.executable, "-P", "-m", "turnout.demo.daemon", "--port", elsewhere]
    done = turnout.run("up", *_listen(turnout), "--", *command, code=1)
    line = assert_one_line(done.stderr)
    assert elsewhere in line
    assert "{port}" in done.stderr
    assert_nothing_left(turnout)


def test_a_first_daemon_that_exits_leaves_nothing_and_shows_its_log(turnout: Turnout) -> None:
    done = turnout.run("up", *_listen(turnout), "--", "sh", "-c", "echo cannot find my hat; exit 7", code=1)
    assert "cannot find my hat" in done.stderr
    assert "7" in assert_one_line(done.stderr)
    assert_nothing_left(turnout)


def test_a_failed_candidate_leaves_the_active_daemon_untouched(turnout: Turnout) -> None:
    turnout.run("up", *_listen(turnout), "--", *line_daemon("--version", "v1"))
    before = turnout.active()
    done = turnout.run("deploy", "--", "sh", "-c", "exit 3", code=1)
    assert "still serving" in assert_one_line(done.stderr)
    assert turnout.active()["pid"] == before["pid"]
    assert len(turnout.daemons()) == 1
    assert list(turnout.snapshot().daemons) == [before["boot_id"]]
    assert ask(turnout.address) == "v1"


def test_an_address_beyond_loopback_is_refused(turnout: Turnout) -> None:
    done = turnout.run("up", "--listen", f"0.0.0.0:{turnout.port}", "--", *line_daemon(), code=2)
    assert "loopback" in assert_one_line(done.stderr)


def test_ctrl_c_during_a_start_takes_the_candidate_back(turnout: Turnout) -> None:
    turnout.run("up", *_listen(turnout), "--", *line_daemon("--version", "v1"))
    before = turnout.active()
    deploy = turnout.begin("deploy", "--", *line_daemon("--version", "v2", "--start-delay", "60"))
    eventually(lambda: len(turnout.daemons()) == 2, why="no candidate")
    deploy.send_signal(2)
    _, said = deploy.communicate(timeout=60)
    assert deploy.returncode == 130, said
    assert len(turnout.daemons()) == 1
    assert turnout.active()["pid"] == before["pid"]
    turnout.run("deploy", "--observe", "200ms", "--", *line_daemon("--version", "v2"))


def test_two_ups_at_once_start_one_daemon(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    both = [turnout.begin("up") for _ in range(2)]
    for process in both:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
    assert len(turnout.daemons()) == 1
