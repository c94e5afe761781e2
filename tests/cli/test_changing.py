"""--dry-run says what would happen and changes nothing; --if-generation fences; Ctrl-C leaves a consistent state."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from click.testing import CliRunner

from e2e_support import Turnout, ask, line_daemon
from support import eventually
from turnout.cli import cli
from turnout.core.deployment import begin_deploy
from turnout.core.model import Cause, State
from turnout.errors import TurnoutError
from turnout.system.net.ports import choose_port
from turnout.system.net.sockets import who_listens
from turnout.system.process import own_identity


def state_of(turnout: Turnout) -> dict[str, bytes]:
    """Every file that says what is, byte for byte; logs and the sockets' own files are no state."""
    root = turnout.home.root
    skip = {".log", ".sock", ".lock"}
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.suffix not in skip
    }


def inside(turnout: Turnout, *args: str, code: int) -> str:
    """Run a verb in this process, which spares an interpreter's start; answers its output, or its one-line error."""
    file = turnout.home.root.parent / "turnout.toml"
    config = {"TURNOUT_CONFIG": str(file)} if file.exists() else {}
    unset: dict[str, str | None] = {key: None for key in os.environ if key.startswith("TURNOUT_")}
    done = CliRunner().invoke(cli, args, env=unset | turnout.env | config)
    if isinstance(done.exception, TurnoutError):
        assert done.exception.exit_code == code, done.exception
        assert done.exception.hint
        return done.exception.message
    assert done.exit_code == code, done.output
    return done.stdout


def would(turnout: Turnout, *args: str, code: int = 0) -> str:
    """What a verb says with --dry-run, having proven that nothing came of it."""
    files, processes = state_of(turnout), set(turnout.processes())
    verb, *rest = args
    said = inside(turnout, verb, "--dry-run", *rest, code=code)
    assert state_of(turnout) == files
    assert set(turnout.processes()) == processes
    assert code or all(line.startswith("would ") for line in said.splitlines())
    return said


def test_a_dry_run_before_anything_runs_tells_it_and_makes_not_even_a_directory(turnout: Turnout) -> None:
    said = would(turnout, "up", "--listen", f"127.0.0.1:{turnout.port}", "--", *line_daemon("--version", "v1"))
    assert not turnout.home.root.exists()
    for part in (
        "start a keeper and a router",
        f"listen on 127.0.0.1:{turnout.port}",
        "begin generation 1 (start)",
        "turnout.demo.daemon",
        "probe it (alive)",
        "switch new connections to it",
    ):
        assert part in said
    assert "no-such-daemon" in would(turnout, "up", "--", "no-such-daemon", code=1)
    loop = ["server", "--port", str(turnout.port)]
    assert "names port" in would(turnout, "up", "--listen", f"127.0.0.1:{turnout.port}", "--", *loop, code=2)
    with socket.create_server(turnout.address):
        listen = f"127.0.0.1:{turnout.port}"
        assert "is in use by pid" in would(turnout, "up", "--listen", listen, "--", *line_daemon(), code=1)
    assert "no service" in would(turnout, "stop", code=4)


def test_a_dry_run_of_each_verb_tells_what_the_verb_then_does(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    active = turnout.active()["boot_id"]
    assert would(turnout, "up") == "would do nothing: it is so already\n"
    assert f"from {active}" in would(turnout, "refresh")
    assert "begin generation 2 (refresh)" in would(turnout, "refresh")
    turnout.configure(line_daemon("--version", "v2"), version="v2", observe="10m")
    said = would(turnout, "deploy")
    assert "take over changed settings: observe_s 0.6 -> 600.0" in said
    assert f"switch new connections from {active}" in said
    assert "watch it for 600 s; 3 failed checks in a row bring the previous one back" in said
    assert "there is no earlier build" in would(turnout, "rollback", code=2)
    turnout.run("deploy", "--detach")
    assert f"switch back to {active}" in would(turnout, "rollback")
    assert "the rollout of generation 2 is still observed" in would(turnout, "deploy", code=6)
    assert "begin generation 3 (deploy)" in would(turnout, "deploy", "--supersede")
    assert "hold new connections" in would(turnout, "pause")
    assert would(turnout, "resume") == "would do nothing: it is so already\n"
    assert would(turnout, "drain") == "would do nothing: it is so already\n"
    assert f"stop {turnout.active()['boot_id']}" in would(turnout, "stop")
    assert "was started by turnout" in would(turnout, "detach", code=2)
    said = would(turnout, "down")
    assert f"end router (pid {turnout.router_pid()}) and keeper (pid {turnout.keeper_pid()})" in said
    assert f"close 127.0.0.1:{turnout.port}" in said
    assert ask(turnout.address) == "v2"


def test_a_dry_run_of_attach_names_the_daemon_and_its_process(turnout: Turnout) -> None:
    with choose_port(avoid={turnout.port}) as reserved:
        port = reserved.port
        command = [sys.executable, "-P", "-m", "turnout.demo.daemon", "--port", str(port)]
        foreign = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        eventually(lambda: who_listens("127.0.0.1", port))
        listen = ("--listen", f"127.0.0.1:{turnout.port}")
        assert f"(pid {foreign.pid}) on 127.0.0.1:{port}" in would(turnout, "attach", *listen, f"127.0.0.1:{port}")
        own = f"127.0.0.1:{turnout.port}"
        assert "the service's own address" in would(turnout, "attach", *listen, own, code=2)
    finally:
        foreign.kill()
        foreign.wait()
    assert "nothing listens on" in would(turnout, "attach", *listen, f"127.0.0.1:{port}", code=3)


@pytest.mark.parametrize(
    ("flag", "value"), [("--listen", "here"), ("--plane", "warp"), ("--strategy", "canary"), ("--observe", "soon")]
)
def test_each_setting_that_has_a_flag_counts_for_a_service_that_attach_sets_up(
    turnout: Turnout, flag: str, value: str
) -> None:
    assert repr(value) in would(turnout, "attach", "127.0.0.1:1", flag, value, code=2)


@pytest.mark.parametrize("dry", [True, False], ids=["dry-run", "in earnest"])
def test_a_verb_for_another_generation_changes_nothing(turnout: Turnout, dry: bool) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    before = turnout.registry.path.read_bytes()
    processes = set(turnout.processes())
    for verb in ("up", "deploy", "refresh", "stop", "pause", "resume", "drain", "rollback", "start", "down"):
        said = inside(turnout, verb, "--if-generation", "7", *(["--dry-run"] if dry else []), code=6)
        assert "the deployment stands at generation 1" in said, verb
    assert turnout.registry.path.read_bytes() == before
    assert set(turnout.processes()) == processes
    turnout.run("pause", "--if-generation", "1")
    assert turnout.status()["desired"] == "paused"


@pytest.mark.parametrize("verb", ["up", "status", "history", "wait", "logs"])
def test_ctrl_c_ends_with_130_and_one_line(turnout: Turnout, verb: str, tmp_path: Path) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    if verb == "up":
        turnout.configure(line_daemon("--version", "v1", "--start-delay", "600"))
        process = turnout.begin("up")
        eventually(lambda: turnout.home.service_names() and turnout.daemons(), why="no candidate")
    else:
        turnout.run("up")
        flags = {"status": ["--watch"], "history": ["-f"], "logs": ["-f"], "wait": ["--for", "generation=9"]}[verb]
        process = turnout.begin(verb, *flags)
        # it has begun once Python's own handler stands, which the first output or a wait proves
        eventually(lambda: _handles_int(process.pid), why="it never began")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    # click ends the line on which a terminal shows ^C
    lines = [line for line in said.splitlines() if line and not line.startswith("[")]
    assert lines == ["turnout: interrupted", "hint: turnout status tells how things stand"]
    if verb == "up":
        assert turnout.snapshot().deployment.state is State.IDLE
        eventually(lambda: not turnout.processes(), why="something is left")


def _handles_int(pid: int) -> bool:
    """Whether it catches SIGTERM, which main() does before all else: proc_pid_status(5), SigCgt."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
    return False


def test_progress_is_quiet_or_whole_as_asked(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    assert turnout.run("up", "-q").stderr == ""
    said = turnout.run("refresh", "-v").stderr
    assert "] mark " in said
    assert "] unlock" in said
    assert "] mark " not in turnout.run("refresh").stderr


def test_wait_ends_when_it_is_so_and_with_124_when_not(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("wait", "--timeout", "0s", code=124)
    waiting = turnout.begin("wait", "--for", "healthy", "--for", "generation=1")
    turnout.run("up")
    said, _ = waiting.communicate(timeout=60)
    assert (waiting.returncode, said) == (0, "default is healthy and generation=1\n")
    turnout.run("wait", "-q", "--for", "idle")
    outcome = turnout.registry.update(lambda s: begin_deploy(s, "next", owner=own_identity(), cause=Cause.DEPLOY))
    assert outcome.applied
    done = turnout.run("wait", "--for", "idle", "--timeout", "10ms", code=124)
    assert "is not idle after 0.01 s (generation 2, starting)" in done.stderr
    assert "cannot wait for 'lunch'" in turnout.run("wait", "--for", "lunch", code=2).stderr
    turnout.run("wait", "--service", "nobody", code=4)


def test_watch_shows_rates_and_goes_on(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    watch = turnout.begin("status", "--watch", "--every", "50ms")
    assert watch.stdout is not None
    while "B/s in" not in (line := watch.stdout.readline()):
        assert line, "it ended"
    watch.send_signal(signal.SIGINT)
    watch.communicate(timeout=20)
    assert watch.returncode == 130
    assert "50ms..1h" in turnout.run("status", "--watch", "--every", "0s", code=2).stderr


@pytest.mark.parametrize("colour", [True, False], ids=["colour", "NO_COLOR"])
def test_watch_draws_on_a_terminal_and_leaves_it_as_it_was(turnout: Turnout, colour: bool) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 160, 0, 0))
    env = turnout.env | {"TERM": "xterm-256color"} | ({} if colour else {"NO_COLOR": "1"})
    env.pop("COLUMNS", None)
    try:
        process = subprocess.Popen(
            turnout.argv("status", "--watch", "--every", "50ms"),
            env=env,
            cwd=turnout.home.root.parent,
            stdin=theirs,
            stdout=theirs,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    finally:
        os.close(theirs)
    try:
        drawn = b""
        while drawn.count(b"generation 1") < 3:
            drawn += os.read(ours, 65536)
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):  # EIO: the other end is closed, pty(7)
            while more := os.read(ours, 65536):
                drawn += more
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.communicate()
        os.close(ours)
    assert b"\x1b[?1049h" in drawn, "it draws on a screen of its own"
    assert drawn.rindex(b"\x1b[?1049l") > drawn.rindex(b"\x1b[?1049h"), "and gives the old one back"
    green = re.search(rb"\x1b\[[0-9;]*32m", drawn)
    assert bool(green) is colour
