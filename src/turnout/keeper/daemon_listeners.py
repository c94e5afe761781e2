"""The listeners that the keeper gives to daemons, and the groups in which they share a fixed address.

Standard library only and single-threaded, as the keeper is.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from turnout.errors import NotBegunError, TurnoutError
from turnout.keeper.requests import Address
from turnout.keeper.service_listeners import ServiceListeners
from turnout.reuseport.group import Group
from turnout.state.home import Home
from turnout.system.files import undone_on_error
from turnout.system.net.listener import bind, spell
from turnout.system.net.sockets import descriptors_of, inode_of, may_be_looked_at
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
        pids_of: the processes of a daemon whose own process runs and is watched by the keeper; else none.
    """

    home: Home
    served: dict[str, ServiceListeners]
    offer: Callable[[str], None]
    has_processes: Callable[[str], bool]
    pids_of: Callable[[str], Collection[int]]
    after: Callable[[float, Callable[[], None]], None]
    log: Callable[[str], None]
    _is_due: bool = False
    _holders: dict[int, tuple[int, int]] = field(default_factory=dict[int, tuple[int, int]])  # by inode: pid and fd
    _closed: set[int] = field(default_factory=set[int])  # listeners that no process had at the last look, by inode
    _offered: dict[str, int] = field(default_factory=dict[str, int])  # the version of each group that routers have
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
        self._offered.pop(name, None)
        self.offer(name)
        return True

    def unbind(self, name: str) -> bool:
        """Close the listeners of a service; False: it has none."""
        served = self.served.pop(name, None)
        self._offered.pop(name, None)
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
        for boot_id in found.group.boots:
            self._record(name, boot_id, found.group)
        self.watch()
        at = ", ".join(f"{boot_id} at index {found.group.indexes_of(boot_id)[0]}" for boot_id in found.group.boots)
        self.log(f"service {name}: its daemons had the address alone, and were found: {at or 'none'}")
        return found

    def group_of(self, name: str) -> Group:
        """The group at a service's address, which its daemons may join.

        Raises:
            SpawnError: it cannot be had, and why; NotBegunError where that is no fault of the build.
        """
        served = self.served.get(name)
        if served is None:
            raise NotBegunError(f"nothing listens for {name}, so there is no address to share", hint="turnout up")
        try:
            return served.opened_group()
        except OSError as error:
            raise NotBegunError(
                f"the address of {name} cannot be shared: {error.strerror or error}", hint='plane = "relay"'
            ) from error
        finally:
            self._offer_changed(name)

    def _offer_changed(self, name: str) -> None:
        """Give the routers a group that they do not have as it is."""
        served = self.served.get(name)
        if served and served.group and self._offered.get(name) != served.group.version:
            self._offered[name] = served.group.version
            self.offer(name)

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
            try:
                return self.group_of(name).join(boot_id)
            finally:
                self._offer_changed(name)
                self.watch()
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
            group.look()  # a listener that was shut down has lost its index; once it listens again nothing shows that
            if len(group.indexes_of(boot_id)) >= OF_ONE_DAEMON:
                raise OSError(errno.ENOBUFS, f"the daemon has {OF_ONE_DAEMON} listeners at the fixed address")
            sock.listen(backlog)
        try:
            index = group.add(boot_id, sock, backlog)
        finally:
            self._offer_changed(name)
            self.watch()
        self.log(f"{boot_id} listens at {spell([group.address])} itself, index {index}")
        self._record(name, boot_id, group)

    def indexes_of(self, name: str, boot_id: str) -> list[int]:
        """The indexes that a daemon has in its service's group."""
        served = self.served.get(name)
        return served.group.indexes_of(boot_id) if served and served.group else []

    def _record(self, name: str, boot_id: str, group: Group) -> None:
        """Note the first index of a daemon, for a keeper that has lost router and predecessor."""
        path, indexes = self.home.service(name).record(boot_id), group.indexes_of(boot_id)
        record = read_records(path.parent).get(boot_id)
        if record and indexes and group.places[indexes[0]].inode:
            try:
                write_record(path, replace(record, slot=indexes[0], listener_inode=group.places[indexes[0]].inode))
            except TurnoutError as error:
                self.log(f"the index of {boot_id} cannot be recorded: {error}")

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
                for boot_id in group.boots:
                    if self._is_gone(name, boot_id):
                        group.release(boot_id)
                    elif self._release_closed(group, boot_id):
                        self._record(name, boot_id, group)
                group.look()
                self._troubles.pop(name, None)
            except (OSError, TurnoutError) as error:
                if self._troubles.get(name) != str(error):  # it is tried again many times a second
                    self._troubles[name] = str(error)
                    self.log(f"service {name}: the group at its address cannot be kept in order: {error}")
            if group.strangers - before:
                self.log(f"service {name}: a program that turnout did not start shares {spell(served.addresses)}")
            self._offer_changed(name)

    def _is_gone(self, name: str, boot_id: str) -> bool:
        """Whether no process of a daemon is left. One that the keeper could not watch has its record."""
        if self.has_processes(boot_id):
            return False
        record = read_records(self.home.service(name).records).get(boot_id)
        return record is None or not record.has_processes

    def _release_closed(self, group: Group, boot_id: str) -> bool:
        """Give the listeners that a running daemon has closed to the router; whether there were any.

        Two looks in a row have to agree: a process that is being forked at one of them has what its parent has closed.
        """
        inodes = group.listeners_of(boot_id)
        unseen = [inode for inode in inodes if inode_of(*self._holders.get(inode, (0, 0))) != inode]
        pids = self.pids_of(boot_id) if unseen else ()  # a walk through all processes
        closed = {inode for inode in unseen if pids and self._has_closed(pids, inode)}
        sure = closed & self._closed
        self._closed = self._closed - {*inodes} | (closed - sure)
        for inode in sure:
            group.release(boot_id, inode)
        return bool(sure)

    def _has_closed(self, pids: Collection[int], inode: int) -> bool:
        """Whether none of these processes has a listener open; where one may not be looked at, it may have it."""
        for pid in sorted(pids):
            for found, fd in descriptors_of(pid):
                if found == inode:
                    self._holders[inode] = pid, fd
                    return False
        self._holders.pop(inode, None)
        return all(map(may_be_looked_at, pids))

    def _due(self) -> None:
        self._is_due = False
        self.refresh()
        if any(served.group and served.group.boots for served in self.served.values()):
            self.watch()
