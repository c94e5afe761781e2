"""A daemon that knows nothing of it, reached without a proxy: deploys, kills and drains, by the real command."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from direct_support import Lines, kill_the_active_under_load, no_trouble, router
from e2e_support import Turnout, line_daemon, under_load
from redis_clients import RedisClients
from support import eventually, report, scaled
from turnout.demo.load import line_exchange
from turnout.planes.direct.bpf_pins import pins_of
from turnout.system.net.sockets import descriptors_of, listening_at


def configure(turnout: Turnout, version: str, **settings: str) -> None:
    # with FAST's grace of 1 s a slow machine sees the first connection cut before the test has looked at it
    tuned = {"plane": '"sk_lookup"', "drain": '{ grace = "10m", deadline = "10m" }', **settings}
    turnout.configure(line_daemon("--version", version), version=version, observe="200ms", settings=tuned)


@pytest.fixture
def steered(home_with_bpffs: Turnout) -> Turnout:
    """A home with a bpf filesystem of its own, and a service on this plane."""
    configure(home_with_bpffs, "v1")
    return home_with_bpffs


@pytest.fixture
def lines(steered: Turnout) -> Iterator[Lines]:
    steered.run("up")
    found = Lines(steered.address, scaled(100, 1000))
    with contextlib.closing(found):
        yield found


def test_deploys_under_load_fail_nobody_and_no_byte_passes_the_router(steered: Turnout) -> None:
    steered.run("up")
    with under_load(steered) as load:
        for number in range(2, 5):
            configure(steered, f"v{number}")
            steered.run("deploy")
        eventually(lambda: load.answered["v4"] > 0)
    no_trouble(steered)
    status = steered.status()
    assert status["router"]["plane"] == "sk_lookup"
    assert status["counters"]["accepted"] == 0, "some went through the relay"
    assert set(load.answered) >= {"v1", "v4"}
    active = steered.active()
    assert (active["bytes_in"], active["bytes_out"]) == (None, None)


def test_an_old_daemon_is_drained_as_the_kernel_counts_its_connections(steered: Turnout) -> None:
    # the cutting of quiet connections is spread over half of the deadline: with 10 minutes it is waited for
    drain = '{ grace = "0s", deadline = "30s" }'
    configure(steered, "v1", drain=drain)
    steered.run("up")
    old = steered.active()
    with (
        socket.create_connection(steered.address, 20) as stays,
        socket.create_connection(steered.address, 20) as ends,
    ):
        for _ in range(3):  # one quick exchange alone does not tell who spoke last
            assert line_exchange(stays) == line_exchange(ends) == "v1"
        stays.sendall(b"half a line, so its answer is still to come")
        eventually(lambda: steered.active()["connections"] == 2, why="a look is good for a moment")
        configure(steered, "v2", drain=drain)
        steered.run("deploy")
        told = eventually(lambda: _drained(steered))
        assert told
        host, port = stays.getsockname()
        assert f"{host}:{port}" in {link["peer"] for link in told["connections"]}
        ends.settimeout(60)
        assert ends.recv(1) == b"", "the quiet one is ended in order"
        stays.sendall(b", and here it is\n")
        assert stays.recv(1000).startswith(b"v1"), "the one that waits for an answer goes on"
        stays.close()
        eventually(lambda: not any(d["boot_id"] == old["boot_id"] for d in steered.status()["daemons"]), timeout_s=60)


def _drained(turnout: Turnout) -> dict[str, Any] | None:
    drains = json.loads(turnout.run("drain", "--explain", "--json").stdout)
    return drains[0] if drains else None


def test_without_router_and_keeper_everything_goes_on_and_the_next_up_takes_over(
    steered: Turnout, lines: Lines
) -> None:
    pins = pins_of(steered.home.root, "default")
    assert pins
    with under_load(steered) as load:
        keeper, old = steered.keeper_pid(), steered.router_pid()
        steered.kill(keeper)
        steered.kill(old)
        eventually(lambda: not listening_pids(steered), why="keeper and router have let the address go")
        before = load.made
        eventually(lambda: load.made > before + 20, why="new connections are accepted with nobody there")
        lines.all_go_on()
        link = (pins.directory / "link").stat().st_ino
        steered.run("up")
        assert (pins.directory / "link").stat().st_ino == link, "it was taken over, not made anew"
        assert router(steered)["pid"] != old
        lines.all_go_on()
        configure(steered, "v2")
        steered.run("deploy")
        eventually(lambda: load.answered["v2"] > 0)
    lines.all_go_on()
    report("keeper and router killed", live=len(lines.socks), made=load.made, failed=load.failed)
    lines.close()
    steered.run("down")
    assert not pins.exist()


def listening_pids(turnout: Turnout) -> list[int]:
    """Who has a listener of the fixed address open."""
    inodes = {found.inode for found in listening_at(*turnout.address)}
    return [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and any(inode in inodes for inode, _ in descriptors_of(int(entry.name)))
    ]


def test_a_killed_router_is_back_and_counts_what_the_kernel_served_meanwhile(steered: Turnout, lines: Lines) -> None:
    old = steered.router_pid()
    with under_load(steered) as load:
        steered.kill(old)
        eventually(lambda: router(steered)["pid"] not in {None, old})
        lines.all_go_on()
        # the load comes and goes, the lines stay
        eventually(lambda: steered.active()["connections"] >= len(lines.socks))
    report("router killed", plane="sk_lookup", live=len(lines.socks), made=load.made, failed=load.failed)
    no_trouble(steered)


def test_a_replaced_router_hands_the_steering_over(steered: Turnout, lines: Lines) -> None:
    with under_load(steered) as load:
        old = steered.router_pid()
        steered.run("router", "--replace")
        assert router(steered)["pid"] != old
        configure(steered, "v2")
        steered.run("deploy")
        eventually(lambda: load.answered["v2"] > 0)
        eventually(lambda: router(steered)["leaving"] == [], why="it waits for what passes it by")
    lines.all_go_on()


def test_a_daemon_killed_under_load_costs_what_it_had_and_nobody_who_comes_after(steered: Turnout) -> None:
    steered.run("up")
    kill_the_active_under_load(steered)
    no_trouble(steered)


def test_a_stopped_daemon_is_relayed_to_until_it_goes_on(steered: Turnout) -> None:
    steered.run("up")
    pid = steered.active()["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        eventually(lambda: "SIGSTOP" in router(steered)["plane_trouble"])
        text = steered.run("status").stdout
        assert "relays: the daemon is stopped" in text
        with socket.create_connection(steered.address, 20) as client:
            client.sendall(b"are you there\n")
            eventually(lambda: steered.status()["counters"]["accepted"] > 0, why="the relay has it")
            os.kill(pid, signal.SIGCONT)
            client.settimeout(20)
            assert client.recv(100).startswith(b"v1")
    finally:
        os.kill(pid, signal.SIGCONT)
    no_trouble(steered)


def test_paused_and_stopped_services_are_steered_to_nobody(steered: Turnout) -> None:
    steered.run("up")
    steered.run("pause")
    held = socket.create_connection(steered.address, 20)
    with held:
        eventually(lambda: steered.status()["held"] == 1)
        steered.run("resume")
        assert line_exchange(held) == "v1"
    steered.run("stop")
    with pytest.raises(ConnectionResetError), socket.create_connection(steered.address, 20) as client:
        line_exchange(client)


def test_nobody_but_the_daemon_has_its_listener(steered: Turnout) -> None:
    """A copy in another process would keep it alive when the daemon dies, with a queue that nobody accepts from."""
    steered.run("up")
    active = steered.active()
    (listener,) = listening_at("127.0.0.1", active["port"])
    holders = [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and listener.inode in {inode for inode, _ in descriptors_of(int(entry.name))}
    ]
    assert holders == [active["pid"]]


def test_another_plane_ends_what_a_router_on_this_one_left(steered: Turnout) -> None:
    steered.run("up")
    pins = pins_of(steered.home.root, "default")
    assert pins
    assert pins.exist()
    steered.tune(plane='"relay"')
    steered.run("up")
    steered.run("router", "--replace")
    assert router(steered)["plane"] == "relay"
    assert not pins.exist()
    with socket.create_connection(steered.address, 20) as client:
        assert line_exchange(client) == "v1"
        assert steered.status()["counters"]["accepted"] == 1


def test_without_the_capabilities_it_relays_and_status_and_doctor_say_why(
    turnout: Turnout, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = turnout.argv
    drop = ("setpriv", "--bounding-set=-bpf,-net_admin,-sys_admin") if os.geteuid() == 0 else ()
    monkeypatch.setattr(turnout, "argv", lambda *args: [*drop, *argv(*args)])
    configure(turnout, "v1")
    turnout.run("up")
    with under_load(turnout) as load:
        configure(turnout, "v2")
        turnout.run("deploy")
        eventually(lambda: load.answered["v2"] > 0)
    said = router(turnout)
    assert said["plane"] == "sk_lookup"
    assert "CAP_BPF" in said["plane_trouble"]
    assert turnout.status()["counters"]["accepted"] > 0
    told = turnout.run("doctor", code=None).stdout
    assert "CAP_BPF" in told
    assert turnout.run("down").returncode == 0


def test_doctor_says_what_a_killed_router_left_and_what_it_advises_takes_it_over(steered: Turnout) -> None:
    steered.run("up")
    assert steering_of(steered) == {}
    for pid in (steered.keeper_pid(), steered.router_pid()):
        steered.kill(pid)
    found = steering_of(steered)
    assert found, (steered.processes(), steered.run("doctor", code=None).stdout)
    assert "no router runs, and the kernel goes on" in found["evidence"]
    assert found["mend"] == "turnout up"
    steered.run("up")
    eventually(lambda: steering_of(steered) == {})
    no_trouble(steered)


def test_doctor_says_that_steering_would_end_with_a_router_that_could_not_pin(steered: Turnout) -> None:
    pins = pins_of(steered.home.root, "default")
    assert pins
    theirs = pins.directory.parent / "theirs"  # or the directory would be taken for one that is left over, and go
    theirs.mkdir(parents=True)
    theirs.parent.chmod(0o777)
    steered.run("up")
    theirs.rmdir()
    theirs.parent.rmdir()
    found = steering_of(steered)
    assert "is not pinned" in found["evidence"]
    assert found["mend"] == "turnout router --replace"
    steered.run("router", "--replace")
    assert steering_of(steered) == {}
    assert pins.exist()


def steering_of(turnout: Turnout) -> dict[str, Any]:
    """What doctor finds wrong with the kernel's part; empty: nothing."""
    told = json.loads(turnout.run("doctor", "--json", code=None).stdout)["findings"]
    wrong = [one for one in told if one["check"] == "steering" and one["verdict"] != "ok"]
    assert len(wrong) <= 1, wrong
    return wrong[0] if wrong else {}


@pytest.mark.redis
@pytest.mark.timeout(600)
def test_a_real_redis_is_deployed_under_load_with_nobody_failing(steered: Turnout, redis: str) -> None:
    rollouts = scaled(4, 20)
    steered.configure([redis, "--port", "{port}", "--bind", "127.0.0.1", "--save", ""], observe="300ms")
    steered.tune(plane='"sk_lookup"')
    steered.run("up")
    with RedisClients(steered.address) as clients:
        for number in range(rollouts):
            steered.run("deploy", "--version", f"v{number + 2}")
            clients.met(number + 1)
    report("a real redis, steered", rollouts=rollouts, connections=clients.connections, errors=len(clients.errors))
    assert clients.errors == []
    assert len(clients.replies) == rollouts + 1
    assert steered.status()["counters"]["accepted"] == 0
