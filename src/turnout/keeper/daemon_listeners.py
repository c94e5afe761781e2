"""The listeners that the keeper gives to daemons, and the groups in which they share a fixed address.

Standard library only and single-threaded, as the keeper is.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from turnout.errors import NotBegunError, TurnoutError
from turnout.keeper.requests import Address
from turnout.keeper.service_listeners import ServiceListeners
from turnout.reuseport.group import GroupMember
from turnout.state.home import Home
from turnout.system.files import undone_on_error
from turnout.system.net.listener import bind, spell
from turnout.system.spawn_record import read_records, write_record

LOOK_S: Final = 0.25
NO_MEMBER: Final = GroupMember(0, 0)


@dataclass(slots=True)
class DaemonListeners:
    """Keeps every group in order. Owns nothing: a listener is the caller's, who passes it on and closes it.

    Args:
        served: the keeper's listeners by service, shared with its routers.
        offer: gives the routers the listeners of a service as they are now.
    """

    home: Home
    served: dict[str, ServiceListeners]
    offer: Callable[[str], None]
    after: Callable[[float, Callable[[], None]], None]
    log: Callable[[str], None]
    _is_due: bool = False
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
            home = self.home.service(name)
            records = read_records(home.records)
            try:
                found = ServiceListeners.rejoined(addresses, records.values())
            except (OSError, TurnoutError) as trouble:
                self.log(f"service {name}: its daemons at the address cannot be joined: {trouble}")
                found = None
            if found is None or found.group is None:
                raise
        with undone_on_error(found.close):
            for boot_id, member in found.group.members.items():
                write_record(home.record(boot_id), replace(records[boot_id], slot=member.slot))
        self.watch()
        self.log(f"service {name}: its daemons had the address alone: {found.group.told()}")
        return found

    def take(
        self, name: str, boot_id: str, wanted: Literal["shared"] | Address | None
    ) -> tuple[socket.socket | None, GroupMember]:
        """The listener that a daemon is started with, if it is to have one.

        Args:
            name: its service.
            boot_id: the daemon.
            wanted: ``shared``: at the service's own address; or host and port.

        Raises:
            SpawnError: it cannot be had, and why; NotBegunError where that is no fault of the build.
        """
        if wanted == "shared":
            listener, member = self._of(name).join(boot_id)
            self.offer(name)
            self.watch()
            return listener, member
        if not isinstance(wanted, tuple):
            return None, NO_MEMBER
        host, port = wanted
        try:
            listener = bind(host, port)
        except OSError as error:
            at = spell([(host, port)])
            raise NotBegunError(
                f"cannot listen on {at} for the daemon: {error.strerror}", hint="turnout doctor names who has it"
            ) from error
        listener.setblocking(True)
        return listener, NO_MEMBER

    def _of(self, name: str) -> ServiceListeners:
        served = self.served.get(name)
        if served is None:
            raise NotBegunError(f"nothing listens for {name}, so there is no address to share", hint="turnout up")
        return served

    def watch(self) -> None:
        """Refresh now and then: a daemon may close its listener long before it ends."""
        if not self._is_due:
            self._is_due = True
            self.after(LOOK_S, self._due)

    def refresh(self) -> None:
        """Keep the routers' indexes behind those of the daemons, and offer changed groups to the routers."""
        for name, served in self.served.items():
            group = served.group
            if group is None:
                continue
            before = set(group.strangers)
            try:
                changed = group.look()
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

    def _due(self) -> None:
        self._is_due = False
        self.refresh()
        if any(served.group and served.group.members for served in self.served.values()):
            self.watch()
