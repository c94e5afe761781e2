"""The connections that a plane carries, by boot, and the bytes that its closed ones moved."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from turnout.planes.plane import ConnectionInfo, TrafficStats


class PlaneConnection(Protocol):
    """One connection of a plane that moves bytes."""

    id: int
    boot_id: str
    closed: bool

    def moved(self) -> tuple[int, int]:
        """Bytes that arrived at the daemon, and at the client."""
        ...

    def info(self, now: float, *, peers: bool) -> ConnectionInfo: ...

    def end(self) -> None:
        """End both ways in order where no bytes are under way, else by a reset."""
        ...

    def reset(self) -> None:
        """End both ways by a reset: an orderly close would tell that a truncated stream was whole."""
        ...


C = TypeVar("C", bound=PlaneConnection)


@dataclass(slots=True)
class DaemonTraffic(Generic[C]):
    """The open connections of one boot, and the bytes that its closed ones moved."""

    connections: set[C] = field(default_factory=set[C])
    bytes_in: int = 0
    bytes_out: int = 0


class ConnectionTable(Generic[C]):
    """The connections of all boots. Owns none of them: the plane opens and closes them, and enters it here."""

    __slots__ = ("_by_boot",)

    def __init__(self) -> None:
        self._by_boot: defaultdict[str, DaemonTraffic[C]] = defaultdict(DaemonTraffic[C])

    def __iter__(self) -> Iterator[C]:
        for traffic in self._by_boot.values():
            yield from traffic.connections

    def __len__(self) -> int:
        return sum(len(traffic.connections) for traffic in self._by_boot.values())

    def of(self, boot_id: str) -> Collection[C]:
        """The open connections of that boot."""
        return self._by_boot[boot_id].connections if boot_id in self._by_boot else ()

    def add(self, connection: C) -> None:
        self._by_boot[connection.boot_id].connections.add(connection)

    def remove(self, connection: C) -> None:
        """Count the bytes of a connection that has closed, whether or not it was ever entered."""
        traffic = self._by_boot[connection.boot_id]
        traffic.connections.discard(connection)
        bytes_in, bytes_out = connection.moved()
        traffic.bytes_in += bytes_in
        traffic.bytes_out += bytes_out

    def stats(self) -> Mapping[str, TrafficStats]:
        return {boot_id: _stats(traffic) for boot_id, traffic in self._by_boot.items()}


def _stats(traffic: DaemonTraffic[C]) -> TrafficStats:
    bytes_in, bytes_out = traffic.bytes_in, traffic.bytes_out
    for connection in traffic.connections:
        more_in, more_out = connection.moved()
        bytes_in += more_in
        bytes_out += more_out
    return TrafficStats(len(traffic.connections), bytes_in, bytes_out)
