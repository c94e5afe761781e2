"""Daemons that join a group by themselves: which place each of them has. Standard library only.

Such a daemon sets SO_REUSEPORT and listens at the fixed address when it likes, and again when it likes. So its place is
not known by what was done, but found out, in steps that never wait:

1. A listener that nobody here made is a daemon's, as /proc has it. (The group has put spares behind it by then.)
2. A connection goes to each place that may be its own; by whom one is accepted tells the place.
3. Spares are put behind that place, so that whoever dies it stays; a second connection confirms it.

A daemon with several listeners of its own is not placed: one place would leave the others without clients.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final, Protocol

from turnout.choosing import choose
from turnout.core.model import Identity
from turnout.system.connections import connections_at
from turnout.system.process import tree_of
from turnout.system.sockets import descriptors_of, has_any

TRIAL_S: Final = 1.0  # for a daemon to accept; then everything is tried anew


@dataclass(frozen=True, slots=True)
class Member:
    """A daemon in the group: its place, and the inode of the listener that it has there."""

    slot: int
    inode: int


class Places(Protocol):
    """What this asks of the group."""

    @property
    def address(self) -> tuple[str, int]:
        """Where a connection to the group goes."""
        ...

    @property
    def strangers(self) -> AbstractSet[int]:
        """The listeners that nobody here made, by inode."""
        ...

    @property
    def unplaced(self) -> Mapping[str, Identity]:
        """The daemons that join by themselves and have no place, by boot."""
        ...

    def free(self) -> Iterable[int]:
        """Places that are neither the router's own nor a daemon's that is known."""
        ...

    def secure(self, slot: int) -> None:
        """Have spares behind that place. Raises OSError, SpawnError."""
        ...


class Joining:
    """Finds places. Owns the connections by which it does so."""

    def __init__(self, group: Places) -> None:
        self._group = group
        self._trial: _Trial | None = None

    def step(self, now: float) -> Mapping[str, Member]:
        """Go one step on; answers whose place is known for certain with this one.

        Args:
            now: monotonic seconds.

        Raises:
            OSError: the kernel cannot be asked.
            SpawnError: the group is full.
        """
        group = self._group
        trees = {boot_id: tree_of(identity) for boot_id, identity in group.unplaced.items()} if group.strangers else {}
        joined = {boot_id: sockets_of(tree) & group.strangers for boot_id, tree in trees.items()}
        trees = {boot_id: tree for boot_id, tree in trees.items() if len(joined[boot_id]) == 1}
        trial = self._trial
        if not trees or (trial and now >= trial.until):
            self.close()
            return {}
        if trial is None:
            self._trial = _Trial(group.address, group.free(), {}, now + TRIAL_S)
            return {}
        found = {
            boot_id: slot
            for slot, inode in trial.accepted().items()
            for boot_id, tree in trees.items()
            if any(has_any(pid, {inode}) for pid in tree)
        }
        if not found:
            return {}
        self.close()
        if trial.confirms:
            sure = {boot_id: slot for boot_id, slot in found.items() if trial.confirms.get(boot_id) == slot}
            return {boot_id: Member(slot, next(iter(joined[boot_id]))) for boot_id, slot in sure.items()}
        group.secure(max(found.values()))
        self._trial = _Trial(group.address, found.values(), found, now + TRIAL_S)
        return {}

    def close(self) -> None:
        if self._trial:
            self._trial.close()
            self._trial = None


class _Trial:
    """One connection to each of some places. Owns them; nothing is sent, and they end by a reset."""

    def __init__(
        self, address: tuple[str, int], slots: Iterable[int], confirms: Mapping[str, int], until: float
    ) -> None:
        self.confirms = confirms
        self.until = until
        self._port = address[1]
        self._slots: dict[tuple[str, int], int] = {}  # by where the connection comes from
        self._socks: list[socket.socket] = []
        for slot in slots:
            with contextlib.suppress(OSError):
                self._socks.append(choose(address, slot))
                self._slots[self._socks[-1].getsockname()] = slot

    def accepted(self) -> dict[int, int]:
        """The inode of each connection that a process has accepted, by its place."""
        there = connections_at(self._port)
        return {self._slots[one.peer]: one.inode for one in there if one.inode and one.peer in self._slots}

    def close(self) -> None:
        for sock in self._socks:
            sock.close()


def sockets_of(tree: Collection[int]) -> set[int]:
    """The sockets that any of these processes has open, by inode."""
    return {inode for pid in tree for inode, _ in descriptors_of(pid)}
