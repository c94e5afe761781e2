"""An idle connection is ended after one to one and an eighth of its timeout; one that moves a byte is not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import pytest

from plane_fakes import FakeConnection, FakeLoop
from turnout.planes.idle_timeout import AT_ONCE, LOOKS, IdleTimeout

TIMEOUT_S = 8.0


class Scene:
    def __init__(self, connections: Iterable[FakeConnection]) -> None:
        self.loop = FakeLoop()
        self.connections = list(connections)
        self.ended: dict[int, float] = {}
        self.timeout = IdleTimeout(self.loop.as_loop, self.connections, self._end, clock=self.loop.time)
        self.timeout.set(TIMEOUT_S)

    def _end(self, connection: FakeConnection) -> None:
        connection.closed = True
        self.connections.remove(connection)
        self.ended[connection.id] = self.loop.now - 100.0


def test_an_idle_connection_is_ended_in_time_and_a_busy_one_stays() -> None:
    scene = Scene([FakeConnection(1, "a"), FakeConnection(2, "a")])
    for _ in range(40):
        scene.loop.go_on(TIMEOUT_S / 10)
        scene.connections[-1].bytes_out += 1
    assert list(scene.ended) == [1]
    assert TIMEOUT_S <= scene.ended[1] <= TIMEOUT_S * (1 + 1 / LOOKS) + 0.01


def test_a_connection_that_moved_a_byte_has_the_whole_timeout_again() -> None:
    scene = Scene([FakeConnection(1, "a")])
    scene.loop.go_on(TIMEOUT_S - 1)
    scene.connections[0].bytes_in += 1
    scene.loop.go_on(TIMEOUT_S - 1)
    assert not scene.ended
    scene.loop.go_on(TIMEOUT_S)
    assert list(scene.ended) == [1]


def test_without_a_timeout_nothing_is_looked_at_and_nothing_is_ended() -> None:
    scene = Scene([FakeConnection(1, "a")])
    scene.loop.go_on(TIMEOUT_S / 2)
    scene.timeout.set(None)
    assert scene.loop.pending == 0
    scene.loop.go_on(10 * TIMEOUT_S)
    assert not scene.ended


def test_another_timeout_is_in_force_at_once() -> None:
    scene = Scene([FakeConnection(1, "a")])
    scene.timeout.set(TIMEOUT_S / 8)
    scene.loop.go_on(TIMEOUT_S / 8 * 1.2)
    assert list(scene.ended) == [1]


@pytest.mark.parametrize("count", [AT_ONCE, 3 * AT_ONCE + 1])
def test_of_very_many_connections_a_bounded_number_is_looked_at_in_one_turn(count: int) -> None:
    looked: list[float] = []

    class Counting(FakeConnection):
        def moved(self) -> tuple[int, int]:
            looked.append(scene.loop.now)
            return super().moved()

    scene = Scene(Counting(number, "a") for number in range(count))
    timer = scene.loop._timers[0][2]
    timer.cancel()
    timer.act(*timer.args)
    assert len(looked) == AT_ONCE
    scene.loop.go_on(0.0)
    assert len(looked) == count


def test_a_connection_that_cannot_be_ended_does_not_end_the_looks_at_the_others() -> None:
    scene = Scene([FakeConnection(1, "a"), FakeConnection(2, "a")])
    end, failed = scene.timeout._end, list[int]()

    def fail_once(connection: FakeConnection) -> None:
        if not failed:
            failed.append(connection.id)
            raise OSError("no descriptor")
        end(connection)

    scene.timeout._end = cast("Any", fail_once)
    with pytest.raises(OSError, match="no descriptor"):
        scene.loop.go_on(3 * TIMEOUT_S)
    scene.loop.go_on(3 * TIMEOUT_S)
    assert sorted(scene.ended) == [1, 2]
