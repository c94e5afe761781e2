"""The router stopped, killed and restarted at the worst moments: in a switch, a hold, a rollback, in every state."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from e2e_support import Turnout, ask, line_daemon
from support import eventually, report, scaled
from turnout.core.deployment import begin_deploy, mark_candidate_healthy, switch_active
from turnout.core.membership import register_daemon
from turnout.core.model import Cause, Daemon, Identity, Snapshot, State
from turnout.demo.load import Load, line_exchange

CLIENTS = 6
DEAD = Identity(2**22 + 1)  # no process can have it (proc(5), pid_max)


def new_router(turnout: Turnout, old: int) -> None:
    eventually(lambda: turnout.router_pid() not in {0, old}, why="no new router", timeout_s=60)


def test_a_router_that_is_stopped_for_10_seconds_with_500_connections_queued_serves_all_of_them(
    turnout: Turnout,
) -> None:
    """The kernel completes their handshakes meanwhile; nobody is refused, and nobody's question is lost."""
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    router = turnout.router_pid()
    turnout.kill(router, signal.SIGSTOP)
    clients = []
    for number in range(500):
        clients.append(socket.create_connection(turnout.address, 60))
        clients[-1].sendall(b"question %d\n" % number)
    threading.Event().wait(scaled(1, 10))
    turnout.kill(router, signal.SIGCONT)
    for number, client in enumerate(clients):
        with client:
            assert client.makefile().readline().split(" ", 2)[2] == f"question {number}\n"
    assert turnout.router_pid() == router, "it was not taken for dead"


def test_a_router_killed_during_a_hold_loses_those_it_held_and_no_other(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    turnout.run("pause")
    held = [socket.create_connection(turnout.address, 60) for _ in range(20)]
    eventually(lambda: turnout.status()["held"] == 20)
    router = turnout.router_pid()
    turnout.kill(router)
    for client in held:
        with pytest.raises(ConnectionResetError), client:
            client.recv(1)
    late = []
    for number in range(20):  # whether or not there is a router yet
        late.append(socket.create_connection(turnout.address, 60))
        late[-1].sendall(b"question %d\n" % number)
    new_router(turnout, router)
    eventually(lambda: turnout.status()["held"] == 20, why="the new router does not hold them")
    assert turnout.status()["desired"] == "paused"
    turnout.run("resume")
    for number, client in enumerate(late):
        with client:
            assert client.makefile().readline().split(" ", 2)[2] == f"question {number}\n"


def passed(state: State) -> Callable[[Snapshot], bool]:
    """The second rollout has come so far; the moments before the switch are short, so later is late but not wrong."""
    order = [State.STARTING, State.READY, State.SWITCHED]
    return lambda snap: snap.deployment.generation == 2 and snap.deployment.state in order[order.index(state) :]


@pytest.mark.parametrize("state", [State.STARTING, State.READY, State.SWITCHED])
def test_a_router_killed_during_a_switch_costs_what_it_carried_and_the_switch_is_done(
    turnout: Turnout, state: State
) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    turnout.configure(line_daemon("--version", "v2", "--start-delay", "0.3"), version="v2")
    router = turnout.router_pid()
    load = Load(turnout.address, line_exchange, clients=CLIENTS)
    load.start()
    try:
        eventually(lambda: load.made > 20)
        deploy = turnout.begin("deploy")
        eventually(lambda: passed(state)(turnout.snapshot()), interval_s=0.001, timeout_s=60)
        turnout.kill(router)
        _, said = deploy.communicate(timeout=90)
        new_router(turnout, router)
        goal = load.made + 100
        eventually(lambda: load.made > goal, why="clients do not get on", timeout_s=60)
    finally:
        load.stop()
    assert deploy.returncode == 0, said
    assert load.failed <= CLIENTS + 1, dict(load.errors)
    assert not [error for error in load.errors if "refused" in error.lower()]
    assert turnout.active()["version"] == "v2"
    assert ask(turnout.address) == "v2"
    assert turnout.snapshot().deployment.state is State.IDLE


def test_a_router_killed_during_a_rollback_leaves_it_to_the_next_which_rolls_back(
    turnout: Turnout, tmp_path: Path
) -> None:
    sick = tmp_path / "sick"
    health = {"probe": "expect", "extra": ', send = "HEALTH\\n", match = "ok"'}
    turnout.configure(line_daemon("--version", "v1"), observe="60s", **health)
    turnout.run("up")
    before = turnout.active()["boot_id"]
    command = line_daemon("--version", "v2", "--sick-file", str(sick))
    turnout.configure(command, version="v2", observe="60s", interval="500ms", **health)
    deploy = turnout.begin("deploy")
    eventually(lambda: turnout.snapshot().deployment.state is State.SWITCHED, timeout_s=60)
    router = turnout.router_pid()
    sick.touch()
    eventually(lambda: turnout.snapshot().deployment.health_fail_streak > 0, interval_s=0.005, timeout_s=60)
    turnout.kill(router)
    _, said = deploy.communicate(timeout=90)
    assert deploy.returncode == 5, said
    new_router(turnout, router)
    block = turnout.snapshot().deployment
    assert (block.state, block.active_boot_id) == (State.IDLE, before)
    assert block.rollback_reason
    assert ask(turnout.address) == "v1"
    eventually(lambda: set(turnout.daemons()) == {before}, why="the sick one is still there", timeout_s=60)


def brought_to(turnout: Turnout, state: State) -> None:
    """Have a verb of which nothing is left bring the deployment there; the candidate is a second real daemon."""
    registry = turnout.registry
    generation = turnout.snapshot().deployment.generation + 1
    cause = Cause.ROLLBACK if state is State.ROLLING_BACK else Cause.DEPLOY
    assert registry.update(lambda snap: begin_deploy(snap, "candidate", owner=DEAD, cause=cause)).applied
    if state in {State.STARTING, State.ROLLING_BACK}:
        return
    active = turnout.snapshot().active
    assert active is not None
    candidate = Daemon("candidate", host=active.host, port=active.port, version="v2")
    assert registry.update(lambda snap: register_daemon(snap, candidate)).applied
    assert registry.update(lambda snap: mark_candidate_healthy(snap, generation, "candidate")).applied
    if state is State.SWITCHED:
        assert registry.update(lambda snap: switch_active(snap, generation, "candidate", now=1.0)).applied


@pytest.mark.parametrize("state", list(State))
def test_a_router_restarted_with_a_registry_in_any_state_serves_at_once_and_the_next_deploy_goes_through(
    turnout: Turnout, state: State
) -> None:
    turnout.configure(line_daemon("--version", "v1"), observe="200ms")
    turnout.run("up")
    router = turnout.router_pid()
    turnout.kill(router, signal.SIGSTOP)  # it must not go on from there before its successor does
    if state is not State.IDLE:
        brought_to(turnout, state)
    assert turnout.snapshot().deployment.state is state
    turnout.kill(router)
    assert ask(turnout.address, timeout_s=60) == "v1"
    new_router(turnout, router)
    eventually(lambda: turnout.snapshot().deployment.state is not State.SWITCHED, why="the window does not end")
    turnout.configure(line_daemon("--version", "v3"), version="v3", observe="200ms")
    turnout.run("deploy")
    assert ask(turnout.address) == "v3"
    eventually(lambda: len(turnout.daemons()) == 1, why="an old daemon is left", timeout_s=60)
    eventually(lambda: len(turnout.snapshot().daemons) == 1, why="an entry is left", timeout_s=60)


def test_a_switch_to_a_daemon_that_dies_right_then_goes_back_and_new_clients_see_nothing(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"), observe="60s")
    turnout.run("up")
    before = turnout.active()["boot_id"]
    load = Load(turnout.address, line_exchange, clients=CLIENTS)
    load.start()
    try:
        eventually(lambda: load.made > 20)
        turnout.configure(line_daemon("--version", "v2"), version="v2", observe="60s")
        deploy = turnout.begin("deploy")
        eventually(lambda: turnout.snapshot().deployment.state is State.SWITCHED, interval_s=0.001, timeout_s=60)
        dying = turnout.snapshot().active
        assert dying is not None
        turnout.kill(dying.pid)
        _, said = deploy.communicate(timeout=90)
        goal = load.made + 100
        eventually(lambda: load.made > goal, why="clients do not get on", timeout_s=60)
    finally:
        load.stop()
    report("a daemon that dies at its switch", connections=load.made, ended_with_it=load.failed)
    assert deploy.returncode == 5, said
    assert turnout.snapshot().deployment.active_boot_id == before
    # what the dead daemon had accepted or queued ends with it, and nobody else's
    assert load.failed <= CLIENTS, dict(load.errors)
