"""Files of a home that a cleaner of old files removes while everything runs, and a home that is removed whole."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e_support import Turnout, ask, line_daemon
from other_constants import with_constants
from support import eventually
from turnout.control.keeper_client import KeeperClient
from turnout.system.process import identify, is_alive


@pytest.fixture
def client(turnout: Turnout) -> Iterator[socket.socket]:
    """A connection through the router of a service that runs."""
    turnout.configure(line_daemon("--version", "v1"), observe="200ms")
    turnout.run("up")
    with socket.create_connection(turnout.address, 60) as client:
        assert lives(client)
        yield client


def lives(client: socket.socket) -> bool:
    try:
        client.sendall(b"question\n")
        return client.recv(1000).startswith(b"v1 ")
    except OSError:
        return False


def clean(turnout: Turnout, *patterns: str) -> None:
    for pattern in patterns:
        for path in turnout.home.root.rglob(pattern):
            path.unlink()


@pytest.mark.parametrize("patterns", [("keeper.sock",), ("router.sock",), ("*.sock", "*.lock")])
def test_up_keeps_keeper_router_and_connections_when_their_files_were_removed(
    turnout: Turnout, client: socket.socket, patterns: tuple[str, ...]
) -> None:
    keeper, router = turnout.keeper_pid(), turnout.router_pid()
    clean(turnout, *patterns)
    found = {one["check"] for one in doctor(turnout)}
    assert "address" not in found, "the keeper of this home was taken for a stranger"
    turnout.run("up")
    assert (turnout.keeper_pid(), turnout.router_pid()) == (keeper, router)
    assert lives(client)
    assert ask(turnout.address) == "v1"


def doctor(turnout: Turnout) -> list[dict[str, str]]:
    told = json.loads(turnout.run("doctor", "--json", code=None).stdout)
    return [one for one in told["findings"] if one["verdict"] != "ok"]


def test_no_second_keeper_and_no_second_router_lead_when_their_locks_were_removed(
    turnout: Turnout, client: socket.socket
) -> None:
    keeper, router = turnout.keeper_pid(), turnout.router_pid()
    clean(turnout, "*.lock")
    second = subprocess.run(
        [sys.executable, "-P", "-m", "turnout.keeper", str(turnout.home.root)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert second.returncode == 6
    assert f"pid {keeper}" in second.stderr
    other = subprocess.run(
        [sys.executable, "-P", "-m", "turnout.router", str(turnout.home.root)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert other.returncode == 6, "a router that no keeper started did not stand back"
    locks = turnout.home.keeper_lock, turnout.home.router_lock
    holders = [str(keeper), str(router)]
    eventually(
        lambda: [path.read_text().split()[:1] for path in locks if path.exists()] == [[pid] for pid in holders],
        why="the locks are not made again",
    )
    assert turnout.run("up").returncode == 0
    assert (turnout.keeper_pid(), turnout.router_pid()) == (keeper, router)
    assert lives(client)


def test_verbs_that_ask_wait_for_the_socket_that_is_made_again(turnout: Turnout, client: socket.socket) -> None:
    clean(turnout, "*.sock")
    assert turnout.status()["router"]["pid"] == turnout.router_pid()
    clean(turnout, "*.sock")
    turnout.run("refresh")
    clean(turnout, "*.sock")
    keeper = identify(turnout.keeper_pid())
    turnout.run("down")
    eventually(lambda: not is_alive(keeper))
    assert not lives(client)


def test_settings_that_were_removed_are_made_again_and_another_router_serves_with_them(
    turnout: Turnout, client: socket.socket
) -> None:
    settings = turnout.home.service("default").settings
    before = settings.read_bytes(), settings.stat().st_mtime_ns
    settings.unlink()
    eventually(settings.exists, why="the settings are not made again")
    assert (settings.read_bytes(), settings.stat().st_mtime_ns) == before
    turnout.run("router", "--replace")
    assert ask(turnout.address) == "v1"
    assert lives(client)
    eventually(lambda: not list(settings.parent.glob(".*.tmp")), why="a temporary file is left")


@pytest.mark.parametrize("typed", [False, True])
def test_a_service_whose_settings_were_removed_is_named_with_what_brings_it_back(
    turnout: Turnout, tmp_path: Path, *, typed: bool
) -> None:
    if typed:
        address = f"127.0.0.1:{turnout.address[1]}"
        # of a typed command the keeper alone knows the address; its router would make the file again
        never = {"turnout.router.follow.settings.REMOVED_AFTER_S": 3600.0}
        env = turnout.env | with_constants(tmp_path / "constants", never)
        turnout.run("up", "--listen", address, "--", *line_daemon("--version", "v1"), env=env)
    else:
        turnout.configure(line_daemon("--version", "v1"), observe="200ms")
        turnout.run("up")
    daemon = turnout.active()["pid"]
    settings = turnout.home.service("default").settings
    keeper, router = turnout.keeper_pid(), turnout.router_pid()
    if not typed:
        turnout.kill(keeper)
        turnout.kill(router)
    settings.unlink()
    env = {**turnout.env, "PWD": "/"}

    def typed_at_root(*line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(line, cwd="/", env=env, capture_output=True, text=True, timeout=120, check=False)

    told = typed_at_root(*turnout.argv("status"))
    assert f"BAD: {settings} was removed" in told.stdout
    assert f"{settings} was removed" in typed_at_root(*turnout.argv("status", "--json")).stderr
    assert f"{settings} was removed" in typed_at_root(*turnout.argv("start")).stderr
    (found,) = (one for one in doctor(turnout) if one["check"] == "settings")
    hint = told.stdout.partition("  -> ")[2].strip()
    assert found["mend"] == hint
    back = typed_at_root("sh", "-c", hint.replace("turnout up", f"{shlex.join(turnout.argv('up'))}", 1))
    assert back.returncode == 0, back.stderr
    assert ask(turnout.address) == "v1"
    assert turnout.active()["pid"] == daemon


def test_doctor_finds_what_runs_for_a_home_that_was_removed_and_its_advice_ends_it(
    turnout: Turnout, client: socket.socket
) -> None:
    keeper, router = turnout.keeper_pid(), turnout.router_pid()
    daemon = turnout.active()["pid"]
    everything = [identify(pid) for pid in (keeper, router, daemon)]
    shutil.rmtree(turnout.home.root)
    try:
        (found,) = (one for one in doctor(turnout) if f"{turnout.home.root} (pid" in one["evidence"])
        assert str(keeper) in found["evidence"]
        assert found["mend"] == f"kill {keeper}"
        assert lives(client), "nothing was ended by looking"
        os.kill(keeper, signal.SIGTERM)
        eventually(lambda: not any(map(is_alive, everything)), timeout_s=60)
    finally:
        for identity in everything:
            if is_alive(identity):
                os.kill(identity.pid, signal.SIGKILL)


def test_a_keeper_of_a_home_that_was_made_again_leaves_the_new_one_alone(
    turnout: Turnout, client: socket.socket
) -> None:
    old = identify(turnout.keeper_pid())
    routers = [identify(turnout.router_pid()), identify(turnout.active()["pid"])]
    shutil.rmtree(turnout.home.root)
    try:
        turnout.home.create()
        with pytest.raises(Exception, match="no process answers"):
            KeeperClient.connect(turnout.home)
        assert list(turnout.home.root.iterdir()) == []
        assert lives(client)
    finally:
        os.kill(old.pid, signal.SIGTERM)
        eventually(lambda: not is_alive(old), timeout_s=60)
        for identity in routers:
            if is_alive(identity):
                os.kill(identity.pid, signal.SIGKILL)
