"""A daemon that is started again is the one that was deployed, whatever shell the keeper was once started from."""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from e2e_support import Turnout, ask, line_daemon
from support import eventually

# Says what it inherited, then becomes the daemon of the command line.
INHERITED = """\
#!/bin/sh
echo "$TOKEN $(umask) $(ulimit -Sn) $(pwd) ${TERM:-none} $0" > "$GOT"
exec "$@"
"""


class Shell:
    """A shell of its own: environment, umask, open-files limit."""

    def __init__(self, turnout: Turnout, token: str, *, umask: int, nofile: int) -> None:
        self.turnout = turnout
        self.directory = turnout.home.root.parent / token
        self.directory.mkdir(exist_ok=True)
        wrapper = self.directory / "wrapped"
        wrapper.write_text(INHERITED)
        wrapper.chmod(0o755)
        self.got = turnout.home.root.parent / "got"
        path = f"{self.directory}:{os.environ['PATH']}"
        more = {"PATH": path, "TOKEN": token, "GOT": str(self.got), "TERM": "xterm"}
        self.env: Mapping[str, str] = {**turnout.env, **more}
        self.expected = [token, f"{umask:04o}", str(nofile), str(turnout.home.root.parent), "none", str(wrapper)]
        self._umask = umask
        self._nofile = nofile

    def run(self, *args: str, code: int | None = 0) -> str:
        def become() -> None:
            os.umask(self._umask)
            resource.setrlimit(resource.RLIMIT_NOFILE, (self._nofile, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

        done = self.turnout.run(*args, env=self.env, preexec_fn=become, code=code)
        return done.stdout + done.stderr

    def deploy(self, version: str, *flags: str) -> str:
        return self.run("deploy", "--version", version, *flags, "--", "wrapped", *line_daemon("--version", version))

    def inherited(self) -> list[str]:
        return self.got.read_text().split()


@pytest.fixture
def shells(turnout: Turnout) -> tuple[Shell, Shell]:
    """Two; the service, and so the keeper, was brought up from the first."""
    one, two = Shell(turnout, "one", umask=0o077, nofile=300), Shell(turnout, "two", umask=0o022, nofile=900)
    address = ("--listen", f"127.0.0.1:{turnout.port}", "--observe", "0s")
    one.run("up", *address, "--version", "1", "--", "wrapped", *line_daemon("--version", "1"))
    assert one.inherited() == one.expected
    return one, two


def until_started_again(turnout: Turnout, before: str) -> None:
    eventually(lambda: turnout.snapshot().deployment.active_boot_id not in {"", before}, timeout_s=60)


def test_a_restart_and_a_rollback_are_what_was_deployed_and_a_typed_verb_records_anew(
    turnout: Turnout, shells: tuple[Shell, Shell]
) -> None:
    one, two = shells
    said = two.deploy("2")
    assert two.inherited() == two.expected
    assert "differs from generation 1: environment: PATH TOKEN changed; program " in said
    assert "umask 0077 -> 0022" in said
    assert "limit nofile 300/" in said
    two.got.unlink()
    active = turnout.active()
    turnout.kill(active["pid"])
    until_started_again(turnout, active["boot_id"])
    assert two.inherited() == two.expected, "the router's own environment is that of the first shell"
    two.run("rollback", "1")
    assert one.inherited() == one.expected
    one.run("refresh", "--recorded")
    assert one.inherited() == one.expected
    three = Shell(turnout, "three", umask=0o027, nofile=400)
    three.run("refresh")
    assert three.inherited() == [*three.expected[:5], three.expected[5]]
    private = [path for path in turnout.home.root.rglob("*") if path.is_file() and b"TOKEN" in path.read_bytes()]
    assert {path.parent.name for path in private} == {"contexts"}, "no log and no registry has it"
    assert {path.stat().st_mode & 0o777 for path in private} == {0o600}


def test_a_deploy_that_fails_changes_nothing_that_is_started_later(
    turnout: Turnout, shells: tuple[Shell, Shell]
) -> None:
    one, two = shells
    settings = turnout.home.service("default").settings
    before = settings.read_bytes()
    two.run(
        "deploy", "--observe", "7s", "--strategy", "recreate", "--version", "bad", "--", "wrapped", "false", code=None
    )
    assert ask(turnout.address) == "1"
    assert settings.read_bytes() == before
    one.run("deploy")
    assert ask(turnout.address) == "1", "the command of the failed deploy is not remembered"
    assert one.inherited() == one.expected


def test_a_version_alone_deploys_the_known_command_by_that_version(turnout: Turnout) -> None:
    turnout.run(
        "up", "--listen", f"127.0.0.1:{turnout.port}", "--observe", "0s", "--version", "1", "--", *line_daemon()
    )
    turnout.run("deploy", "--version", "2")
    assert turnout.active()["version"] == "2"
    turnout.run("up", "--version", "3")
    assert turnout.active()["version"] == "3"


def test_a_rollback_to_files_that_were_replaced_in_place_says_so(turnout: Turnout) -> None:
    directory = turnout.home.root.parent
    script = directory / "server.sh"

    def release(version: str) -> None:
        new = directory / "new"
        new.write_text(f"exec {' '.join(line_daemon('--version', version))}".replace("{port}", "$PORT"))
        new.replace(script)

    release("1")
    address = ("--listen", f"127.0.0.1:{turnout.port}", "--observe", "0s")
    turnout.run("up", *address, "--version", "1", "--", "sh", "server.sh")
    release("2")
    turnout.run("deploy", "--version", "2")
    assert "would warn: the files of build" in turnout.run("rollback", "--dry-run").stdout
    done = turnout.run("rollback")
    assert f"(version 1) changed since it was deployed: {script}" in done.stderr
    assert "not as it was deployed: the files of build" in turnout.run("history").stdout
    assert (turnout.active()["version"], ask(turnout.address)) == ("1", "2"), "it is back, with what its files are now"


def test_the_program_of_a_check_gets_the_environment_of_the_deploy_from_the_verb_and_from_the_router(
    turnout: Turnout, tmp_path: Path
) -> None:
    turnout.run("up", "--listen", f"127.0.0.1:{turnout.port}", "--", *line_daemon())  # starts keeper and router
    seen = tmp_path / "seen"
    check = f', command = ["sh", "-c", "echo $TURNOUT_VERSION $TOKEN >> {seen}"]'
    turnout.configure(
        line_daemon("--version", "2"),
        version="2",
        probe="exec",
        extra=check,
    )
    turnout.run("up", env={**turnout.env, "TOKEN": "deployed"})
    before = seen.read_text().count("2 deployed\n")
    assert before, "the verb's own checks"
    eventually(lambda: seen.read_text().count("2 deployed\n") > before + 2, why="those of the router")
    of_the_build = [line for line in seen.read_text().splitlines() if line.startswith("2")]
    assert set(of_the_build) == {"2 deployed"}


def test_a_variable_that_turnout_sets_is_the_operators_or_is_refused(turnout: Turnout) -> None:
    turnout.configure(["sh", "-c", f"echo $PORT $TURNOUT_PORT > got; exec {' '.join(line_daemon())}"])
    turnout.tune(env='{ PORT = "kept" }')
    turnout.run("up")
    assert (turnout.home.root.parent / "got").read_text().split() == ["kept", str(turnout.active()["port"])]
    turnout.tune(env='{ TURNOUT_PORT = "80" }')
    done = turnout.run("up", code=2)
    assert "env sets TURNOUT_PORT, which turnout sets itself" in done.stderr
    turnout.configure([sys.executable, str(Path(__file__).parents[1] / "support" / "fd_daemon.py"), "{fd}"])
    turnout.tune(env='{ LISTEN_PID = "1" }')
    assert "env sets LISTEN_PID" in turnout.run("config", code=2).stderr


def test_a_record_that_is_lost_or_damaged_is_no_reason_not_to_start_again(turnout: Turnout) -> None:
    turnout.run("up", "--listen", f"127.0.0.1:{turnout.port}", "--observe", "0s", "--", *line_daemon())
    (record,) = turnout.home.service("default").contexts.iterdir()
    record.write_bytes(json.dumps({"env": 5}).encode())
    active: dict[str, Any] = turnout.active()
    turnout.kill(active["pid"])
    until_started_again(turnout, active["boot_id"])
    assert ask(turnout.address)


def test_a_verb_that_starts_a_recorded_build_or_none_does_not_need_the_command_of_the_file(turnout: Turnout) -> None:
    """From cron, with a poorer PATH: `refresh`, `start` and `stop` start what is recorded, or nothing."""
    directory = turnout.home.root.parent / "programs"
    directory.mkdir()
    program = directory / "named-by-path"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m turnout.demo.daemon "$@"\n')
    program.chmod(0o755)
    turnout.configure(["named-by-path", "--port", "{port}", "--version", "v1"])
    turnout.run("up", "-q", env=turnout.env | {"PATH": f"{directory}:{os.environ['PATH']}"})
    for verb in ("refresh", "stop", "start"):
        turnout.run(verb, "--dry-run")
        turnout.run(verb, "-q")
    assert ask(turnout.address) == "v1"
    for more in ((), ("--dry-run",)):
        assert "no such command: named-by-path" in turnout.run("deploy", *more, code=1).stderr
