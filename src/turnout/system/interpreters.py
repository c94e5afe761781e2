"""Keeps the Python interpreters that can run turnout for a home, since an environment may be removed.

Standard library only. Each verb that has a service running names its own interpreter, so that the next router, and the
next verb that is started by itself, come from an installation that is there.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from pathlib import Path
from typing import Final

from turnout.errors import SpawnError

REMEMBERED: Final = 4


class NoInterpreterError(SpawnError):
    """No known interpreter exists any more."""


class Interpreters:
    """The known interpreters, the newest first; initially the interpreter of this process.

    ``own``: the interpreter of this process, absolute.
    """

    def __init__(self, own: str = sys.executable) -> None:
        self._known: deque[str] = deque([own], maxlen=REMEMBERED)
        self._failed: set[str] = set()

    @property
    def newest(self) -> str:
        return self._known[0]

    def add(self, interpreter: str) -> bool:
        """Prefer this interpreter from here on; returns whether that is a change."""
        changed = interpreter != self.newest or interpreter in self._failed
        self._failed.discard(interpreter)
        if interpreter in self._known:
            self._known.remove(interpreter)
        self._known.appendleft(interpreter)
        return changed

    def failed(self, interpreter: str) -> None:
        """Note that a process of this interpreter did not come up: another interpreter is tried first."""
        self._failed.add(interpreter)

    def choose(self) -> str:
        """The newest interpreter that exists; those that failed come last. Blocks as long as their file system does.

        Raises NoInterpreterError: none is there.
        """
        there = [path for path in tuple(self._known) if is_executable(path)]  # another may be added meanwhile
        if not there:
            raise NoInterpreterError(f"the Python interpreter of turnout is gone: {self.newest}", hint="turnout up")
        return next((path for path in there if path not in self._failed), there[0])


def is_executable(path: str) -> bool:
    """Whether there is a file that this user may execute."""
    try:
        return Path(path).is_file() and os.access(path, os.X_OK)
    except (OSError, ValueError):
        return False
