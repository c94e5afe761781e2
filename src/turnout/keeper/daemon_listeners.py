"""The listeners that the keeper gives to daemons, and the groups in which they share a fixed address.

Standard library only and single-threaded, as the keeper is.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from turnout.core.model import Identity
from turnout.errors import NotBegunError, TurnoutError
from turnout.keeper.requests import Address
from turnout.keeper.service_listeners import ServiceListeners
from turnout.reuseport.group import Group
from turnout.state.home import Home
from turnout.system.files import undone_on_error
from turnout.system.net.listener import bind, spell
from turnout.system.net.sockets import descriptors_of, inode_of, may_be_looked_at
from turnout.system.process import is_alive, tree_of
from turnout.system.spawn_record import read_records, write_record

LOOK_S: Final = 0.25
OF_ONE_DAEMON: Final = 32  # listeners at the fixed address: workers that have one each


@dataclass(slots=True)
class DaemonListeners:
    """Keeps every group in order. Owns nothing: a listener is the caller's, who passes it on and closes it.

    Args:
        served: the keeper's listeners by service, shared with its routers.
        offer: gives the routers the listeners of a service as they are now.
        has_processes: whether a daemon runs, or processes of it do, as far as the keeper watches them.
        process_of: the daemon's own process, while it runs and the keeper watches it.
    """

    home: Home
    served: dict[str, ServiceListeners]
    offer: Callable[[str], None]
    has_processes: Callable[[str], bool]
    process_of: Callable[[str], Identity | None]
    after: Callable[[float, Callable[[], None]], None]
    log: Callable[[str], None]
    _is_due: bool = False
    _holders: dict[int, tuple[int, int]] = field(default_factory=dict[int, tuple[int, int]])  # by inode: pid and fd
    _troubles: dict[str, str] = field(default_factory=dict[str, str])  # by service, as they were logged

    def bind(self, name: str, addresses: list[Address]) -> bool:
        """Listen at these addresses for a service, and offer the listeners to the routers; False: they were bound.

        Raises:
            OSError: as :meth:`ServiceListeners.at`.
        """
        served = self.served.get(name)
        if served and served.addresses == addresses:
            return False
        self.served[name] = served.moved_to(addresses) if served else self._first(name, addresses)
        self.offer(name)
        return True

    def unbind(self, name: str) -> bool:
        """Close the listeners of a service; False: it has none."""
        served = self.served.pop(name, None)
        if served:
            served.close()
        return served is not None

    def _first(self, name: str, addresses: Sequence[Address]) -> ServiceListeners:
        """Listeners for a service that has none; where only its own daemons are left at the address, beside them."""
        try:
            return ServiceListeners.at(addresses)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            records = read_records(self.home.service(name).records)
            try:
                found = ServiceListeners.rejoined(addresses, records)
            except (OSError, TurnoutError) as trouble:
                self.log(f"service {name}: its daemons at the address cannot be joined: {trouble}")
                found = None
            if found is None or found.group is None:
                raise
        with undone_on_error(found.close):
            for boot_id in found.group.boots:
                self._record(name, boot_id, found.group)
        self.watch()
        self.log(f"service {name}: its daemons had the address alone: {found.group.told()}")
        return found

    def group_of(self, name: str) -> Group:
        """The group at a service's address, which its daemons may join.

        Raises:
            SpawnError: it cannot be had, and why; NotBegunError where that is no fault of the build.
        """
        served = self.served.get(name)
        if served is None:
            raise NotBegunError(f"nothing listens for {name}, so there is no address to share", hint="turnout up")
        before = served.group
        try:
            group = served.opened_group()
        except OSError as error:
            raise NotBegunError(
                f"the address of {name} cannot be shared: {error.strerror or error}", hint='plane = "relay"'
            ) from error
        if before is None:
            self.offer(name)
        return group

    def take(
        self, name: str, boot_id: str, wanted: Literal["shared"] | Address | None
    ) -> tuple[socket.socket | None, int]:
        """The listener that a daemon is started with, if it is to have one, and its index in the group.

        Args:
            name: its service.
            boot_id: the daemon.
            wanted: ``shared``: at the service's own address; or host and port.

        Raises:
            SpawnError: it cannot be had, and why; NotBegunError where that is no fault of the build.
        """
        if wanted == "shared":
            listener, index = self.group_of(name).join(boot_id)
            self.offer(name)
            self.watch()
            return listener, index
        if not isinstance(wanted, tuple):
            return None, 0
        host, port = wanted
        try:
            listener = bind(host, port)
        except OSError as error:
            at = spell([(host, port)])
            raise NotBegunError(
                f"cannot listen on {at} for the daemon: {error.strerror}", hint="turnout doctor names who has it"
            ) from error
        listener.setblocking(True)
        return listener, 0

    def admit(self, name: str, boot_id: str, sock: socket.socket, backlog: int) -> None:
        """Have a socket that a daemon bound at the fixed address listen there, with an index of its own.

        Args:
            name: its service.
            boot_id: the daemon.
            sock: a copy of its socket, owned here from now on.
            backlog: as the daemon says (listen(2)).

        Raises:
            OSError: it cannot listen, or has enough listeners.
            TurnoutError: the address cannot be shared.
        """
        with undone_on_error(sock.close):
            group = self.group_of(name)
            group.look()  # one that was shut down has lost its index, and begins anew: once it listens nothing tells
            self._release_closed(group, boot_id)  # one that it had before gives its index to this one
            if len(group.indexes_of(boot_id)) >= OF_ONE_DAEMON:
                raise OSError(errno.ENOBUFS, f"the daemon has {OF_ONE_DAEMON} listeners at the fixed address")
            sock.listen(backlog)
        index = group.add(boot_id, sock, backlog)
        self.log(f"{boot_id} listens at {spell([group.address])} itself, index {index}")
        self.offer(name)
        self.watch()
        try:
            self._record(name, boot_id, group)
        except TurnoutError as error:  # what a keeper needs that has lost router and predecessor
            self.log(f"the index of {boot_id} cannot be recorded: {error}")

    def indexes_of(self, name: str, boot_id: str) -> list[int]:
        """The indexes that a daemon has in its service's group."""
        served = self.served.get(name)
        return served.group.indexes_of(boot_id) if served and served.group else []

    def _record(self, name: str, boot_id: str, group: Group) -> None:
        """Note the first index of a daemon. Raises StateUnwritableError."""
        path, index = self.home.service(name).record(boot_id), group.indexes_of(boot_id)[0]
        record = read_records(path.parent).get(boot_id)
        if record:
            write_record(path, replace(record, slot=index, listener_inode=group.places[index].inode))

    def watch(self) -> None:
        """Refresh now and then: a daemon may shut its listener down long before it ends."""
        if not self._is_due:
            self._is_due = True
            self.after(LOOK_S, self._due)

    def refresh(self) -> None:
        """Have the router accept from the listeners of dead daemons, and offer changed groups to the routers."""
        for name, served in self.served.items():
            group = served.group
            if group is None:
                continue
            before = group.strangers
            try:
                gone = [boot_id for boot_id in group.boots if self._is_gone(name, boot_id)]
                released = [group.release(boot_id) for boot_id in gone]
                released += [self._release_closed(group, boot_id) for boot_id in group.boots]
                changed = group.look() or any(released)
            except (OSError, TurnoutError) as error:
                if self._troubles.get(name) != str(error):  # it is tried again many times a second
                    self._troubles[name] = str(error)
                    self.log(f"service {name}: the group at its address cannot be kept in order: {error}")
                continue
            self._troubles.pop(name, None)
            if group.strangers - before:
                self.log(f"service {name}: a program that turnout did not start shares {spell(served.addresses)}")
            if changed:
                self.offer(name)

    def _is_gone(self, name: str, boot_id: str) -> bool:
        """Whether no process of a daemon is left. One that the keeper could not watch has its record."""
        if self.has_processes(boot_id):
            return False
        record = read_records(self.home.service(name).records).get(boot_id)
        return record is None or not record.has_processes

    def _release_closed(self, group: Group, boot_id: str) -> bool:
        """Give the listeners that a running daemon has closed to the router; whether there were any."""
        process = self.process_of(boot_id)
        closed = [inode for inode in group.listeners_of(boot_id) if process and self._has_closed(process, inode)]
        for inode in closed:
            group.release(boot_id, inode)
        return bool(closed)

    def _has_closed(self, process: Identity, inode: int) -> bool:
        """Whether no process of a daemon has a listener open; where one may not be looked at, it may have it."""
        pid, fd = self._holders.get(inode, (0, 0))
        if pid and inode_of(pid, fd) == inode:
            return False
        pids = tree_of(process)
        for pid in sorted(pids):
            for found, fd in descriptors_of(pid):
                if found == inode:
                    self._holders[inode] = pid, fd
                    return False
        self._holders.pop(inode, None)
        return all(map(may_be_looked_at, pids)) and is_alive(process)

    def _due(self) -> None:
        self._is_due = False
        self.refresh()
        if any(served.group and served.group.boots for served in self.served.values()):
            self.watch()
