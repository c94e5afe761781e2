"""The listening sockets of one service, as the keeper holds them. Standard library only."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from turnout.errors import ProtocolError, SpawnError
from turnout.keeper.requests import Address, Attach
from turnout.reuseport.group import Group, GroupState
from turnout.reuseport.recovery import held_by
from turnout.reuseport.takeover import from_daemons, from_router
from turnout.state.home import Home
from turnout.system.net.listener import bind, spell
from turnout.system.net.tcp import listens
from turnout.system.spawn_record import SpawnRecord, read_records


@dataclass(slots=True)
class ServiceListeners:
    """The listeners of one service. Owns them.

    Args:
        addresses: those that it listens on.
        sockets: by address, but for that of the group.
        group: what shares an address with daemons, if any ever did.
    """

    addresses: list[Address]
    sockets: dict[Address, socket.socket]
    group: Group | None = None

    def close(self) -> None:
        if self.group:
            self.group.close()
        for sock in self.sockets.values():
            sock.close()

    def opened_group(self) -> Group:
        """The group at the fixed address, which daemons may join.

        Raises:
            SpawnError: it cannot be shared, and why.
            OSError: the kernel refuses, or gives no socket.
        """
        if len(self.addresses) != 1:
            raise SpawnError(
                f"a daemon can share one address, and the service listens on {spell(self.addresses)}",
                hint='listen on one, or plane = "relay"',
            )
        if self.group is None:
            self.group = Group.of(self.sockets.pop(self.addresses[0]))
        self.group.open()
        return self.group

    def offered(self) -> list[socket.socket]:
        """All that the router accepts from."""
        return [*self.sockets.values(), *(self.group.router_listeners if self.group else ())]

    def kept(self) -> list[socket.socket]:
        """What the router keeps for the next keeper, and does not accept from: copies of the daemons' listeners."""
        return self.group.daemon_listeners if self.group else []

    @classmethod
    def brought(
        cls,
        found: Sequence[tuple[Address, socket.socket]],
        records: Mapping[str, SpawnRecord],
        state: GroupState,
    ) -> Self:
        """What a router has had since before this keeper.

        Args:
            found: each listener with its address; owned here from now on. Those of one address are a group.
            records: of the service's daemons, by boot: who runs and has an index in the group.
            state: what the router was told of the group.
        """
        by_address: dict[Address, list[socket.socket]] = {}
        for address, sock in found:
            by_address.setdefault(address, []).append(sock)
        group = None
        for sockets in by_address.values():
            if len(sockets) > 1:
                group = from_router(sockets, state, records)
                break
        singles = {address: sockets[0] for address, sockets in by_address.items() if len(sockets) == 1}
        return cls(list(by_address), singles, group)

    @classmethod
    def rejoined(cls, addresses: Sequence[Address], records: Mapping[str, SpawnRecord]) -> Self | None:
        """Listen beside the service's own daemons, which have the address alone since keeper and router died.

        None: other programs have the address.
        """
        if len(addresses) != 1 or not held_by(addresses[0], records.values()):
            return None
        return cls(list(addresses), {}, from_daemons(addresses[0], records))

    @classmethod
    def at(cls, addresses: Sequence[Address]) -> Self:
        """Bind all of them, or none.

        Raises:
            OSError: why one could not be bound; its ``filename`` is that address, as host:port.
        """
        return cls([], {}).moved_to(addresses)

    def moved_to(self, addresses: Sequence[Address]) -> Self:
        """Listen on these instead: what is there already is kept, what is new is bound, what is left over is closed.

        Raises:
            OSError: as :meth:`at`, and nothing has changed.
        """
        new: dict[Address, socket.socket] = {}
        for host, port in addresses:
            try:
                if (host, port) not in self.addresses:
                    new[host, port] = bind(host, port)
            except OSError as error:
                for sock in new.values():
                    sock.close()
                raise OSError(error.errno, error.strerror, spell([(host, port)])) from error
        for address, sock in self.sockets.items():
            if address not in addresses:
                sock.close()
        group = self.group
        if group and group.address not in addresses:
            group.close()
            group = None
        known = self.sockets | new
        return type(self)(list(addresses), {one: known[one] for one in addresses if one in known}, group)


def attached_listeners(home: Home, request: Attach, fds: Sequence[int]) -> dict[str, ServiceListeners]:
    """The listeners that a router brings, by service.

    Args:
        home: the state directory, which has the records of the services' daemons.
        request: names the listeners, in the order of their descriptors.
        fds: the descriptors; owned here from now on.

    Raises:
        ProtocolError: there are more or fewer descriptors than names; all are closed.
    """
    if len(fds) != len(request.listeners):
        for fd in fds:
            os.close(fd)
        raise ProtocolError(f"the request names {len(request.listeners)} listeners and has {len(fds)}")
    found: dict[str, list[tuple[Address, socket.socket]]] = {}
    for (name, address), fd in zip(request.listeners, fds, strict=True):
        sock = _listening_socket(fd)
        if sock:
            found.setdefault(name, []).append((address, sock))
    brought: dict[str, ServiceListeners] = {}
    for name, listeners in found.items():
        records, state = read_records(home.service(name).records), request.groups.get(name, GroupState())
        try:
            brought[name] = ServiceListeners.brought(listeners, records, state)
        except ProtocolError:  # the router is attached for its other services; this one is bound again by the next verb
            for _, sock in listeners:
                sock.close()
    return brought


def _listening_socket(fd: int) -> socket.socket | None:
    """A descriptor as a socket; one that is no listening TCP socket is closed.

    A router may not know yet that one of its listeners, or a daemon's, was shut down.
    """
    try:
        sock = socket.socket(fileno=fd)
    except OSError:  # no socket
        os.close(fd)
        return None
    with contextlib.suppress(OSError):
        if sock.family in {socket.AF_INET, socket.AF_INET6} and sock.type == socket.SOCK_STREAM and listens(sock):
            return sock
    sock.close()
    return None
