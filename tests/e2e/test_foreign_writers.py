"""The file is the interface: other programs edit it beside a running turnout, rightly and wrongly."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from e2e_support import Turnout, ask, edit, line_daemon, retarget
from support import eventually
from turnout.core.model import Deployment
from turnout.demo.load import Load, line_exchange
from turnout.state.registry.decoder import loads


@pytest.fixture
def theirs() -> Iterator[int]:
    """A daemon that turnout knows nothing of; its port."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    argv = [word.replace("{port}", str(port)) for word in line_daemon("--version", "theirs")]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: _answers(port), why="their daemon does not listen")
        yield port
    finally:
        process.kill()
        process.wait(20)


def _answers(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def _followed(turnout: Turnout) -> int:
    return [entry["event"] for entry in turnout.journal()].count("followed")


def test_a_foreign_program_retargets_by_renaming_the_file_and_no_connection_is_dropped(
    turnout: Turnout, theirs: int
) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    ours = turnout.active()["boot_id"]
    path = turnout.registry.path
    switches = 10
    with socket.create_connection(turnout.address, 20) as lasting:
        lines = lasting.makefile("rw")
        load = Load(turnout.address, line_exchange)
        load.start()
        try:
            for number in range(switches):
                there, version = (ours, "v1") if number % 2 else ("theirs", "theirs")
                edit(path, retarget(there, theirs if there == "theirs" else 0))
                eventually(lambda version=version: ask(turnout.address) == version, why=f"not retargeted: {number}")  # type: ignore[misc]  # bound by default
                # two edits in a row may be put right as one
                eventually(lambda most=number + 1: _followed(turnout) == most)  # type: ignore[misc]  # as above
        finally:
            load.stop()
        lines.write("still\n")
        lines.flush()
        assert lines.readline().startswith("v1 "), "a connection stays with the daemon that accepted it"
    assert (load.failed, dict(load.errors)) == (0, {})
    assert _followed(turnout) == switches
    assert loads(path.read_bytes()).snapshot.daemons["theirs"].extra == {"theirs": True}
    assert set(turnout.daemons()) == {ours}


def lose_block(raw: dict[str, Any]) -> None:
    del raw["deployment"]


def older_block(raw: dict[str, Any]) -> None:
    raw["deployment"].update(revision=1, generation=0, active_boot_id="")


def prune(raw: dict[str, Any]) -> None:
    raw["daemons"].clear()


@pytest.mark.parametrize("change", [lose_block, older_block, prune])
def test_an_old_program_that_undoes_the_deployment_is_put_right_and_no_client_sees_it(
    turnout: Turnout, change: Callable[[dict[str, Any]], None]
) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    before = turnout.snapshot()
    path = turnout.registry.path

    def in_file() -> tuple[Deployment, bool]:
        found = loads(path.read_bytes()).snapshot
        return found.deployment, found.active is not None

    load = Load(turnout.address, line_exchange)
    load.start()
    try:
        for number in range(5):
            edit(path, lambda raw: raw.update(theirs=number))  # noqa: B023  # called at once
            edit(path, change)
            eventually(lambda: in_file() == (before.deployment, True), why="it was not put back")
    finally:
        load.stop()
    assert (load.failed, dict(load.errors)) == (0, {})
    assert loads(path.read_bytes()).snapshot.extra["theirs"] == 4, "the rest is the last writer's"
    assert turnout.status()["router"]["applied_revision"] == before.deployment.revision
    eventually(lambda: [e["event"] for e in turnout.journal()].count("repair") >= 5, why="a repair is not journaled")
    assert set(turnout.daemons()) == {before.deployment.active_boot_id}


def test_a_program_that_prunes_a_draining_daemon_cuts_none_of_its_connections(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"), observe="0s")
    turnout.run("up")
    old = turnout.active()["boot_id"]
    with socket.create_connection(turnout.address, 20) as lasting, lasting.makefile("rw") as lines:

        def answer() -> str:
            lines.write("hello\n")
            lines.flush()
            return lines.readline()

        assert answer().startswith("v1 ")
        turnout.configure(line_daemon("--version", "v2"), version="v2", observe="0s")
        turnout.run("deploy")
        edit(turnout.registry.path, lambda raw: raw["daemons"].pop(old))
        eventually(
            lambda: old in loads(turnout.registry.path.read_bytes()).snapshot.daemons, why="its entry was not put back"
        )
        assert answer().startswith("v1 ")
        assert old in turnout.daemons()
    eventually(lambda: old not in turnout.daemons(), why="it is drained, and was not stopped")
    assert not {e["event"] for e in turnout.journal()} & {"stopping_stray", "cut"}


def test_a_registry_that_is_removed_while_turnout_runs_comes_back(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    before = turnout.snapshot()
    turnout.registry.path.unlink()
    eventually(turnout.registry.path.exists, why="the file did not come back")
    assert loads(turnout.registry.path.read_bytes()).snapshot == before
    assert ask(turnout.address) == "v1"
