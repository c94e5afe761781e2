"""What the router tells the keeper of the group at a fixed address: how it knows it, and where it directs clients."""

from __future__ import annotations

from turnout.core.slots import HOME
from turnout.keeper_link import KeeperLink


class GroupReport:
    """One service's. Until this router leads it says nothing: where clients are directed is another one's decision.

    Args:
        service: its name.
        keeper: the line to the keeper.
    """

    def __init__(self, service: str, keeper: KeeperLink) -> None:
        self._service = service
        self._keeper = keeper
        self._version = 0
        self._slot = HOME
        self._leads = False

    def took(self, version: int) -> None:
        """The listeners of the group are as they were then."""
        self._version = version
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
        if self._leads and self._version:
            self._keeper.tell({"op": "seen", "service": self._service, "version": self._version, "slot": self._slot})
