"""What deciding costs: the codec, a rollout's events, a drain, and one turn of the pump."""

from __future__ import annotations

import select
import socket
from dataclasses import replace

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.test_registry import registry_of
from turnout.core.deployment import begin_deploy, finish_deploy, mark_candidate_healthy, switch_active
from turnout.core.drain import Decision, DrainPolicy, Remaining, decide
from turnout.core.model import Deployment, DrainCause, Identity, Snapshot, State
from turnout.planes.plane import Counters
from turnout.planes.pump import Flow, Pump
from turnout.state.registry.decoder import loads
from turnout.state.registry.encoder import dumps

OWNER = Identity(4711, 123456, "2b4b6d80-0000-4000-8000-000000000000", 4026531836)
SIZE = 64


@pytest.mark.benchmark(group="codec: write")
@pytest.mark.parametrize("count", [10, 1000, 10_000])
def test_dumps(benchmark: BenchmarkFixture, count: int) -> None:
    snapshot = registry_of(count)
    assert loads(benchmark(dumps, snapshot)).snapshot == snapshot


@pytest.mark.benchmark(group="state machine: begin, mark, switch, finish")
@pytest.mark.parametrize("count", [10, 1000])
def test_rollout(benchmark: BenchmarkFixture, count: int) -> None:
    idle = replace(registry_of(count), deployment=Deployment(generation=7, active_boot_id="boot-0", revision=40))

    def rollout() -> Snapshot:
        begun = begin_deploy(idle, "boot-1", owner=OWNER).snapshot
        generation = begun.deployment.generation
        ready = mark_candidate_healthy(begun, generation, "boot-1").snapshot
        switched = switch_active(ready, generation, "boot-1", now=1e9).snapshot
        return finish_deploy(switched, generation).snapshot

    block = benchmark(rollout).deployment
    assert (block.state, block.active_boot_id) == (State.IDLE, "boot-1")


@pytest.mark.benchmark(group="drain: decide for every connection of a daemon")
@pytest.mark.parametrize("count", [10, 1000, 10_000])
def test_drain(benchmark: BenchmarkFixture, count: int) -> None:
    policy = DrainPolicy(grace_s=30.0, deadline_s=600.0)
    remaining = [Remaining(n, idle_s=n % 7, answered=n % 3 > 0, half_sent=n % 11 == 0) for n in range(count)]

    def decided() -> Decision:
        return decide(policy, DrainCause.REPLACED, since=0.0, now=60.0, remaining=remaining, most=count, healthy=True)

    assert benchmark(decided).why


def _tcp() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname(), 20)
        far, _ = listener.accept()
    return near, far


@pytest.mark.benchmark(group="pump: one message through, system calls and all")
def test_pump(benchmark: BenchmarkFixture) -> None:
    client, inner = _tcp()
    outer, daemon = _tcp()
    for sock in (inner, outer):
        sock.setblocking(False)
    with select.epoll() as epoll:
        epoll.register(inner.fileno(), 0)
        flows: dict[int, Flow] = {}
        pump = Pump(epoll, flows, Counters(), lambda _pair: None, lambda: None)
        flow = pump.add(inner, outer, "boot").up
        message = b"x" * SIZE

        def through() -> bytes:
            client.send(message)
            pump.handle(flow, select.EPOLLIN)
            return daemon.recv(SIZE)

        assert benchmark(through) == message
        pump.close()
    client.close()
    daemon.close()
