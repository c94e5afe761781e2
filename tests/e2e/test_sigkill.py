"""SIGKILL of every process of ours, at every step: clients lose at most what the dead one carried."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest

from e2e_support import Turnout, ask, line_daemon, under_load
from support import eventually, scaled
from turnout.control.keeper_client import KeeperClient
from turnout.core.model import Identity, State
from turnout.core.rollout_step import RolloutStep
from turnout.demo.load import Load, line_exchange
from turnout.errors import NotRunningError
from turnout.system.process import is_alive

DIE = str(Path(__file__).parents[1] / "support" / "die_at_step.py")
RECREATE_ONLY = {RolloutStep.HOLD, RolloutStep.END, RolloutStep.STOP, RolloutStep.RETURN}  # test_recreate.py has those
STEPS = [step for step in RolloutStep if step not in RECREATE_ONLY]
MOMENTS = [
    (step, when) for step in STEPS for when in ("before", "after") if (step, when) != (RolloutStep.UNLOCK, "after")
]

CLIENTS = 6


@pytest.mark.parametrize(("step", "when"), MOMENTS, ids=[f"{when}-{step}" for step, when in MOMENTS])
@pytest.mark.parametrize("verb", ["up", "deploy"])
def test_a_deploy_killed_at_any_step_is_taken_up_by_the_next_verb(
    turnout: Turnout, step: RolloutStep, when: str, verb: str
) -> None:
    turnout.configure(line_daemon("--version", "v1"), observe="300ms")
    turnout.run("up")
    before = turnout.active()["boot_id"]
    turnout.configure(line_daemon("--version", "v2"), version="v2", observe="300ms")

    killed = subprocess.run(
        [sys.executable, "-P", DIE, step.value, when, "deploy"],
        cwd=turnout.home.root.parent,
        env=turnout.env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert killed.returncode == -9, killed.stderr
    left = turnout.applied().deployment
    assert ask(turnout.address) == ("v1" if left.active_boot_id == before else "v2")

    # a window that the dead verb opened is still observed: a deploy waits for that, `up` agrees with it
    eventually(lambda: turnout.snapshot().deployment.state is not State.SWITCHED)
    turnout.run(verb)
    assert ask(turnout.address) == "v2"
    eventually(lambda: turnout.snapshot().deployment.state is State.IDLE)
    eventually(lambda: len(turnout.daemons()) == 1, why="a candidate nobody knows is left")
    eventually(lambda: len(turnout.snapshot().daemons) == 1, why="an entry of a dead candidate is left")


@pytest.mark.parametrize("step", [RolloutStep.SPAWN, RolloutStep.PROBE, RolloutStep.MARK, RolloutStep.REPROBE])
def test_what_a_killed_deploy_had_begun_is_ended_by_the_router_and_nobody_need_come(
    turnout: Turnout, step: RolloutStep
) -> None:
    """A candidate that nobody will switch to would run beside the active daemon for days."""
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    before = turnout.active()["boot_id"]
    turnout.configure(line_daemon("--version", "v2"), version="v2")
    with under_load(turnout):
        subprocess.run(
            [sys.executable, "-P", DIE, step.value, "after", "deploy"],
            cwd=turnout.home.root.parent,
            env=turnout.env,
            capture_output=True,
            timeout=60,
            check=False,
        )
        eventually(lambda: turnout.snapshot().deployment.state is State.IDLE, why="the rollout stays open")
        eventually(lambda: set(turnout.daemons()) == {before}, why="the candidate runs on", timeout_s=60)
        eventually(lambda: set(turnout.snapshot().daemons) == {before}, why="its entry is left")
    block = turnout.snapshot().deployment
    assert (block.generation, block.active_boot_id, block.rollback_reason) == (2, before, "its owner died")
    (abort,) = turnout.journaled("abort")
    assert (abort["generation"], abort["reason"]) == (2, "its owner died")
    assert "its owner died" in turnout.run("why", "2").stdout


def test_a_router_killed_under_load_is_back_by_itself_and_refuses_nobody(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    refused: list[str] = []
    lost: list[str] = []
    made = 0
    stop = threading.Event()

    def client() -> None:
        nonlocal made
        while not stop.wait(0.01):
            try:
                sock = socket.create_connection(turnout.address, 20)
            except OSError as error:  # a new connection must never fail
                refused.append(repr(error))
                continue
            made += 1
            with sock:
                try:
                    line_exchange(sock)
                except (OSError, ValueError) as error:  # it was carried by the dead router
                    lost.append(repr(error))

    def is_new(router: int) -> bool:
        return turnout.router_pid() not in {0, router}

    def is_past(goal: int) -> bool:
        return made > goal

    threads = [threading.Thread(target=client) for _ in range(8)]
    for thread in threads:
        thread.start()
    kills = scaled(3, 30)
    try:
        for _ in range(kills):
            router = turnout.router_pid()
            goal = made + 50
            turnout.kill(router)
            eventually(partial(is_new, router), why="no new router", timeout_s=60)
            eventually(partial(is_past, goal), why="clients do not get on", timeout_s=40)
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert refused == []
    assert len(lost) <= kills * len(threads), f"only what the dead routers carried may be lost: {len(lost)} of {made}"
    assert ask(turnout.address) == "v1"


def test_without_its_keeper_everything_goes_on_and_the_next_up_has_one_again(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    keeper, router = turnout.keeper_pid(), turnout.router_pid()
    load = Load(turnout.address, line_exchange)
    load.start()
    try:
        turnout.kill(keeper)
        goal = load.made + 100
        eventually(lambda: load.made > goal)
        turnout.run("up")
        assert turnout.keeper_pid() != keeper
        assert turnout.router_pid() == router, "the router was adopted, not replaced"
        turnout.run("deploy", "--version", "v2")
    finally:
        load.stop()
    assert (load.failed, dict(load.errors)) == (0, {})
    eventually(lambda: len(turnout.daemons()) == 1, why="the adopted daemon was not stopped after its drain")
    turnout.kill(turnout.router_pid())
    eventually(lambda: turnout.router_pid() not in {0, router}, why="the adopted router was not restarted")
    assert ask(turnout.address) == "v1"


def test_a_daemon_that_comes_to_light_after_its_keeper_died_is_stopped_and_not_said_to_be_gone(
    turnout: Turnout,
) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    (boot_id,) = turnout.daemons()
    record = turnout.home.service("default").record(boot_id)
    aside = record.with_suffix(".aside")
    record.rename(aside)
    turnout.kill(turnout.keeper_pid())
    turnout.run("up")  # this keeper saw no record, and so adopted nothing
    aside.rename(record)
    with KeeperClient.connect(turnout.home) as keeper:
        keeper.stop("default", boot_id, stop_signal="TERM", grace_s=5.0)
    assert not turnout.daemons()


def test_an_active_daemon_that_dies_long_after_its_window_is_started_again_and_new_clients_wait(
    turnout: Turnout,
) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    first = turnout.active()
    load = Load(turnout.address, line_exchange, clients=CLIENTS)
    load.start()
    try:
        turnout.kill(first["pid"])
        eventually(lambda: turnout.snapshot().deployment.active_boot_id not in {"", first["boot_id"]})
        goal = load.made + 100
        eventually(lambda: load.made > goal, why="clients do not get on")
    finally:
        load.stop()
    # what the dead daemon carried or had queued ends with it; whoever comes after that waits
    assert load.failed <= CLIENTS + 1, dict(load.errors)
    assert turnout.active()["pid"] != first["pid"]
    assert turnout.journaled("died")
    eventually(lambda: turnout.status()["restart"] is None)


def test_a_daemon_that_cannot_be_started_again_is_said_in_status_and_held_clients_are_not_turned_away(
    turnout: Turnout,
) -> None:
    broken = turnout.home.root.parent / "broken"
    program = f"[ -e {broken} ] && exit 3; exec {' '.join(line_daemon('--version', 'v1'))}"
    turnout.configure(["sh", "-c", program])
    turnout.run("up")
    broken.touch()
    turnout.kill(turnout.active()["pid"])
    restart = eventually(lambda: (found := turnout.status()["restart"]) and found["attempt"] >= 2 and found)
    assert restart["most"] == 7
    assert restart["reason"]
    with socket.create_connection(turnout.address, 60) as waiting:
        assert "the daemon died" in turnout.run("status").stdout
        broken.unlink()
        waiting.sendall(b"hello\n")
        assert waiting.makefile().readline().startswith("v1 ")


def test_ending_the_keeper_ends_everything_and_nothing_is_started_again(turnout: Turnout) -> None:
    """The daemon ends with it, and a router that sees that may not take it for a crash."""
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    keeper = turnout.keeper_pid()
    turnout.kill(keeper, signal.SIGTERM)
    eventually(lambda: not turnout.processes() and not is_alive(Identity(keeper)))
    assert turnout.run("start", "--automatic", code=3).stderr
    assert not turnout.processes()
    with pytest.raises(NotRunningError):
        KeeperClient.connect(turnout.home)
    turnout.run("up")
    assert ask(turnout.address) == "v1"


def test_everything_killed_at_once_is_brought_back_by_up(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    pids = [turnout.keeper_pid(), *[identity.pid for identity in turnout.processes().values()]]
    for pid in pids:
        turnout.kill(pid)
    eventually(lambda: not turnout.processes())
    turnout.run("up")
    assert ask(turnout.address) == "v1"
    assert len(turnout.daemons()) == 1
