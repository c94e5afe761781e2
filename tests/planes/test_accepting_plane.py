"""What every plane does that carries connections itself: its table, its cuts and its limits, with fake connections."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from plane_fakes import FakeConnection, FakeLoop, FakeReadiness
from turnout.core.connection_policy import Policy
from turnout.planes.accepting_plane import AcceptingPlane
from turnout.planes.hold_queue import PendingClient
from turnout.planes.plane import ConnectionInfo, PlaneOptions, TrafficStats, Upstream


class Carried(FakeConnection):
    """A connection that ends at once, as its plane is to hear."""

    plane: FakePlane
    how = ""

    def info(self, now: float, *, peers: bool) -> ConnectionInfo:
        return ConnectionInfo(self.id, "peer" if peers else "", now, *self.moved(), answered=True, half_sent=False)

    def end(self) -> None:
        self._is("ended")

    def reset(self) -> None:
        self._is("reset")

    def _is(self, how: str) -> None:
        self.how, self.closed = how, True
        self.plane._ended(self)


class FakePlane(AcceptingPlane[Carried]):
    closed_connections = 0

    def carry(self, number: int, boot_id: str, *, bytes_in: int = 0) -> Carried:
        connection = Carried(number, boot_id, bytes_in)
        connection.plane = self
        self._table.add(connection)
        return connection

    def _begin(self, client: PendingClient, daemon: socket.socket, upstream: Upstream) -> None:
        raise AssertionError

    def _close_connections(self) -> None:
        self.closed_connections += 1


@pytest.fixture
def loop() -> FakeLoop:
    return FakeLoop()


@pytest.fixture
def plane(loop: FakeLoop) -> FakePlane:
    return FakePlane(loop.as_loop, FakeReadiness(), PlaneOptions(Policy(idle_timeout_s=8.0), clock=loop.time))


def test_a_boot_is_cut_whole_by_resets_and_no_other_one_with_it(plane: FakePlane) -> None:
    first, second, other = plane.carry(1, "a", bytes_in=3), plane.carry(2, "a"), plane.carry(3, "b")
    assert plane.cut("a") == 2
    assert [first.how, second.how, other.how] == ["reset", "reset", ""]
    assert (plane.counters.cut, plane.counters.closed) == (2, 2)
    assert (plane.connections(), plane.relayed("a"), plane.relayed("b")) == (1, 0, 1)
    assert plane.traffic() == {"a": TrafficStats(0, 3, 0), "b": TrafficStats(1, 0, 0)}


def test_single_connections_are_cut_in_order(plane: FakePlane) -> None:
    first, second = plane.carry(1, "a"), plane.carry(2, "a")
    assert plane.cut("a", [2, 9]) == 1
    assert [first.how, second.how] == ["", "ended"]
    assert (plane.cut("a", []), plane.cut("nobody")) == (0, 0)


def test_open_connections_are_described_as_of_now(plane: FakePlane, loop: FakeLoop) -> None:
    plane.carry(1, "a", bytes_in=3)
    loop.now = 123.0
    (info,) = plane.open_connections("a", peers=True)
    assert (info.id, info.peer, info.age_s, info.bytes_in) == (1, "peer", 123.0, 3)
    assert plane.open_connections("b") == []


def test_the_idle_timeout_ends_connections_in_order_until_another_policy_has_none(
    plane: FakePlane, loop: FakeLoop
) -> None:
    first = plane.carry(1, "a")
    loop.go_on(20.0)
    assert (first.how, plane.counters.idle_closed, plane.counters.cut) == ("ended", 1, 0)
    plane.apply(Policy())
    plane.carry(2, "a")
    loop.go_on(20.0)
    assert plane.connections() == 1


def test_the_end_of_a_connection_lets_clients_in_again_only_at_the_limit(
    plane: FakePlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(plane._acceptor, "resume_below_limit", lambda: asked.append(1))
    plane.carry(1, "a").end()
    assert not asked
    plane._acceptor.full = True
    plane.carry(2, "a").end()
    assert asked == [1]


def test_a_plane_closes_once(plane: FakePlane, loop: FakeLoop) -> None:
    plane.close()
    plane.close()
    assert (plane.closed_connections, loop.pending) == (1, 0)
