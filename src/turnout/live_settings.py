"""The settings of one service as they count now: those that the last verb wrote, or what the file has said since."""

from __future__ import annotations

import logging
from collections.abc import Callable

from turnout.config import Settings, load_settings
from turnout.errors import TurnoutError
from turnout.reloading import NEEDS, Reload, Reloading
from turnout.service import Service
from turnout.system.home import ServiceHome
from turnout.system.watcher import Watcher

log = logging.getLogger("turnout.router")


class LiveSettings:
    """The service as it is open now; it is opened anew whenever its settings change. Owns nothing.

    Args:
        home: the service's directory.
        plane: the name of the plane that carries it, which no settings change.
        changed: called after each change.

    Raises:
        ConfigError: the settings were written by another version.
        OSError: they cannot be read.
    """

    def __init__(self, home: ServiceHome, plane: str, changed: Callable[[], None]) -> None:
        self._changed = changed
        self.service = Service.open(home, _settings(home))
        self._planes = {"auto", plane, self.service.settings.plane}  # one that was named may not work here
        self._watcher = Watcher(home.settings)
        self._watcher.poll()
        self._reloading = Reloading(self.service.settings, home.settings.stat().st_mtime_ns)
        self.last = Reload(self.service.settings)

    @property
    def settings(self) -> Settings:
        return self.service.settings

    def reload(self) -> None:
        """SIGHUP: read the configuration file again, whatever its time stamp says."""
        if self._reloading.follows:
            self._reload_file()
        else:
            log.info("%s: there is no configuration file; its settings are those of the last verb", self.service.name)

    def look(self) -> None:
        """Take changed settings over; those that this version cannot read leave what is, and switches go on."""
        if self._watcher.poll():
            self._reload_settings()
        if self._reloading.is_due():
            self._reload_file()

    def _reload_settings(self) -> None:
        """A verb wrote them: they are what counts, whole."""
        home = self.service.home
        try:
            self.service = Service.open(home, _settings(home))
            self._reloading = Reloading(self.service.settings, home.settings.stat().st_mtime_ns)
            later = () if self.service.settings.plane in self._planes else (f"plane: {NEEDS['plane']}",)
            self.last = Reload(self.service.settings, later=later)
        except (TurnoutError, OSError) as error:
            log.warning("%s: the old settings stay: %s", self.service.name, error)
            return
        self._changed()

    def _reload_file(self) -> None:
        """A person wrote them, with no verb so far."""
        done = self.last = self._reloading.reload(self.service.settings)
        name = self.service.name
        if done.changed:
            self.service = Service.open(self.service.home, done.settings)
            self._changed()
        if done.error:
            log.warning("%s: the old settings stay: %s", name, done.error)
        else:
            log.info("%s: reloaded: %s", name, ", ".join(done.changed) or "nothing that can change has changed")
        for what in done.later:
            log.warning("%s: not taken over: %s", name, what)


def _settings(home: ServiceHome) -> Settings:
    return load_settings(home.settings.read_bytes())
