"""The SO_REUSEPORT group at a fixed address, as keeper and router exchange it: indexes, and which gets the clients."""

from __future__ import annotations

from collections.abc import Mapping

from turnout.core.model import Daemon
from turnout.core.slots import ROUTER_INDEX, source_of
from turnout.router.keeper_link import KeeperLink
from turnout.system.control_channel import Message


class GroupView:
    """The group of one service.

    Nothing is reported to the keeper until this router leads and has directed the kernel: until then another router's
    selection counts, also that of a dead router.
    """

    def __init__(self, service: str, keeper: KeeperLink) -> None:
        self._service = service
        self._keeper = keeper
        self._version = 0
        self._locations: Mapping[str, tuple[int, int]] = {}
        self._selected: int | None = None
        self._leading = False
        self._router_index = ROUTER_INDEX

    def router_index(self) -> int:
        """The index of the router's own listener in the group."""
        return self._router_index

    def source_of(self, daemon: Daemon) -> str:
        """The source address that reaches a daemon at the shared address, by the index that the keeper has for it."""
        location = self._locations.get(daemon.boot_id)
        return daemon.source if location is None else source_of(location[0])

    def listener_of(self, boot_id: str) -> int:
        """The inode of the listener that a daemon has in the group; 0: the keeper did not say."""
        location = self._locations.get(boot_id)
        return 0 if location is None else location[1]

    def update(self, message: Message) -> None:
        """Take over the group as the keeper's message describes it."""
        self._version = int(message.get("version", 0))
        self._router_index = router_index_of(message)
        self._locations = {
            boot_id: (int(slot), int(inode)) for boot_id, (slot, inode) in message.get("places", {}).items()
        }
        self._report()

    def set_selected(self, index: int) -> None:
        """Note that the kernel directs new connections to the listener at this index."""
        if index != self._selected:
            self._selected = index
            self._report()

    def become_leader(self) -> None:
        self._leading = True
        self._report()

    def _report(self) -> None:
        if self._leading and self._version and self._selected is not None:
            message = {"op": "seen", "service": self._service, "version": self._version, "slot": self._selected}
            self._keeper.send(message)


def router_index_of(message: Message) -> int:
    """The index of the router's own listener, as the keeper's message has it."""
    return int(message.get("home", ROUTER_INDEX))
