"""Others on the machine, and daemons that lie: refused or spelled out, and said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner

from e2e_support import Turnout, ask, line_daemon
from process_support import Started
from registry_support import write_both
from support import eventually
from turnout.cli import cli
from turnout.config.settings import Settings, dump_settings, parse_address
from turnout.core.deployment import begin_deploy, mark_candidate_healthy, switch_active
from turnout.core.membership import register_daemon
from turnout.core.model import Daemon, Deployment, Snapshot
from turnout.core.outcome import Outcome
from turnout.state.home import Home
from turnout.state.journal import Journal
from turnout.system.process import identify, own_identity

NOBODY = 65534
EVIL = "v1\x1b[2J\x1b]0;owned\x07\r\nturnout: all is well\u202e"
# The interpreter may lie where nobody may look: the child keeps the modules that root loaded, and gives up its rights.
STRANGER = """
import os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
sock = socket.socket(socket.AF_UNIX)
sock.settimeout(20)
try:
    sock.connect(sys.argv[1])
    sock.sendall(b'{"op":"status","id":1,"fds":0}\\n')
    answer = sock.recv(65536)
except PermissionError:
    print("may not connect")
except OSError:
    print("turned away")
else:
    print(answer or "turned away")
"""


def _says(log: Path, words: str) -> bool:
    return words in log.read_text()


def stranger(path: Path) -> str:
    """What a process of uid nobody gets from a control socket."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", STRANGER, str(path)], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.strip()


@pytest.mark.skipif(os.geteuid() != 0, reason="it takes root to be somebody else")
def test_another_user_is_kept_out_by_modes_and_by_the_peers_uid(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    sockets = (turnout.home.router_sock, turnout.home.keeper_sock)
    assert [stranger(path) for path in sockets] == ["may not connect"] * 2
    for directory in (turnout.home.root, *turnout.home.root.parents):
        if directory.owner() == "root" and directory != Path("/") and "pytest" in str(directory):
            directory.chmod(0o755)
    for path in sockets:
        path.chmod(0o666)
        assert stranger(path) == "turned away", path
    for log in (turnout.home.router_log, turnout.home.keeper_log):
        eventually(partial(_says, log, "of uid 65534 was turned away"), why=f"not said in {log}")
    found = json.loads(turnout.run("doctor", "--json", code=1).stdout)["findings"]
    bad = {one["check"] for one in found if one["verdict"] == "bad"}
    assert {"home", "modes"} <= bad, "a home that others may look into is said"
    assert ask(turnout.address) == "v1"
    turnout.run("doctor", "--fix")
    assert [stranger(path) for path in sockets] == ["may not connect"] * 2


@pytest.mark.skipif(os.geteuid() != 0, reason="it takes root to be somebody else")
def test_the_socket_is_refused_before_anything_that_was_sent_is_read(turnout: Turnout) -> None:
    """A stranger that says shutdown is not heard."""
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    for directory in (turnout.home.root, *turnout.home.root.parents):
        if "pytest" in str(directory):
            directory.chmod(0o755)
    turnout.home.keeper_sock.chmod(0o666)
    code = STRANGER.replace('"op":"status"', '"op":"shutdown"')
    subprocess.run(
        [sys.executable, "-P", "-c", code, str(turnout.home.keeper_sock)], capture_output=True, timeout=60, check=True
    )
    assert ask(turnout.address) == "v1"
    assert turnout.keeper_pid() > 0


def test_a_home_that_others_may_look_into_is_said_in_the_log(turnout: Turnout) -> None:
    turnout.home.create()
    turnout.home.root.chmod(0o755)
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    assert f"{turnout.home.root} has mode 0755: others can look" in turnout.home.keeper_log.read_text()
    turnout.run("doctor", "--fix")
    turnout.run("down")
    said = turnout.home.keeper_log.read_text().count("has mode")
    turnout.run("up")
    assert turnout.home.keeper_log.read_text().count("has mode") == said, "mended, it is not said again"


@pytest.fixture
def lying(tmp_path: Path) -> Home:
    """A home whose daemon's name, version and reasons are an attack on the terminal."""
    home = Home(tmp_path / "home")
    service = home.service("default")
    service.create()
    service.settings.write_bytes(dump_settings(Settings(name="default", listen=(parse_address("127.0.0.1:47777"),))))
    with Started() as started:
        daemon = started.demo().daemon
        boot_id = f"boot{EVIL}"
        evil = Daemon(boot_id, host="127.0.0.1\x1b[31m", port=daemon.port, identity=daemon.identity, version=EVIL)
        block = Deployment(generation=3, active_boot_id=boot_id, revision=9, rollback_reason=f"it said {EVIL}")
        write_both(service.registry, Snapshot({boot_id: evil}, deployment=block))
        journal = Journal(service.journal)
        journal.write("switch", generation=3, revision=8, active=boot_id)
        journal.write("health_failure", generation=3, revision=9, boot_id=boot_id, evidence=EVIL, streak="1")
        journal.write(f"made up {EVIL}", generation=3, revision=9, **{f"key{EVIL}": EVIL})
        return home


@pytest.mark.parametrize(
    "args",
    [["status"], ["status", "-v"], ["status", "--color", "never"], ["history"], ["why", "3"], ["doctor", "-v"],
     ["registry", "show"], ["registry", "validate"], ["config"], ["drain", "--dry-run"], ["stop", "--dry-run"]],
    ids=" ".join,
)  # fmt: skip
def test_no_control_character_of_a_daemon_reaches_the_terminal(lying: Home, args: list[str]) -> None:
    done = CliRunner().invoke(cli, args, env={"TURNOUT_HOME": str(lying.root)})
    said = done.output + str(done.exception or "")
    assert all(char.isprintable() for line in said.split("\n") for char in line), repr(said)
    assert not any(line.startswith("turnout: all is well") for line in said.splitlines())
    if args[0] in {"status", "history", "why"}:
        assert "\\x1b[2J" in said


def test_json_carries_it_as_it_is_but_escaped(lying: Home) -> None:
    done = CliRunner().invoke(cli, ["status", "--json"], env={"TURNOUT_HOME": str(lying.root)})
    (service,) = json.loads(done.output)["services"]
    assert service["daemons"][0]["version"] == EVIL
    assert "\x1b" not in done.output


def test_the_end_of_a_daemons_log_in_an_error_is_spelled_out(turnout: Turnout) -> None:
    listen = f"127.0.0.1:{turnout.port}"
    done = turnout.run("up", "--listen", listen, "--", "sh", "-c", r"printf '\033[2Jgone\n'; exit 7", code=1)
    assert "\x1b" not in done.stderr
    assert "  | \\x1b[2Jgone" in done.stderr


def test_a_version_from_the_command_line_is_spelled_out_too(turnout: Turnout) -> None:
    listen = f"127.0.0.1:{turnout.port}"
    done = turnout.run("up", "--listen", listen, "--version", "v\x1b[31m", "--", *line_daemon("--version", "v1"))
    assert "\x1b" not in done.stdout + done.stderr
    assert "v\\x1b[31m" in done.stdout


def test_no_daemon_writes_lines_of_its_own_into_the_routers_log(turnout: Turnout) -> None:
    """Its key in the registry is any text that a program put there."""
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")

    def write(change: Callable[[Snapshot], Outcome]) -> None:
        assert turnout.registry.update(change).applied

    with Started() as started:
        demo = started.demo()
        evil = replace(demo.daemon, boot_id=f"boot{EVIL}", version=EVIL, owned=False)
        # in this order: the router forgets an entry that nothing names and nobody is connected to
        write(lambda snap: begin_deploy(snap, evil.boot_id, owner=own_identity()))
        write(lambda snap: register_daemon(snap, evil))
        write(lambda snap: mark_candidate_healthy(snap, 2, evil.boot_id))
        write(lambda snap: switch_active(snap, 2, evil.boot_id, now=time.time()))
    eventually(lambda: "boot" + r"v1\x1b[2J" in turnout.home.router_log.read_text(), why="it is not spoken of")
    said = turnout.home.router_log.read_bytes().decode()
    assert all(char.isprintable() for line in said.split("\n") for char in line)
    assert not any(line.startswith("turnout:") for line in said.split("\n"))


def test_environment_values_are_masked_wherever_settings_are_shown(turnout: Turnout) -> None:
    turnout.configure(line_daemon())
    path = turnout.home.root.parent / "turnout.toml"
    path.write_text(path.read_text() + '[service.default.env]\nTOKEN = "hunter2"\n')
    for args in (("config",), ("config", "--json"), ("up", "--dry-run"), ("doctor", "--json")):
        done = turnout.run(*args, code=None)
        assert "hunter2" not in done.stdout + done.stderr, args
    assert "TOKEN" in turnout.run("config").stdout


def test_a_process_of_ours_is_identified_before_doctor_ends_it(tmp_path: Path) -> None:
    """--fix ends a stray by its identity: a number that went to somebody else is left alone."""
    with Started() as started:
        process = started.run("sleep", "300")
        identity = identify(process.pid)
        home = Home(tmp_path / "home")
        home.service("default").create()
        record = home.service("default").record("lost")
        told = {
            "boot_id": "lost",
            "service": "default",
            "pid": identity.pid,
            "start_ticks": identity.start_ticks + 1,
            "machine_boot_id": identity.machine_boot_id,
            "pid_ns": identity.pid_ns,
            "log": "x",
            "spawned_ts": 1.0,
        }
        record.write_text(json.dumps(told))
        done = CliRunner().invoke(cli, ["doctor", "--fix", "--json"], env={"TURNOUT_HOME": str(home.root)})
        assert json.loads(done.stdout)["fixed"] == []
        assert process.poll() is None
