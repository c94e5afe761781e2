"""A changed configuration file, taken over by the router that runs: what can be at once, and what cannot is said.

The file's word wins from the moment it changes; a flag given to a verb counts until then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from turnout.config import Settings, Wanted
from turnout.config_file import load_file
from turnout.errors import TurnoutError
from turnout.system.watcher import Watcher

# Fields that a running router cannot change, and who can.
NEEDS: Final[Mapping[str, str]] = {
    "listen": "turnout up",
    "expose": "turnout up",
    "registry": "turnout down, then turnout up",
    "plane": "turnout up, then turnout router --replace",
}
BUILD_FIELDS: Final = ("command", "cwd", "env", "version")


@dataclass(frozen=True, slots=True)
class Reload:
    """What came of a reload.

    Args:
        settings: those that count from here on.
        changed: the fields that were taken over.
        later: what was not, each with what it needs.
        error: why the file cannot be used; the settings are the old ones then.
    """

    settings: Settings
    changed: tuple[str, ...] = ()
    later: tuple[str, ...] = ()
    error: str = ""


class Reloading:
    """Follows the configuration file of one service, whose settings were written by a verb. Owns nothing.

    Args:
        settings: as the last verb left them; they name the file, if there is one.
        written_ns: when it did, in nanoseconds of the file system's clock.
    """

    def __init__(self, settings: Settings, written_ns: int) -> None:
        self._path = Path(settings.source) if settings.source else None
        self._watcher = Watcher(self._path) if self._path else None
        self._known: Wanted | None = None
        self._undeployed = False
        if self._path and self._watcher:
            self._watcher.poll()
            try:
                self._stale = self._path.stat().st_mtime_ns > written_ns
                self._known = None if self._stale else load_file(self._path).get(settings.name)
            except (OSError, TurnoutError):
                self._stale = True
        else:
            self._stale = False

    @property
    def follows(self) -> bool:
        """Whether there is a file."""
        return self._path is not None

    def is_due(self) -> bool:
        """Whether the file has changed since the last look."""
        stale, self._stale = self._stale, False
        return stale or (self._watcher is not None and self._watcher.poll())

    def reload(self, current: Settings) -> Reload:
        """Read the file; answers ``current`` with what may change as the file has it now."""
        if self._path is None:
            return Reload(current)
        try:
            wanted = load_file(self._path).get(current.name)
        except TurnoutError as error:
            return Reload(current, error=error.message)
        if wanted is None:
            return Reload(current, error=f"{self._path} has no service {current.name} any more")
        before, self._known = self._known, wanted
        if before is None or any(getattr(before, name) != getattr(wanted, name) for name in BUILD_FIELDS):
            self._undeployed = True  # until a verb comes, and with it another Reloading
        there = wanted.settings
        differs = [name for name in Settings.__struct_fields__ if getattr(there, name) != getattr(current, name)]
        needs = dict(NEEDS)
        if self._undeployed:  # the daemon that runs must not be judged by the checks of its successor
            needs["health"] = "turnout up, with the build that it goes with"
            needs["proxy_protocol"] = needs["health"]
        later = [f"{name}: {needs[name]}" for name in differs if name in needs]
        if before and self._undeployed:
            later.append("command, cwd, env or version: turnout up deploys it")
        changed = [name for name in differs if name not in needs]
        settings = msgspec.structs.replace(current, **{name: getattr(there, name) for name in changed})
        return Reload(settings, tuple(changed), tuple(later))
