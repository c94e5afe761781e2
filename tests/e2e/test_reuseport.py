"""Daemons that share the fixed address with the router, by a socket that they are given; by the real command."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from direct_support import Lines, deploy_under_load, holders, kill_the_active_under_load, no_trouble, router
from e2e_support import Turnout, line_daemon, under_load
from support import eventually, report, scaled
from turnout.demo.load import Load, line_exchange
from turnout.testing import free_port

SUPPORT = Path(__file__).parents[1] / "support"


def command(version: str, *, tells: bool = True) -> list[str]:
    """A daemon that is given its listener, and told which descriptor that is, or looks at LISTEN_FDS."""
    return [sys.executable, "-P", str(SUPPORT / "fd_daemon.py"), version, *(["--fd", "{fd}"] if tells else [])]


def configure(turnout: Turnout, version: str, **settings: str) -> None:
    tuned = {"drain": '{ grace = "10m", deadline = "10m" }', **settings}
    turnout.configure(command(version), version=version, observe="200ms", settings=tuned)


@pytest.fixture
def shared(turnout: Turnout) -> Turnout:
    """A service whose daemon takes part, so that nobody has to name the plane."""
    configure(turnout, "v1")
    turnout.run("up")
    assert router(turnout)["plane"] == "reuseport"
    return turnout


@pytest.fixture
def lines(shared: Turnout) -> Iterator[Lines]:
    with contextlib.closing(Lines(shared.address, scaled(100, 1000))) as found:
        yield found


def test_deploys_under_load_fail_nobody_and_no_byte_passes_the_router(shared: Turnout) -> None:
    deploy_under_load(shared, configure, "reuseport")


def test_a_daemon_that_looks_at_listen_fds_takes_part_where_the_plane_is_named(turnout: Turnout) -> None:
    turnout.configure(command("v1", tells=False), observe="200ms")
    turnout.tune(plane='"reuseport"')
    turnout.run("up")
    with socket.create_connection(turnout.address, 20) as client:
        assert line_exchange(client) == "v1"
    assert router(turnout)["plane"] == "reuseport"
    assert turnout.status()["counters"]["accepted"] == 0


def test_under_a_relay_the_daemon_is_given_a_listener_of_its_own(turnout: Turnout) -> None:
    configure(turnout, "v1", plane='"relay"')
    turnout.run("up")
    with under_load(turnout):
        configure(turnout, "v2", plane='"relay"')
        turnout.run("deploy")
    assert router(turnout)["plane"] == "relay"
    assert turnout.active()["port"] != turnout.port
    assert turnout.status()["counters"]["accepted"] > 0


def test_a_plane_that_the_daemon_cannot_use_is_refused_with_the_reason(turnout: Turnout) -> None:
    turnout.configure([sys.executable, "-P", "-m", "turnout.demo.daemon", "--port", "{port}"])
    turnout.tune(plane='"reuseport"')
    told = turnout.run("up", code=2).stderr
    assert "plane reuseport: the command asks for a {port} of its own" in told
    assert "hint: have it take its listener: {fd}" in told


def test_a_policy_of_a_relay_makes_it_one(turnout: Turnout) -> None:
    configure(turnout, "v1", limits="{ connections = 5 }")
    turnout.run("up")
    assert router(turnout)["plane"] == "relay"
    turnout.run("down")
    turnout.tune(plane='"reuseport"')
    told = turnout.run("up", code=2).stderr
    assert "plane reuseport beside limits.connections" in told


def test_an_address_that_daemons_share_is_not_given_up_while_they_run(shared: Turnout) -> None:
    before = shared.port
    shared.port = free_port()
    configure(shared, "v1")
    told = shared.run("up", code=6).stderr
    assert f"share 127.0.0.1:{before}: it cannot be given up" in told
    with socket.create_connection(shared.address, 20) as client:
        assert line_exchange(client) == "v1"


def test_a_candidate_is_probed_itself_and_never_the_active_daemon(shared: Turnout) -> None:
    """By a connection that chooses it: the fixed address alone would reach the active one, which answers well."""
    shared.configure(command("v2"), version="v2", probe="expect", extra=', send = "who\\n", match = "v2"')
    shared.run("deploy")
    shared.configure(command("v3"), version="v3", probe="expect", extra=', send = "who\\n", match = "v2"')
    shared.tune(start_timeout='"2s"')
    told = shared.run("deploy", code=None)
    assert told.returncode != 0
    assert "only 'v3 who" in told.stderr, "it was the candidate who answered"
    with socket.create_connection(shared.address, 20) as client:
        assert line_exchange(client) == "v2"


def test_an_old_daemon_keeps_its_connections_until_they_end(shared: Turnout) -> None:
    old = shared.active()
    with socket.create_connection(shared.address, 20) as stays:
        assert line_exchange(stays) == "v1"
        configure(shared, "v2", drain='{ grace = "10m", deadline = "10m" }')
        shared.run("deploy")
        assert line_exchange(stays) == "v1"
        eventually(lambda: _connections(shared, old["boot_id"]) == 1)
    eventually(lambda: _connections(shared, old["boot_id"]) is None, timeout_s=60, why="it is stopped once it is idle")


def _connections(turnout: Turnout, boot_id: str) -> int | None:
    return next((one["connections"] for one in turnout.status()["daemons"] if one["boot_id"] == boot_id), None)


def test_a_killed_router_costs_nobody_and_new_connections_go_on(shared: Turnout, lines: Lines) -> None:
    before = shared.router_pid()
    with under_load(shared) as load:
        shared.kill(before)
        lines.all_go_on()
        made = load.made
        eventually(lambda: load.made > made + 50)
        eventually(lambda: router(shared)["pid"] not in {None, before})
        configure(shared, "v2")
        shared.run("deploy")
        eventually(lambda: load.answered["v2"] > 0)
    lines.all_go_on()
    report("router killed", plane="reuseport", live=len(lines.socks), made=load.made, failed=load.failed)
    no_trouble(shared)


def test_a_replaced_router_hands_the_steering_over(shared: Turnout, lines: Lines) -> None:
    with under_load(shared) as load:
        old = shared.router_pid()
        shared.run("router", "--replace")
        assert router(shared)["pid"] != old
        configure(shared, "v2")
        shared.run("deploy")
        eventually(lambda: load.answered["v2"] > 0)
        eventually(lambda: router(shared)["leaving"] == [], why="it waits for what passes it by")
    lines.all_go_on()


def test_a_killed_keeper_is_followed_by_one_that_knows_every_place(shared: Turnout, lines: Lines) -> None:
    with under_load(shared) as load:
        shared.kill(shared.keeper_pid())
        for number in range(2, 5):
            configure(shared, f"v{number}")
            shared.run("deploy")
        eventually(lambda: load.answered["v4"] > 0)
    lines.all_go_on()
    no_trouble(shared)
    assert shared.status()["counters"]["accepted"] == 0


def test_without_keeper_and_router_the_daemons_go_on_and_the_next_up_takes_over(shared: Turnout, lines: Lines) -> None:
    """While the router's listeners close one after the other, places move: what those had queued is lost, no more."""
    clients = 3
    load = Load(shared.address, line_exchange, clients=clients)
    load.start()
    try:
        eventually(lambda: load.made > 50)
        keeper, old = shared.keeper_pid(), shared.router_pid()
        pid = shared.active()["pid"]
        shared.kill(keeper)
        shared.kill(old)
        eventually(lambda: list(holders(shared.address).values()) == [{pid}], why="the daemon alone has the address")
        made = load.made
        eventually(lambda: load.made > made + 20, why="new connections are accepted with nobody there")
        lost = load.failed
        lines.all_go_on()
        shared.run("up")
        assert router(shared)["pid"] not in {None, old}
        for number in range(2, 4):
            configure(shared, f"v{number}")
            shared.run("deploy")
        eventually(lambda: load.answered["v3"] > 0)
        no_trouble(shared)
    finally:
        load.stop()
    lines.all_go_on()
    report("keeper and router killed", live=len(lines.socks), made=load.made, lost=lost, failed=load.failed)
    assert load.failed == lost, "nobody failed once they were gone, nor when they were back"
    assert lost <= clients, dict(load.errors)
    assert all("reset" in error for error in load.errors), "nobody was refused"


def hard_coded(version: str, port: int) -> list[str]:
    return [word.replace("{port}", str(port)) for word in line_daemon("--version", version)]


@pytest.mark.parametrize("how", ["given", "activated"])
@pytest.mark.parametrize("active", ["v1", "v2", "v3"])
def test_without_keeper_and_router_clients_meet_the_active_daemon_alone(
    turnout: Turnout, how: str, active: str
) -> None:
    """Whichever index it has: those of daemons are below all others, so that the router's listeners leave no gap."""
    own = free_port()

    def release(version: str) -> None:
        daemon = hard_coded(version, own) if how == "activated" else command(version)
        flags = {"activation": '"on"', "port": str(own)} if how == "activated" else {}
        turnout.configure(daemon, version=version, observe="10m", settings={"drain": '{ deadline = "10m" }', **flags})

    with contextlib.ExitStack() as opened:
        release("v1")
        turnout.run("up")
        assert router(turnout)["plane"] == "reuseport"
        stays = [opened.enter_context(socket.create_connection(turnout.address, 30))]
        assert line_exchange(stays[0]) == "v1"
        release("v2")
        turnout.run("deploy", "--detach")
        if active != "v1":
            stays.append(opened.enter_context(socket.create_connection(turnout.address, 30)))
            release("v3")
            turnout.run("deploy", "--detach", "--supersede")
        if active != "v3":
            turnout.run("rollback")
        keeper, old = turnout.keeper_pid(), turnout.router_pid()
        turnout.kill(keeper)
        turnout.kill(old)
        served = {identity.pid for identity in turnout.daemons().values()}
        eventually(lambda: set().union(*holders(turnout.address).values()) <= served, why="the daemons are alone")
        met = Counter(_ask(turnout.address) for _ in range(60))
        assert met == {active: 60}
        turnout.run("up")
        assert router(turnout)["pid"] not in {None, old}
        no_trouble(turnout)
        assert Counter(_ask(turnout.address) for _ in range(20)) == {active: 20}
        release("v4")
        turnout.run("deploy", "--detach", "--supersede")
        assert Counter(_ask(turnout.address) for _ in range(20)) == {"v4": 20}


def _ask(address: tuple[str, int]) -> str:
    with socket.create_connection(address, 30) as client:
        return line_exchange(client)


def test_places_that_were_found_anew_outlive_the_next_keeper_too(shared: Turnout) -> None:
    configure(shared, "v2", observe='"10m"')
    shared.run("deploy", "--detach")
    for pid in (shared.keeper_pid(), shared.router_pid()):
        shared.kill(pid)
    eventually(lambda: len(holders(shared.address)) == 2, why="both daemons have the address, and nobody else")
    shared.run("up")
    shared.kill(shared.keeper_pid())
    with under_load(shared) as load:
        shared.run("rollback")
        eventually(lambda: load.answered["v1"] > 0)
        configure(shared, "v3", observe='"10ms"')
        shared.run("deploy")
        eventually(lambda: load.answered["v3"] > 0)
    no_trouble(shared)


def test_a_daemon_killed_under_load_costs_what_it_had_and_nobody_who_comes_after(shared: Turnout) -> None:
    kill_the_active_under_load(shared)
    no_trouble(shared)


def test_a_stopped_daemon_is_relayed_to_until_it_goes_on(shared: Turnout) -> None:
    pid = shared.active()["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        eventually(lambda: "SIGSTOP" in router(shared)["plane_trouble"])
        with socket.create_connection(shared.address, 20) as client:
            client.sendall(b"are you there\n")
            eventually(lambda: shared.status()["counters"]["accepted"] > 0, why="the relay has it")
            os.kill(pid, signal.SIGCONT)
            client.settimeout(20)
            assert client.recv(100).startswith(b"v1")
    finally:
        os.kill(pid, signal.SIGCONT)
    no_trouble(shared)


def test_clients_that_wait_for_a_suspended_daemon_are_served_by_the_next_one_when_it_is_killed(
    shared: Turnout,
) -> None:
    """The kernel had connected them: to the daemon's queue, and to the relay's connections to it after a moment."""
    count = 200
    pid = shared.active()["pid"]
    with contextlib.ExitStack() as opened:
        os.kill(pid, signal.SIGSTOP)
        clients = [opened.enter_context(socket.create_connection(shared.address, 60)) for _ in range(count // 2)]
        eventually(lambda: "SIGSTOP" in router(shared)["plane_trouble"])
        clients += [opened.enter_context(socket.create_connection(shared.address, 60)) for _ in range(count // 2)]
        for client in clients:
            client.sendall(b"still there?\n")
        eventually(lambda: shared.status()["counters"]["accepted"] >= count // 2, why="the relay has the later half")
        shared.kill(pid)
        answers = [client.recv(100) for client in clients]
    assert all(answer.startswith(b"v1 still there?") for answer in answers), answers
    no_trouble(shared)


def test_no_source_address_of_a_client_reaches_a_daemon_that_is_not_active(shared: Turnout) -> None:
    configure(shared, "v2", observe='"10m"')
    shared.run("deploy", "--detach")
    for number in range(8):
        with socket.socket() as client:
            client.settimeout(20)
            client.bind((f"127.47.77.{number}", 0))
            client.connect(shared.address)
            assert line_exchange(client) == "v2", number


def test_paused_clients_are_let_go_to_a_daemon_that_has_no_port_of_its_own(shared: Turnout) -> None:
    shared.run("pause")
    with socket.create_connection(shared.address, 20) as held:
        eventually(lambda: shared.status()["held"] == 1)
        configure(shared, "v2")
        shared.run("deploy", "--detach")
        shared.run("resume")
        assert line_exchange(held) == "v2"
        assert _connections(shared, shared.active()["boot_id"]) == 1, "it is counted once"
    shared.run("stop")
    with pytest.raises(ConnectionResetError), socket.create_connection(shared.address, 20) as client:
        line_exchange(client)
    shared.run("start")
    with socket.create_connection(shared.address, 20) as client:
        assert line_exchange(client) == "v2"


def test_down_leaves_nobody_at_the_address(shared: Turnout) -> None:
    shared.run("down")
    assert holders(shared.address) == {}
