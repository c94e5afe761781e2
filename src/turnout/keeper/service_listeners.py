"""The listening sockets of one service, as the keeper holds them. Standard library only."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from turnout.errors import ProtocolError, SpawnError
from turnout.keeper.requests import Address, Attach
from turnout.reuseport.group import Group, GroupMember
from turnout.reuseport.recovery import held_by
from turnout.state.home import Home
from turnout.system.net.listener import bind, spell
from turnout.system.spawn_record import SpawnRecord, read_records


@dataclass(slots=True)
class ServiceListeners:
    """The listeners of one service. Owns them.

    ``group``: the daemons that share the first of them, if any ever did.
    """

    addresses: list[Address]
    sockets: list[socket.socket]
    group: Group | None = None

    def close(self) -> None:
        if self.group:
            self.group.close()
        for sock in self.sockets:
            sock.close()

    def join(self, boot_id: str) -> tuple[socket.socket, GroupMember]:
        """A listener for a daemon that shares the fixed address; the caller's, who passes it on and closes it.

        Raises:
            SpawnError: it cannot be had, and why.
        """
        if len(self.addresses) != 1:
            raise SpawnError(
                f"a daemon can share one address, and the service listens on {spell(self.addresses)}",
                hint='listen on one, or plane = "relay"',
            )
        self.group = self.group or Group(self.sockets[0])
        return self.group.join(boot_id)

    def offered(self) -> list[socket.socket]:
        """All that the router accepts from; the first one of each address stays as long as that is listened on."""
        return [*self.sockets, *(self.group.spares if self.group else ())]

    @classmethod
    def brought(
        cls, found: Sequence[tuple[Address, socket.socket]], records: Iterable[SpawnRecord], router_index: int
    ) -> Self:
        """What a router has had since before this keeper; of several at one address the first is its own.

        Args:
            found: each listener with its address; owned here from now on.
            records: of the service's daemons: who runs and has a place in the group.
            router_index: the place of the router's own listener there.
        """
        first: dict[Address, socket.socket] = {}
        spares: list[socket.socket] = []
        for address, sock in found:
            if address in first:
                spares.append(sock)
            else:
                first[address] = sock
        group = None
        if spares:
            members = {
                record.boot_id: GroupMember(record.slot, record.listener_inode)
                for record in records
                if record.listener_inode and record.ended is None
            }
            address = spares[0].getsockname()[:2]
            group = Group(first[address], spares, members, router_index)
        return cls(list(first), list(first.values()), group)

    @classmethod
    def rejoined(cls, addresses: Sequence[Address], records: Iterable[SpawnRecord]) -> Self | None:
        """Listen beside the service's own daemons, which have the address alone since keeper and router died.

        None: other programs have the address.
        """
        daemons = {record.boot_id: record for record in records}
        if len(addresses) != 1 or not held_by(addresses[0], daemons.values()):
            return None
        group = Group.rejoin(addresses[0], daemons)
        return cls(list(addresses), [group.router_listener], group)

    @classmethod
    def at(cls, addresses: Sequence[Address]) -> Self:
        """Bind all of them, or none.

        Raises:
            OSError: why one could not be bound; its ``filename`` is that address, as host:port.
        """
        return cls([], []).moved_to(addresses)

    def moved_to(self, addresses: Sequence[Address]) -> Self:
        """Listen on these instead: what is there already is kept, what is new is bound, what is left over is closed.

        Raises:
            OSError: as :meth:`at`, and nothing has changed.
        """
        known = dict(zip(self.addresses, self.sockets, strict=True))
        new: dict[Address, socket.socket] = {}
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


def attached_listeners(home: Home, request: Attach, fds: Sequence[int]) -> dict[str, ServiceListeners]:
    """The listeners that a router brings, by service.

    Args:
        home: the state directory, which has the records of the services' daemons.
        request: names the listeners, in the order of their descriptors.
        fds: the descriptors; owned here from now on.

    Raises:
        ProtocolError: there are more or fewer listening TCP sockets than names; all are closed.
    """
    sockets = _listening_sockets(fds)
    if len(sockets) != len(request.listeners):
        for sock in sockets:
            sock.close()
        raise ProtocolError(f"the request names {len(request.listeners)} listeners and has {len(sockets)}")
    found: dict[str, list[tuple[Address, socket.socket]]] = {}
    for (name, address), sock in zip(request.listeners, sockets, strict=True):
        found.setdefault(name, []).append((address, sock))
    return {
        name: ServiceListeners.brought(
            listeners, read_records(home.service(name).records).values(), request.homes.get(name, 0)
        )
        for name, listeners in found.items()
    }


def _listening_sockets(fds: Sequence[int]) -> list[socket.socket]:
    """The descriptors as sockets; what is no listening TCP socket is closed and left out."""
    found: list[socket.socket] = []
    for fd in fds:
        try:
            sock = socket.socket(fileno=fd)
        except OSError:  # no socket
            os.close(fd)
            continue
        listens = False
        with contextlib.suppress(OSError):
            listens = bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        if listens and sock.family in {socket.AF_INET, socket.AF_INET6} and sock.type == socket.SOCK_STREAM:
            found.append(sock)
        else:
            sock.close()
    return found
