"""The listeners that the keeper gives to daemons, and the groups in which they share a fixed address.

Standard library only and single-threaded, as the keeper is.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, cast

from turnout.core.model import Identity
from turnout.errors import SpawnError, TurnoutError
from turnout.group import Group
from turnout.joining import Member
from turnout.listener import bind, spell
from turnout.listening import Listening
from turnout.system.home import Home
from turnout.system.spawn_record import read_records, write_record

LOOK_S: Final = 0.25
JOINS_S: Final = 0.05  # where a daemon may leave and join by itself,
TRIES_S: Final = 0.02  # and where one has no place at the moment
NO_MEMBER: Final = Member(0, 0)


class DaemonListeners:
    """Keeps every group in order. Owns nothing: a listener is the caller's, who passes it on and closes it.

    Args:
        home: the state directory.
        served: the keeper's listeners by service.
        offer: gives the routers the listeners of a service as they are now.
        after: runs an action after so many seconds.
        say: takes a line for the log.
    """

    def __init__(
        self,
        home: Home,
        served: dict[str, Listening],
        offer: Callable[[str], None],
        after: Callable[[float, Callable[[], None]], None],
        say: Callable[[str], None],
    ) -> None:
        self._home = home
        self._served = served
        self._offer = offer
        self._after = after
        self._say = say
        self._turn = 0  # of the looks that are due, the newest counts
        self._due_in_s: float | None = None
        self._troubles: dict[str, str] = {}  # by service, as they were said

    def first(self, name: str, addresses: Sequence[tuple[str, int]]) -> Listening:
        """Listeners for a service that has none; where only its own daemons are left at the address, beside them.

        Raises:
            OSError: as :meth:`Listening.at`.
        """
        try:
            return Listening.at(addresses)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            home = self._home.service(name)
            records = read_records(home.records)
            try:
                found = Listening.rejoined(addresses, records.values())
            except (OSError, TurnoutError) as trouble:
                self._say(f"service {name}: its daemons at the address cannot be joined: {trouble}")
                found = None
            if found is None or found.group is None:
                raise
        for boot_id, member in found.group.members.items():
            write_record(home.record(boot_id), replace(records[boot_id], slot=member.slot))
        self.watch()
        self._say(f"service {name}: its daemons had the address alone: {found.group.told()}")
        return found

    def take(self, name: str, boot_id: str, wanted: object) -> tuple[socket.socket | None, Member]:
        """The listener that a daemon is started with, if it is to have one.

        Args:
            name: its service.
            boot_id: the daemon.
            wanted: ``shared``: at the service's own address; ``itself``: none, it joins there by itself; or host and
                port.

        Raises:
            SpawnError: it cannot be had, and why.
        """
        if wanted == "shared":
            listener, member = self._of(name).join(boot_id)
            self._offer(name)
            self.watch()
            return listener, member
        if wanted == "itself":
            self._of(name).open()
            self._offer(name)
        if not isinstance(wanted, list):
            return None, NO_MEMBER
        host, port = cast("list[Any]", wanted)  # type: ignore[redundant-cast]  # pyright knows less of it than mypy
        try:
            listener = bind(host, port)
        except OSError as error:
            at = spell([(host, port)])
            raise SpawnError(
                f"cannot listen on {at} for the daemon: {error.strerror}", hint="turnout doctor names who has it"
            ) from error
        listener.setblocking(True)
        return listener, NO_MEMBER

    def _of(self, name: str) -> Listening:
        served = self._served.get(name)
        if served is None:
            raise SpawnError(f"nothing listens for {name}, so there is no address to share", hint="turnout up")
        return served

    def started(self, name: str, boot_id: str, identity: Identity) -> None:
        """A daemon runs now that joins by itself."""
        group = self._of(name).group
        if group:
            group.awaited[boot_id] = identity
        self.watch()

    def watch(self) -> None:
        """Look now and then: a daemon may close its listener long before it ends, or join by itself."""
        groups = self._groups()
        due_s = LOOK_S
        if any(group.awaited for group in groups):
            due_s = TRIES_S if any(group.unplaced for group in groups) else JOINS_S
        if self._due_in_s is None or due_s < self._due_in_s:
            self._due_in_s = due_s
            self._turn += 1
            turn = self._turn
            self._after(due_s, lambda: self._due(turn))

    def look(self) -> None:
        """Keep the routers' places behind those of the daemons, and tell the routers of what is new."""
        for name, served in self._served.items():
            group = served.group
            if group is None:
                continue
            before = set(group.strangers)
            try:
                changed = group.look()
                self._note(name, group)
            except (OSError, TurnoutError) as error:
                if self._troubles.get(name) != str(error):  # it is tried again many times a second
                    self._troubles[name] = str(error)
                    self._say(f"service {name}: the group at its address cannot be kept in order: {error}")
                continue
            self._troubles.pop(name, None)
            if group.strangers - before and not group.awaited:
                self._say(f"service {name}: a program that turnout did not start shares {spell(served.addresses)}")
            if changed:
                self._offer(name)

    def _note(self, name: str, group: Group) -> None:
        """Where a daemon is that joined by itself is in its record, for verbs and for the next keeper."""
        home = self._home.service(name)
        for boot_id, member in list(group.placed.items()):
            record = read_records(home.records).get(boot_id)
            if record:
                placed = replace(record, slot=member.slot, listener_inode=member.inode)
                write_record(home.record(boot_id), placed)
            del group.placed[boot_id]

    def _due(self, turn: int) -> None:
        if turn == self._turn:
            self._due_in_s = None
            self.look()
            if any(group.members or group.awaited for group in self._groups()):
                self.watch()

    def _groups(self) -> list[Group]:
        return [served.group for served in self._served.values() if served.group]
