"""What keeper and router tell each other of the group at a fixed address: who is where, and who gets the clients."""

from __future__ import annotations

from collections.abc import Mapping

from turnout.core.model import Daemon
from turnout.core.slots import HOME, source_of
from turnout.keeper_link import KeeperLink
from turnout.system.control import Message


class Sharing:
    """One service's.

    Until this router leads, and has told the kernel where to direct clients, it says nothing: that is another one's
    decision till then, also a dead one's.

    Args:
        service: its name.
        keeper: the line to the keeper.
    """

    def __init__(self, service: str, keeper: KeeperLink) -> None:
        self._service = service
        self._keeper = keeper
        self._version = 0
        self._places: Mapping[str, tuple[int, int]] = {}
        self._unplaced: frozenset[str] = frozenset()
        self._slot: int | None = None
        self._leads = False
        self._home = HOME

    def home(self) -> int:
        """The place of the router's own listener."""
        return self._home

    def source_of(self, daemon: Daemon) -> str:
        """From where one reaches a daemon that shares the address: as the keeper has it, who keeps the places."""
        place = self._places.get(daemon.boot_id)
        return daemon.source if place is None else source_of(place[0])

    def is_joining(self, boot_id: str) -> bool:
        """Whether a daemon joins by itself, and has no place at the moment: its worker may be starting anew."""
        return boot_id in self._unplaced

    def listener_of(self, boot_id: str) -> int:
        """The inode of the listener that a daemon has in the group; 0: the keeper did not say.

        -1, which nobody has: it joins by itself, and has no place. It may listen all the same, but cannot be reached.
        """
        if boot_id in self._unplaced:
            return -1
        place = self._places.get(boot_id)
        return 0 if place is None else place[1]

    def took(self, message: Message) -> None:
        """The listeners are as the keeper said with this."""
        self._version = int(message.get("version", 0))
        self._home = int(message.get("home", HOME))
        self._places = {
            boot_id: (int(slot), int(inode)) for boot_id, (slot, inode) in message.get("places", {}).items()
        }
        self._unplaced = frozenset(map(str, message.get("unplaced", ())))
        self._tell()

    def steered(self, slot: int) -> None:
        """New connections are directed to that place."""
        if slot != self._slot:
            self._slot = slot
            self._tell()

    def lead(self) -> None:
        self._leads = True
        self._tell()

    def _tell(self) -> None:
        if self._leads and self._version and self._slot is not None:
            self._keeper.tell({"op": "seen", "service": self._service, "version": self._version, "slot": self._slot})
