"""Daemons as the keeper has them: their environment, their ports, and that nobody is ended too early or forgotten."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from e2e_support import Turnout, ask, line_daemon, under_load
from support import eventually
from turnout.config.file import load_file
from turnout.control.keeper_client import KeeperClient
from turnout.core.model import Identity, State
from turnout.core.rollout_step import RolloutStep
from turnout.lifecycle.progress import Progress
from turnout.lifecycle.verb_request import VerbRequest
from turnout.lifecycle.verbs import Lifecycle
from turnout.router.drain.drainer import STRAY_EVERY_S
from turnout.system.flock import holder_pid

# A daemon that binds as simple programs do, without SO_REUSEADDR.
SIMPLE = """
import socket, sys
sock = socket.socket()
sock.bind(("127.0.0.1", int(sys.argv[1])))
sock.listen()
while True:
    client, _ = sock.accept()
    client.recv(100)
    client.sendall(b"simple\\n")
    client.close()
"""


def lifecycle(turnout: Turnout, verb: str, steps: list[tuple[RolloutStep, int | None]]) -> Lifecycle:
    """A verb within this process, with who holds the lock at each of its steps."""
    wanted = load_file(turnout.home.root.parent / "turnout.toml")["default"]
    lock = turnout.home.service("default").root / "lifecycle.lock"

    def on_step(step: RolloutStep, _text: str) -> None:
        steps.append((step, holder_pid(lock)))

    return Lifecycle(turnout.home, wanted, VerbRequest(verb), lock_timeout_s=8, progress=Progress(step=on_step))


def test_refresh_is_one_critical_section_from_its_begin_until_after_its_switch(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    before = turnout.active()["boot_id"]
    steps: list[tuple[RolloutStep, int | None]] = []
    with under_load(turnout), lifecycle(turnout, "refresh", steps) as verb:
        verb.run()
    once = [
        RolloutStep.BEGIN,
        RolloutStep.SPAWN,
        RolloutStep.PROBE,
        RolloutStep.MARK,
        RolloutStep.REPROBE,
        RolloutStep.SWITCH,
        RolloutStep.UNLOCK,
    ]
    assert [step for step, _ in steps] == once, "it begins no second rollout inside"
    assert {pid for _, pid in steps} == {os.getpid()}, "the lock is never let go in between"
    assert turnout.active()["boot_id"] != before


class SlowKeeper(KeeperClient):
    """A keeper whose answer to a spawn comes late: for so long the daemon runs and is in no registry."""

    def spawn(self, service: str, boot_id: str, argv: Sequence[str], **more: Any) -> Identity:
        identity = super().spawn(service, boot_id, argv, **more)
        time.sleep(3 * STRAY_EVERY_S)  # two of the router's looks for strays fall into that time, or three
        return identity


def test_a_candidate_that_is_not_yet_registered_is_not_taken_for_a_stray(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    with lifecycle(turnout, "deploy", []) as verb:
        keeper = verb._bootstrap.keeper
        keeper.__class__ = SlowKeeper
        done = verb.run()
    assert done.switched
    assert turnout.active()["boot_id"] == done.switched.daemon.boot_id
    assert "stopping_stray" not in [event["event"] for event in turnout.journal()]


def test_a_draining_daemon_with_a_connection_is_not_reaped(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"), observe="0s")
    turnout.tune(drain='{ grace = "1h", deadline = "none" }')
    turnout.run("up")
    with socket.create_connection(turnout.address, 20) as client, client.makefile("rw") as file:
        file.write("one\n")
        file.flush()
        assert file.readline().startswith("v1")
        turnout.run("deploy", "--version", "v2")
        eventually(lambda: turnout.snapshot().deployment.state is State.IDLE)
        for verb in ("up", "refresh", "up"):
            turnout.run(verb)
        file.write("two\n")
        file.flush()
        assert file.readline().startswith("v1")
    eventually(lambda: len(turnout.daemons()) == 1, timeout_s=60, why="drained, and not stopped")


def test_a_daemon_that_binds_without_reuseaddr_gets_its_port_at_the_second_try(turnout: Turnout) -> None:
    turnout.configure([sys.executable, "-c", SIMPLE, "{port}"])
    turnout.run("up")
    assert ask(turnout.address) == "simple"
    assert turnout.snapshot().deployment.generation == 1, "within one rollout"


@pytest.mark.parametrize("where", ["127.0.0.1:{own}", "localhost:{own}", "[::1]:{own}", "{own}"])
def test_a_daemon_that_is_told_to_listen_at_the_fixed_address_is_refused(turnout: Turnout, where: str) -> None:
    turnout.configure(["server", "--listen", where.format(own=turnout.port)])
    said = turnout.run("up", code=2).stderr
    assert str(turnout.port) in said
    assert "{port}" in said
    assert turnout.processes() == {}


def test_nothing_that_an_outer_turnout_or_systemd_said_reaches_a_daemon(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    outer = {
        "TURNOUT_PORT": "1",
        "TURNOUT_LOCK_TIMEOUT": "7",
        "TURNOUT_BOOT_ID": "outer",
        "LISTEN_FDS": "1",
        "LISTEN_PID": "1",
        "NOTIFY_SOCKET": "/outer",
    }
    turnout.run("up", env={**turnout.env, **outer})
    active = turnout.active()
    found = dict(
        word.split("=", 1)
        for word in Path(f"/proc/{active['pid']}/environ").read_bytes().decode().split("\0")
        if word.partition("=")[0] in {*outer, "TURNOUT_HOME", "PORT"}
    )
    port = str(active["port"])
    assert found == {"PORT": port, "TURNOUT_PORT": port, "TURNOUT_BOOT_ID": active["boot_id"]}
    keeper = Path(f"/proc/{turnout.keeper_pid()}/environ").read_bytes()
    assert b"TURNOUT_BOOT_ID" not in keeper, "a keeper that is started from within a daemon is no part of that"


def test_what_turnout_cannot_begin_is_tried_until_it_can_and_is_told(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    pid = turnout.active()["pid"]
    logs = turnout.home.service("default").logs
    logs.rename(logs.with_name("away"))
    logs.touch()  # no log can be made, also by root
    turnout.kill(pid)
    blocked = eventually(lambda: (turnout.status()["restart"] or {}).get("blocked"), timeout_s=60)
    assert "logs" in str(blocked)
    assert "cannot be started: " in turnout.run("status", code=None).stdout
    logs.unlink()
    logs.with_name("away").rename(logs)
    eventually(lambda: (active := turnout.snapshot().active) and active.pid != pid, timeout_s=60)
    assert turnout.journaled("unblocked")
    told = turnout.run("history").stdout
    assert "cannot be started again for now" in told
    assert "can be started again; for" in told


def test_zombies_are_collected_also_those_of_grandchildren(turnout: Turnout) -> None:
    script = "for i in 1 2 3 4 5; do (setsid sleep 0.1 &) ; done; exec " + " ".join(line_daemon("--version", "v1"))
    turnout.configure(["sh", "-c", script])
    turnout.run("up")
    keeper = turnout.keeper_pid()

    def zombies() -> list[str]:
        children = Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()
        states = (Path(f"/proc/{pid}/stat") for pid in children)
        return [str(path) for path in states if path.exists() and path.read_text().rpartition(")")[2].split()[0] == "Z"]

    only = {turnout.active()["pid"], turnout.router_pid()}
    eventually(lambda: turnout.everything() == only, why="they are still there")
    eventually(lambda: not zombies(), why="nobody waited for them")


def test_the_exit_status_of_every_daemon_is_recorded(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1", "--die-on-line", "DIE", "--exit-code", "41"))
    turnout.run("up")
    (boot_id,) = turnout.daemons()
    ask(turnout.address, "DIE")
    record = turnout.home.service("default").record(boot_id)
    eventually(lambda: f'"status": {41 << 8}' in record.read_text(), why=record.read_text())
