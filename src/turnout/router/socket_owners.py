"""Whose sockets there are: those of the daemons, by their boot, and this process's own connections."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Protocol

from turnout.core.model import Daemon
from turnout.system.net import connections, sockets
from turnout.system.process import is_alive, tree_of

Address = tuple[str, int]
Holder = tuple[str, int, int]  # boot id, pid, descriptor


class Owners(Protocol):
    """Whose sockets there are."""

    def of(self, inodes: Collection[int]) -> Mapping[int, Sequence[Holder]]:
        """The holders of these sockets, by inode; sockets that no daemon has are left out."""
        ...

    def has(self, boot_id: str, inodes: Collection[int]) -> bool:
        """Whether that daemon has any of these sockets."""
        ...

    def hides(self, boot_id: str) -> bool:
        """Whether what that daemon has may not be looked at, of any of its processes."""
        ...


class Processes:
    """Owners as /proc tells them: the processes of the daemons that the registry knows."""

    def __init__(self, daemons: Callable[[], Mapping[str, Daemon]]) -> None:
        self._daemons = daemons

    def of(self, inodes: Collection[int]) -> Mapping[int, Sequence[Holder]]:
        found: dict[int, list[Holder]] = {}
        for boot_id, daemon in self._daemons().items():
            if daemon.pid <= 0 or not is_alive(daemon.identity):
                continue
            for pid in sorted(tree_of(daemon.identity)):
                for inode, fd in sockets.descriptors_of(pid):
                    if inode in inodes:
                        found.setdefault(inode, []).append((boot_id, pid, fd))
        return found

    def has(self, boot_id: str, inodes: Collection[int]) -> bool:
        """The process itself first, where it was found last: this is asked ten times a second."""
        daemon = self._daemons().get(boot_id)
        if daemon is None or daemon.pid <= 0 or not is_alive(daemon.identity):
            return False
        return sockets.has_any(daemon.pid, inodes) or any(
            sockets.has_any(pid, inodes) for pid in tree_of(daemon.identity)
        )

    def hides(self, boot_id: str) -> bool:
        daemon = self._daemons().get(boot_id)
        if daemon is None or daemon.pid <= 0:
            return False
        return not all(map(sockets.may_be_looked_at, tree_of(daemon.identity)))


def own_ends(ports: Iterable[int]) -> Collection[Address]:
    """From where this process is connected to any of these ports; as far as the kernel tells."""
    mine = {inode for inode, _ in sockets.descriptors_of(os.getpid())}
    try:
        found = [connections.connected_to(port) for port in ports]
    except OSError:
        return ()
    return {address for ends in found for address, inode in ends.items() if inode in mine}
