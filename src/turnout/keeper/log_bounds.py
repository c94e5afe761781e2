"""Keeps the logs of daemons within their bound. Standard library only: the keeper's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from turnout.keeper.children import Children
from turnout.system.daemon_log import BOUND_BYTES, bound, oversized

LOOK_S: Final = 1.0
LOOK_SOON_S: Final = 0.1  # after a look that found a log which had grown by a quarter of its bound


class LogBounds:
    """Cuts each log that grows beyond its bound. The timer is the caller's."""

    def __init__(self, children: Children, log: Callable[[str], None]) -> None:
        self._children = children
        self._log = log
        self._sizes: dict[str, int] = {}  # by boot, at the last look
        self._directories: set[Path] = set()

    def watch(self, directory: Path) -> None:
        """Cut the logs in this directory from now on, also those that only orphans of a daemon write."""
        self._directories.add(directory)

    def check(self) -> float:
        """Cut what is too long; returns the seconds until the next check."""
        grows = False
        daemons = [child for child in self._children.all() if child.service]  # a router sees to its own log
        self._sizes = {child.boot_id: self._sizes.get(child.boot_id, 0) for child in daemons}
        for child in daemons:
            self.watch(child.log.parent)
            size = bound(child.log)
            grows |= size - self._sizes[child.boot_id] > BOUND_BYTES // 4
            if size > BOUND_BYTES:
                size = 0
                self._log(f"the log of {child.service} {child.boot_id} was cut at its bound")
            self._sizes[child.boot_id] = size
        for directory in self._directories:  # logs of daemons that ended: their orphans may go on writing
            for path in oversized(directory):
                bound(path)
                self._log(f"the log {path.name} was cut at its bound")
        return LOOK_SOON_S if grows else LOOK_S
