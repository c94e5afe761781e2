"""Notices that a file has changed, for the price of one stat(2)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

# The kernel stamps files with the time of its last tick, and at 100 Hz (the slowest in use) that is 10 ms old at most:
# two writes of one size within a tick can look the same. inode(7), CONFIG_HZ.
TWO_TICKS_NS: Final = 20_000_000


class Watcher:
    """Polls one path; follows links; owns nothing.

    A path that is missing or cannot be looked at is a state like any other: becoming so, and being there again, are
    changes.

    Args:
        path: what to watch; it need not exist.
        wall_ns: nanoseconds of the clock that stamps files.
        monotonic_ns: nanoseconds of a clock that never jumps.
    """

    __slots__ = ("_again_at_ns", "_ctime_ns", "_inode", "_monotonic_ns", "_mtime_ns", "_path", "_size", "_wall_ns")

    def __init__(
        self,
        path: Path,
        *,
        wall_ns: Callable[[], int] = time.time_ns,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._path = os.fspath(path)
        self._wall_ns = wall_ns
        self._monotonic_ns = monotonic_ns
        self._mtime_ns = self._ctime_ns = self._inode = self._size = -2  # unlike any file, and unlike none
        self._again_at_ns = 0

    def poll(self) -> bool:
        """Say whether the file is to be read: it changed since the last poll, or no poll came before.

        A change that was seen within two clock ticks of its time stamp is reported once more when they are over, for
        another one may have hidden behind the same stamp.
        """
        try:
            # pathlib's stat makes the string again each time, and this runs fifty times a second
            state = os.stat(self._path)  # noqa: PTH116
        except OSError:
            if self._inode == -1:
                return False
            self._mtime_ns = self._ctime_ns = self._inode = self._size = -1
            self._again_at_ns = 0
            return True
        if (
            state.st_mtime_ns == self._mtime_ns
            and state.st_ctime_ns == self._ctime_ns
            and state.st_ino == self._inode
            and state.st_size == self._size
        ):
            if self._again_at_ns and self._monotonic_ns() >= self._again_at_ns:
                self._again_at_ns = 0
                return True
            return False
        self._mtime_ns, self._ctime_ns = state.st_mtime_ns, state.st_ctime_ns
        self._inode, self._size = state.st_ino, state.st_size
        # ctime, which no process can set: an mtime may be copied from elsewhere. One in the future is young as well.
        young = self._wall_ns() - max(self._mtime_ns, self._ctime_ns) < TWO_TICKS_NS
        self._again_at_ns = self._monotonic_ns() + TWO_TICKS_NS if young else 0
        return True
