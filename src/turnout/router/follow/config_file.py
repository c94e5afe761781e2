"""A changed configuration file, taken over by the router that runs: what can be at once, and what cannot is said.

The file's word wins from the moment it changes; a flag given to a verb counts until then.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from turnout.config.file import load_file
from turnout.config.keys import BUILD, KEYS, Takes
from turnout.config.settings import ServiceRequest, Settings
from turnout.errors import TurnoutError
from turnout.system.file_watcher import Watcher

# Fields of the settings that a running router does not take over by itself, with what puts a change in force.
NEEDS: Final[Mapping[str, Takes]] = {
    key.field.partition(".")[0]: key.takes for key in KEYS.values() if key.takes not in {Takes.AT_ONCE, Takes.BUILD}
}


class ReloadResult(msgspec.Struct, frozen=True):
    """What came of a reload.

    Args:
        settings: those that count from here on.
        changed: the fields that were taken over.
        later: what was not, each with what it needs.
        error: why the file cannot be used; the settings are the old ones then.
        again: it could not be read, so it is read again with the next look.
    """

    settings: Settings
    changed: tuple[str, ...] = ()
    later: tuple[str, ...] = ()
    error: str = ""
    again: bool = False


class ConfigReloader:
    """Follows the configuration file of one service, whose settings were written by a verb. Owns nothing.

    Args:
        settings: as the last verb left them; they name the file, if there is one.
        written_ns: when it did, in nanoseconds of the file system's clock.
    """

    def __init__(self, settings: Settings, written_ns: int) -> None:
        self._path = Path(settings.source) if settings.source else None
        self._watcher = Watcher(self._path) if self._path else None
        self._known: ServiceRequest | None = None
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

    def is_due(self) -> bool:
        """Whether the file has changed since the last look."""
        stale, self._stale = self._stale, False
        return stale or (self._watcher is not None and self._watcher.poll())

    def reload(self, current: Settings) -> ReloadResult:
        """Read the file; answers ``current`` with what may change as the file has it now."""
        if self._path is None:
            return ReloadResult(current)
        try:
            wanted = load_file(self._path).get(current.name)
        except TurnoutError as error:
            self._stale = again = isinstance(error.__cause__, OSError)
            return ReloadResult(current, error=error.message, again=again)
        if wanted is None:
            return ReloadResult(current, error=f"{self._path} has no service {current.name} any more")
        before, self._known = self._known, wanted
        if before is None or any(getattr(before, key.field) != getattr(wanted, key.field) for key in BUILD):
            self._undeployed = True  # until a verb comes, and with it another ConfigReloader
        there = wanted.settings
        differs = [name for name in Settings.__struct_fields__ if getattr(there, name) != getattr(current, name)]
        needs = {name: takes for name, takes in NEEDS.items() if takes is not Takes.WITH_BUILD or self._undeployed}
        later = [f"{name}: {needs[name]}" for name in differs if name in needs]
        if before and self._undeployed:
            *names, last = sorted(key.name for key in BUILD)
            later.append(f"{', '.join(names)} or {last}: {Takes.BUILD}")
        changed = [name for name in differs if name not in needs]
        settings = msgspec.structs.replace(current, **{name: getattr(there, name) for name in changed})
        return ReloadResult(settings, tuple(changed), tuple(later))
