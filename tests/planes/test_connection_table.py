"""The connections of a plane by boot, and the bytes of those that have closed."""

from __future__ import annotations

from plane_fakes import FakeConnection
from turnout.planes.connection_table import ConnectionTable
from turnout.planes.plane import TrafficStats


def test_the_bytes_of_open_and_closed_connections_add_up_by_boot() -> None:
    table: ConnectionTable[FakeConnection] = ConnectionTable()
    first, second, other = FakeConnection(1, "a", 10, 1), FakeConnection(2, "a", 20, 2), FakeConnection(3, "b", 5, 5)
    for connection in (first, second, other):
        table.add(connection)
    table.remove(first)
    second.bytes_in += 100
    assert table.stats() == {"a": TrafficStats(1, 130, 3), "b": TrafficStats(1, 5, 5)}
    table.remove(second)
    assert table.stats()["a"] == TrafficStats(0, 130, 3)


def test_each_boot_has_its_own_connections_and_an_unknown_one_has_none() -> None:
    table: ConnectionTable[FakeConnection] = ConnectionTable()
    first, other = FakeConnection(1, "a"), FakeConnection(2, "b")
    table.add(first)
    table.add(other)
    assert (list(table.of("a")), list(table.of("b")), list(table.of("c"))) == ([first], [other], [])
    assert (len(table), set(table)) == (2, {first, other})
    assert set(table.stats()) == {"a", "b"}, "a question makes no boot known"


def test_a_connection_that_closed_before_it_was_entered_is_counted_once() -> None:
    """The first read of a pair may end it, before the plane has it in its table."""
    table: ConnectionTable[FakeConnection] = ConnectionTable()
    table.remove(FakeConnection(1, "a", 7, 0))
    assert (len(table), table.stats()) == (0, {"a": TrafficStats(0, 7, 0)})
