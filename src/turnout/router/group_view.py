"""The SO_REUSEPORT group at a fixed address, as keeper and router exchange it: indexes, and which get the clients."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

from turnout.core.model import Daemon
from turnout.core.slots import ROUTER_INDEX, source_of
from turnout.router.keeper_link import KeeperLink
from turnout.system.control_channel import Message

STATE_KEYS: Final = ("version", "home", "order")


class GroupView:
    """The group of one service.

    Nothing is reported to the keeper until this router leads and has directed the kernel: until then another router's
    selection counts, also that of a dead router.
    """

    def __init__(self, service: str, keeper: KeeperLink) -> None:
        self._service = service
        self._keeper = keeper
        self._version = 0
        self._indexes: Mapping[str, Sequence[int]] = {}
        self._inodes: Mapping[str, Collection[int]] = {}
        self._selected: tuple[int, ...] | None = None
        self._leading = False
        self._home = ROUTER_INDEX
        self.on_change: Callable[[], None] = lambda: None
        self.state: Mapping[str, Any] = {}  # as the keeper's message has it, for the next keeper

    def home(self) -> int:
        """The index at which the router gets connections that go to no daemon."""
        return self._home

    def indexes_of(self, boot_id: str) -> Sequence[int]:
        """The indexes of a daemon's listeners; empty: it has none."""
        return self._indexes.get(boot_id, ())

    def source_of(self, daemon: Daemon) -> str:
        """The source address that reaches a daemon at the shared address, by the index that the keeper has for it."""
        indexes = self._indexes.get(daemon.boot_id)
        return daemon.source if indexes is None else source_of(indexes[0])

    def listeners_of(self, boot_id: str) -> Collection[int]:
        """The inodes of the listeners that a daemon has in the group; empty: the keeper did not say."""
        return self._inodes.get(boot_id, ())

    def is_daemons(self, inode: int) -> bool:
        """Whether a listener is a daemon's, of which the router keeps a copy and does not accept."""
        return any(inode in inodes for inodes in self._inodes.values())

    def update(self, message: Message) -> None:
        """Take over the group as the keeper's message describes it."""
        self._version = int(message.get("version", 0))
        home, self._home = self._home, int(message.get("home", ROUTER_INDEX))
        before = self._indexes
        self.state = state_of(message)
        indexes: dict[str, list[int]] = {}
        inodes: dict[str, set[int]] = {}
        if "order" in message:
            for index, (inode, boot_id) in enumerate(message["order"]):
                if boot_id:
                    indexes.setdefault(boot_id, []).append(index)
                    inodes.setdefault(boot_id, set()).update({inode} - {0})  # 0: it is not known which of its own
        else:  # a keeper of 0.1
            for boot_id, (index, inode) in message.get("places", {}).items():
                indexes[boot_id], inodes[boot_id] = [int(index)], {int(inode)}
        self._indexes, self._inodes = indexes, inodes
        if home != self._home or before != indexes:
            self.on_change()
        self._report()

    def set_selected(self, indexes: Sequence[int]) -> None:
        """Note that the kernel directs new connections to the listeners at these indexes."""
        if tuple(indexes) != self._selected:
            self._selected = tuple(indexes)
            self._report()

    def become_leader(self) -> None:
        self._leading = True
        self._report()

    def _report(self) -> None:
        if self._leading and self._version and self._selected:
            message = {"op": "seen", "service": self._service, "version": self._version}
            # a keeper of 0.1 looks at the first one alone
            self._keeper.send({**message, "slots": self._selected, "slot": self._selected[0]})


def state_of(message: Message) -> Mapping[str, Any]:
    """What of the keeper's message the next keeper is sent; empty: the address is not shared."""
    return {key: message[key] for key in STATE_KEYS} if "order" in message else {}


def home_of(message: Message) -> int:
    """The index of the router's own listener, as the keeper's message has it."""
    return int(message.get("home", ROUTER_INDEX))
