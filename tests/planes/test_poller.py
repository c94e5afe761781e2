"""One epoll for all relays: what an event is handed to, in which order, and how long the poller stays."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from select import EPOLLHUP, EPOLLIN, EPOLLOUT
from typing import Any, cast

import pytest

from plane_fakes import FakeLoop
from turnout.planes.flow import FlowState
from turnout.planes.loop_priority import LoopPriority
from turnout.planes.poller import DENSE_S, STAY_MOST_S, WAIT_S, Poller

LISTENER, BELL = 900, 901


class FakeFlow:
    """A flow and its pump; ``calls`` are what the poller had the pump do."""

    def __init__(self, name: str, calls: list[tuple[Any, ...]], state: FlowState = FlowState.FLOWING) -> None:
        self.name = name
        self.state = state
        self.pump = self
        self._calls = calls

    def read(self, flow: FakeFlow) -> None:
        self._calls.append(("read", flow.name))

    def handle(self, flow: FakeFlow, events: int) -> None:
        self._calls.append(("handle", flow.name, events))


class FakeMember:
    def __init__(self, name: str, calls: list[tuple[Any, ...]], listeners: set[int]) -> None:
        self.name = name
        self._calls = calls
        self._listeners = listeners

    def is_listener(self, fd: int) -> bool:
        return fd in self._listeners

    def on_event(self, fd: int, events: int) -> None:
        self._calls.append(("event", self.name, fd, events))

    def accept(self) -> None:
        self._calls.append(("accept", self.name))


class Scene:
    """A poller whose epoll answers what the test has put into ``rounds``; each wait lets its time pass."""

    def __init__(self) -> None:
        self.loop = FakeLoop()
        self.priority = LoopPriority()
        self.poller = Poller(self.loop.as_loop, loop_priority=self.priority, clock=self.loop.time)
        self.poller._poll = cast("Any", self._answer)
        self.calls: list[tuple[Any, ...]] = []
        self.rounds: list[list[tuple[int, int]]] = []
        self.waits: list[float] = []
        self.passes_s = 0.0

    def _answer(self, wait_s: float, _most: int) -> list[tuple[int, int]]:
        self.waits.append(wait_s)
        self.loop.now += self.passes_s
        return self.rounds.pop(0) if self.rounds else []

    def flow(self, fd: int, state: FlowState = FlowState.FLOWING) -> None:
        self.poller.flows[fd] = cast("Any", FakeFlow(f"flow {fd}", self.calls, state))

    def member(self, name: str, *listeners: int) -> None:
        self.poller.members.append(FakeMember(name, self.calls, set(listeners)))

    def wake(self, *rounds: list[tuple[int, int]]) -> list[tuple[Any, ...]]:
        self.rounds += rounds
        self.calls.clear()
        self.waits.clear()
        act, args = self.loop.readers[self.poller.epoll.fileno()]
        act(*args)
        return self.calls


@pytest.fixture
def scene() -> Iterator[Scene]:
    found = Scene()
    yield found
    found.poller.close()
    assert not found.loop.readers


def test_a_flow_that_flows_is_read_and_everything_else_is_the_pumps_to_judge(scene: Scene) -> None:
    scene.flow(5)
    scene.flow(6, FlowState.BLOCKED)
    events = [(5, EPOLLIN), (5, EPOLLIN | EPOLLHUP), (6, EPOLLIN), (5, EPOLLOUT)]
    assert scene.wake(events) == [
        ("read", "flow 5"),
        ("handle", "flow 5", EPOLLIN | EPOLLHUP),
        ("handle", "flow 6", EPOLLIN),
        ("handle", "flow 5", EPOLLOUT),
    ]


def test_clients_are_accepted_after_all_other_events_and_once_by_each_member(scene: Scene) -> None:
    """A new connection may get the number of one that an event of the same round is about."""
    scene.member("one", LISTENER, LISTENER + 1)
    scene.member("two")
    scene.flow(5)
    assert scene.wake([(LISTENER, EPOLLIN), (7, EPOLLOUT), (LISTENER + 1, EPOLLIN), (5, EPOLLIN)]) == [
        ("read", "flow 5"),
        ("event", "two", LISTENER, EPOLLIN),
        ("event", "one", 7, EPOLLOUT),
        ("event", "two", 7, EPOLLOUT),
        ("event", "two", LISTENER + 1, EPOLLIN),
        ("accept", "one"),
    ]


def test_it_stays_only_while_traffic_is_dense(scene: Scene) -> None:
    scene.flow(5)
    scene.wake([(5, EPOLLIN)])
    assert scene.waits == [0], "the first events after a pause"
    scene.loop.now += DENSE_S / 2
    assert len(scene.wake([(5, EPOLLIN)], [(5, EPOLLIN)], [(5, EPOLLIN)])) == 3
    assert scene.waits == [0, WAIT_S, WAIT_S, WAIT_S], "until a wait that brought nothing"
    scene.loop.now += 2 * DENSE_S
    scene.wake([(5, EPOLLIN)], [(5, EPOLLIN)])
    assert scene.waits == [0]


def test_it_never_stays_longer_than_its_bound(scene: Scene) -> None:
    scene.flow(5)
    scene.wake([(5, EPOLLIN)])
    scene.passes_s = STAY_MOST_S / 4
    scene.wake(*[[(5, EPOLLIN)]] * 100)
    assert len(scene.waits) == 5


@pytest.mark.parametrize("why", ["a member", "a bell", "something urgent"])
def test_it_leaves_for_what_the_loop_must_do(scene: Scene, why: str) -> None:
    scene.flow(5)
    scene.wake([(5, EPOLLIN)])
    scene.priority.wakeup_fds.add(BELL)
    first = [(BELL, EPOLLIN)] if why == "a bell" else [(7, EPOLLIN)]
    if why == "a member":
        scene.member("one")
        leave = scene.poller.leave_soon
        scene.poller.members[0].on_event = lambda fd, events: leave()  # type: ignore[method-assign]
    scene.priority.pending += why == "something urgent"
    scene.wake(first, [(5, EPOLLIN)])
    assert scene.waits == [0]
    scene.priority.pending = 0
    scene.rounds.clear()
    scene.wake([(5, EPOLLIN)])
    assert scene.waits == [0, WAIT_S], "the next time it stays again"


def test_a_bell_is_no_event_of_any_member(scene: Scene) -> None:
    scene.member("one")
    scene.priority.wakeup_fds.add(BELL)
    assert scene.wake([(BELL, EPOLLIN)]) == []


def test_a_descriptor_that_rings_is_on_the_epoll_until_it_is_forgotten(scene: Scene) -> None:
    near, far = socket.socketpair()
    with near, far:
        scene.priority.watch(near.fileno())
        far.send(b"!")
        assert scene.poller.epoll.poll(0) == [(near.fileno(), EPOLLIN)]
        scene.priority.forget(near.fileno())
        assert scene.poller.epoll.poll(0) == []
