from __future__ import annotations

import subprocess
import sys

import pytest

from turnout.core.deployment import begin_deploy
from turnout.core.membership import register_daemon
from turnout.core.model import Daemon
from turnout.planes.plane import Plane, TrafficStats, Upstream
from turnout.testing import FakeClock, FakePlane, FakeProcesses, MemoryRegistry, Pointed, demo_command, free_port

A = Upstream("a", "127.0.0.1", 20001)
B = Upstream("b", "127.0.0.1", 20002)


def test_the_clock_passes_only_when_told_to() -> None:
    clock = FakeClock(5.0)
    clock.sleep(1.5)
    clock.advance(0.5)
    assert clock.now() == 7.0
    assert clock.slept == [1.5]
    with pytest.raises(ValueError, match="back"):
        clock.advance(-1)


def test_a_reused_pid_is_another_process() -> None:
    processes = FakeProcesses()
    first = processes.start()
    processes.end(first)
    assert processes.provably_dead(first)
    second = processes.start(first.pid)
    assert processes.is_alive(second)
    assert not processes.is_alive(first)
    processes.end(first)
    assert processes.identify(first.pid) == second
    with pytest.raises(ProcessLookupError):
        processes.identify(1)


def test_the_plane_is_one_and_remembers_where_it_was_pointed() -> None:
    fake = FakePlane()
    plane: Plane = fake
    plane.set_upstream(A, patience_s=1.0)
    fake.connect(3)
    plane.set_upstream(B, patience_s=0.0)
    fake.connect()
    assert fake.pointed == [Pointed(A, 1.0), Pointed(B, 0.0)]
    assert plane.traffic() == {"a": TrafficStats(3, 0, 0), "b": TrafficStats(1, 0, 0)}
    assert plane.cut("a") == 3
    assert plane.cut("nobody") == 0
    assert plane.connections() == 1
    plane.close()
    assert plane.connections() == 0


def test_the_plane_still_has_the_names_of_0_1_0() -> None:
    plane = FakePlane()
    plane.point_at(A, patience_s=1.0)
    plane.connect()
    assert plane.census() == plane.traffic() == {"a": TrafficStats(1, 0, 0)}
    assert plane.carried("a") == plane.open_connections("a")
    assert (plane.trouble, plane.target) == ("", A)


def test_the_plane_holds_while_nobody_serves_and_resets_when_told_not_to_wait() -> None:
    plane = FakePlane()
    plane.set_upstream(None, patience_s=1.0)
    plane.connect(2)
    assert plane.counters.held_now == 2
    plane.set_upstream(A, patience_s=1.0)
    assert (plane.counters.held_now, plane.connections()) == (0, 2)
    plane.set_upstream(None, patience_s=0.0)
    plane.connect()
    assert plane.counters.reset_unrouted == 1


def test_the_registry_keeps_what_was_applied_and_nothing_else() -> None:
    registry = MemoryRegistry()
    owner = FakeProcesses().start()
    assert registry.update(lambda snap: register_daemon(snap, Daemon("a", port=20001))).applied
    assert registry.update(lambda snap: begin_deploy(snap, "b", owner=owner)).applied
    before = registry.read().snapshot
    refused = registry.update(lambda snap: begin_deploy(snap, "c", owner=owner))
    assert not refused.applied
    assert registry.read().snapshot is before
    assert len(registry.outcomes) == 3


def test_the_demo_command_leaves_the_port_to_be_filled_in() -> None:
    command = demo_command("v2", "--banner", "x")
    assert command[-4:] == ("--version", "v2", "--banner", "x")
    assert "{port}" in command


def test_a_port_that_one_process_was_given_goes_to_no_other_while_it_may_want_it() -> None:
    program = "from turnout.testing import free_port; print(*[free_port() for _ in range(60)], flush=True); input()"
    argv = [sys.executable, "-P", "-c", program]
    given: list[int] = []
    running = [subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(3)]
    try:
        for process in running:
            assert process.stdout
            given += map(int, process.stdout.readline().split())
        given += [free_port() for _ in range(60)]
    finally:
        for process in running:
            process.communicate(b"\n", timeout=60)
    assert len(given) == len(set(given)) == 240
