"""An installation of 0.1.0 is replaced by this version under load, first its router, then its keeper."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from e2e_support import Turnout, ask, under_load
from programs import missing
from support import eventually
from turnout import __version__
from turnout.config.settings import load_settings
from turnout.core.model import State

ROOT = Path(__file__).parents[2]
RELEASED = "bb15576"  # 0.1.0
FROM = "0.1.0"


class Installed(Turnout):
    """The command line of an environment of its own."""

    python = sys.executable

    def argv(self, *args: str) -> list[str]:
        return [self.python, "-P", "-m", "turnout", *args]

    def status(self, service: str = "default") -> dict[str, Any]:
        """As the installed version has it: a router of 0.1.0 is asked by its own command line."""
        (found,) = json.loads(self.run("status", "--json", "--service", service).stdout)["services"]
        return dict(found)


def source_of(commit: str, target: Path) -> Path:
    """The files of a commit. Skips the test where the history of the project is not there."""
    made = subprocess.run(["git", "-C", str(ROOT), "archive", commit], capture_output=True, timeout=60, check=False)
    if made.returncode:
        missing("git", f"no commit {commit} here: the test installs it")
    with tarfile.open(fileobj=io.BytesIO(made.stdout)) as archive:
        archive.extractall(target, filter="data")
    return target


def install(python: str, *what: str) -> None:
    done = subprocess.run(
        [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *what],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.timeout(600)
def test_an_upgrade_in_place_refuses_nobody_and_keeps_registry_and_settings(turnout: Turnout, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "env")], timeout=240, check=True)
    old = Installed(turnout.home.root, turnout.port)
    old.python = str(tmp_path / "env" / "bin" / "python")
    install(old.python, str(source_of(RELEASED, tmp_path / "released")))
    command = [old.python, "-P", "-m", "turnout.demo.daemon", "--port", "{port}", "--version", "v1"]
    old.configure(command, version="v1", observe="0s", deadline="7m")
    old.run("up")
    assert old.run("--version").stdout.split()[-1] == FROM
    before, keeper, router = old.active(), old.keeper_pid(), old.router_pid()

    with under_load(turnout) as load:
        install(old.python, "--force-reinstall", "--no-deps", str(ROOT))  # what pip install -U turnout does
        old.run("router", "--replace")
        assert old.router_pid() != router
        old.run("router", "--replace")  # a router of this version is replaced by a keeper of the earlier one, too
        old.kill(keeper, signal.SIGKILL)
        old.run("up")
        assert old.keeper_pid() != keeper
        goal = load.made + 200
        eventually(lambda: load.made > goal, why="clients do not get on")

    assert old.run("--version").stdout.split()[-1] == __version__
    after = old.active()
    assert (after["boot_id"], after["pid"], after["version"]) == (before["boot_id"], before["pid"], "v1")
    assert load_settings(turnout.home.service("default").settings.read_bytes()).drain_deadline_s == 420
    old.configure([*command[:-1], "v2"], version="v2", observe="0s", deadline="7m")
    old.run("deploy")
    assert ask(turnout.address) == "v2"
    assert old.snapshot().deployment.state is State.IDLE
    assert before["boot_id"] in old.run("history").stdout
