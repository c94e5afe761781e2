"""The router stopped, killed and restarted at the worst moments: in a switch, a hold, a rollback, in every state."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from e2e_support import Turnout, ask, line_daemon
from support import eventually, report, scaled
from traffic import read_all
from turnout.core.deployment import Change, begin_deploy, mark_candidate_healthy, switch_active
from turnout.core.membership import register_daemon
from turnout.core.model import Cause, Daemon, Identity, Snapshot, State
from turnout.demo.load import Load, line_exchange
from turnout.system.net.sockets import who_listens

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
    for client in held:
        client.sendall(b"question\n")
    eventually(lambda: turnout.status()["held"] == 20)
    router = turnout.router_pid()
    turnout.kill(router)
    for client in held:
        with client, contextlib.suppress(ConnectionResetError):  # the kernel ends one that had sent nothing in order
            assert client.recv(1) == b""
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


def test_a_download_in_progress_when_the_router_is_killed_ends_in_a_reset_and_does_not_look_whole(
    turnout: Turnout,
) -> None:
    daemon = str(Path(__file__).parents[1] / "support" / "bulk_daemon.py")
    turnout.configure([sys.executable, "-P", daemon, "{port}"], deadline="none")
    turnout.run("up")
    with socket.create_connection(turnout.address, 60) as client:
        client.sendall((1 << 30).to_bytes(8, "big"))
        came = 0
        while came < 8 << 20:
            came += len(client.recv(1 << 16))
        turnout.kill(turnout.router_pid())
        with pytest.raises(ConnectionResetError):
            read_all(client)


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


def test_a_router_killed_during_a_rollback_leaves_it_to_the_next_which_rolls_back(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"), observe="60s")
    turnout.run("up")
    before = turnout.active()["boot_id"]
    turnout.configure(line_daemon("--version", "v2"), version="v2", observe="60s", interval="500ms")
    deploy = turnout.begin("deploy")
    eventually(lambda: turnout.snapshot().deployment.state is State.SWITCHED, timeout_s=60)
    router, failing = turnout.router_pid(), turnout.snapshot().active
    assert failing is not None
    turnout.kill(failing.pid, signal.SIGSTOP)
    eventually(lambda: turnout.snapshot().deployment.health_fail_streak > 0, interval_s=0.005, timeout_s=60)
    turnout.kill(router)
    _, said = deploy.communicate(timeout=90)
    assert deploy.returncode == 5, said
    new_router(turnout, router)
    block = turnout.snapshot().deployment
    assert (block.state, block.active_boot_id) == (State.IDLE, before)
    assert block.rollback_reason
    assert ask(turnout.address) == "v1"
    eventually(lambda: set(turnout.daemons()) == {before}, why="the failed one is still there", timeout_s=60)


@pytest.fixture
def candidate() -> Iterator[Daemon]:
    """A daemon that turnout did not start: what a verb of which nothing is left was about to switch to."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    argv = [word.replace("{port}", str(port)) for word in line_daemon("--version", "candidate")]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: who_listens("127.0.0.1", port), why="the candidate does not listen")
        yield Daemon("candidate", port=port, version="candidate")
    finally:
        process.kill()
        process.wait(20)


def brought_to(turnout: Turnout, state: State, candidate: Daemon) -> None:
    """Take the events that lead there, in the name of a process that is dead."""
    generation = turnout.snapshot().deployment.generation + 1
    cause = Cause.ROLLBACK if state is State.ROLLING_BACK else Cause.DEPLOY
    events: list[Change] = []
    if state is not State.IDLE:
        events.append(lambda snap: begin_deploy(snap, "candidate", owner=DEAD, cause=cause))
    if state in {State.READY, State.SWITCHED}:
        events.append(lambda snap: register_daemon(snap, candidate))
        events.append(lambda snap: mark_candidate_healthy(snap, generation, "candidate"))
    if state is State.SWITCHED:
        events.append(lambda snap: switch_active(snap, generation, "candidate", now=1.0))
    for event in events:
        assert turnout.registry.update(event).applied
    assert turnout.snapshot().deployment.state is state


@pytest.mark.parametrize("state", list(State))
def test_a_router_restarted_with_a_registry_in_any_state_serves_at_once_and_the_next_deploy_goes_through(
    turnout: Turnout, candidate: Daemon, state: State
) -> None:
    turnout.configure(line_daemon("--version", "v1"), observe="200ms")
    turnout.run("up")
    router = turnout.router_pid()
    turnout.kill(router, signal.SIGSTOP)  # it must not go on from there before its successor does
    brought_to(turnout, state, candidate)
    turnout.kill(router)
    assert ask(turnout.address, timeout_s=60) == ("candidate" if state is State.SWITCHED else "v1")
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
