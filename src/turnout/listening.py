"""The listening sockets of one service, as the keeper holds them. Standard library only."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from turnout.errors import SpawnError
from turnout.group import Group
from turnout.joining import Member
from turnout.listener import bind, spell
from turnout.rejoining import held_by, that_join
from turnout.system.spawn_record import SpawnRecord


@dataclass(slots=True)
class Listening:
    """The listeners of one service. Owns them.

    ``group``: the daemons that share the first of them, if any ever did.
    """

    addresses: list[tuple[str, int]]
    sockets: list[socket.socket]
    group: Group | None = None

    def close(self) -> None:
        if self.group:
            self.group.close()
        for sock in self.sockets:
            sock.close()

    def join(self, boot_id: str) -> tuple[socket.socket, Member]:
        """A listener for a daemon that shares the fixed address; the caller's, who passes it on and closes it.

        Raises:
            SpawnError: it cannot be had, and why.
        """
        return self._shared().join(boot_id)

    def _shared(self) -> Group:
        if len(self.addresses) != 1:
            raise SpawnError(
                f"a daemon can share one address, and the service listens on {spell(self.addresses)}",
                hint='listen on one, or plane = "relay"',
            )
        self.group = self.group or Group(self.sockets[0])
        return self.group

    def open(self) -> Group:
        """The group in which daemons share the fixed address, open for those that join by themselves.

        Raises:
            SpawnError: it cannot be had, and why.
        """
        group = self._shared()
        group.open()
        return group

    def offered(self) -> list[socket.socket]:
        """All that the router accepts from; the first one of each address stays as long as that is listened on."""
        return [*self.sockets, *(self.group.spares if self.group else ())]

    @classmethod
    def brought(
        cls, found: Sequence[tuple[tuple[str, int], socket.socket]], records: Iterable[SpawnRecord], home_slot: int
    ) -> Self:
        """What a router has had since before this keeper; of several at one address the first is its own.

        Args:
            found: each listener with its address; owned here from now on.
            records: of the service's daemons: who runs and has a place in the group.
            home_slot: the place of the router's own listener there.
        """
        first: dict[tuple[str, int], socket.socket] = {}
        spares: list[socket.socket] = []
        for address, sock in found:
            if address in first:
                spares.append(sock)
            else:
                first[address] = sock
        group = None
        if spares:
            known = list(records)
            members = {
                record.boot_id: Member(record.slot, record.listener_inode)
                for record in known
                if record.listener_inode and record.ended is None
            }
            address = spares[0].getsockname()[:2]
            group = Group(first[address], spares, members, home_slot, that_join(known))
        return cls(list(first), list(first.values()), group)

    @classmethod
    def rejoined(cls, addresses: Sequence[tuple[str, int]], records: Iterable[SpawnRecord]) -> Self | None:
        """Listen beside the service's own daemons, which have the address alone since keeper and router died.

        None: it is not so, and the address is somebody else's.
        """
        daemons = {record.boot_id: record for record in records}
        if len(addresses) != 1 or not held_by(addresses[0], daemons.values()):
            return None
        group = Group.rejoin(addresses[0], daemons)
        return cls(list(addresses), [group.home], group)

    @classmethod
    def at(cls, addresses: Sequence[tuple[str, int]]) -> Self:
        """Bind all of them, or none.

        Raises:
            OSError: why one could not be bound; its ``filename`` is that address, as host:port.
        """
        return cls([], []).moved_to(addresses)

    def moved_to(self, addresses: Sequence[tuple[str, int]]) -> Self:
        """Listen on these instead: what is there already is kept, what is new is bound, what is left over is closed.

        Raises:
            OSError: as :meth:`at`, and nothing has changed.
        """
        known = dict(zip(self.addresses, self.sockets, strict=True))
        new: dict[tuple[str, int], socket.socket] = {}
        for host, port in addresses:
            try:
                if (host, port) not in known:
                    new[host, port] = bind(host, port)
            except OSError as error:
                for sock in new.values():
                    sock.close()
                raise OSError(error.errno, error.strerror, spell([(host, port)])) from error
        for address, sock in known.items():
            if address not in addresses:
                sock.close()
        group = self.group
        if group and self.addresses[0] not in addresses:
            group.close()
            group = None
        known |= new
        return type(self)(list(addresses), [known[address] for address in addresses], group)
