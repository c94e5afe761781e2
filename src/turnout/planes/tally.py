"""Who is carried, for which boot, and what the closed ones moved."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

from turnout.planes.plane import Carried, Census


class Carrying(Protocol):
    """One connection of a plane that moves bytes."""

    id: int
    boot_id: str
    closed: bool

    def moved(self) -> tuple[int, int]:
        """Bytes that arrived at the daemon, and at the client."""
        ...

    def carried(self, now: float, *, peers: bool) -> Carried: ...


C = TypeVar("C", bound=Carrying)


class Tally(Generic[C]):
    """What one boot has open, and what its closed connections moved."""

    __slots__ = ("bytes_in", "bytes_out", "pairs")

    def __init__(self) -> None:
        self.pairs: set[C] = set()
        self.bytes_in = 0
        self.bytes_out = 0


class Tallies(Generic[C]):
    """The tallies of all boots. Owns no connection: the plane opens and closes them, and says so here."""

    __slots__ = ("by_boot",)

    def __init__(self) -> None:
        self.by_boot: dict[str, Tally[C]] = {}

    def __iter__(self) -> Iterator[C]:
        for tally in self.by_boot.values():
            yield from tally.pairs

    def of(self, boot_id: str) -> Tally[C]:
        tally = self.by_boot.get(boot_id)
        if tally is None:
            tally = self.by_boot[boot_id] = Tally()
        return tally

    def closed(self, pair: C) -> None:
        tally = self.of(pair.boot_id)
        tally.pairs.discard(pair)
        bytes_in, bytes_out = pair.moved()
        tally.bytes_in += bytes_in
        tally.bytes_out += bytes_out

    def census(self) -> Mapping[str, Census]:
        found: dict[str, Census] = {}
        for boot_id, tally in self.by_boot.items():
            bytes_in, bytes_out = tally.bytes_in, tally.bytes_out
            for pair in tally.pairs:
                more_in, more_out = pair.moved()
                bytes_in += more_in
                bytes_out += more_out
            found[boot_id] = Census(len(tally.pairs), bytes_in, bytes_out)
        return found

    def connections(self) -> int:
        return sum(len(tally.pairs) for tally in self.by_boot.values())

    def open_of(self, boot_id: str) -> int:
        tally = self.by_boot.get(boot_id)
        return len(tally.pairs) if tally else 0

    def carried(self, boot_id: str, now: float, *, peers: bool) -> Sequence[Carried]:
        tally = self.by_boot.get(boot_id)
        return [pair.carried(now, peers=peers) for pair in tally.pairs] if tally else []

    def chosen(self, boot_id: str, ids: Collection[int] | None) -> list[C]:
        """Those of that boot with these numbers; None: all of them."""
        tally = self.by_boot.get(boot_id)
        return [pair for pair in tally.pairs if ids is None or pair.id in ids] if tally else []
