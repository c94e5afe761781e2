"""The settings of one service as they count now: those that the last verb wrote, or what the file has said since.

Two files in two places: settings.json in the home, and the configuration file in a directory of the operator's. Each
is read by a thread of its own, so that a directory that hangs (NFS, FUSE) delays neither the loop nor the other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic
from typing import Final, NamedTuple

import msgspec

from turnout.config.settings import Settings, dump_settings, ignored_settings, load_settings
from turnout.errors import TurnoutError
from turnout.router.follow.config_file import NEEDS, ConfigReloader, ReloadResult
from turnout.state.home import ServiceHome
from turnout.state.registry.file import RegistryFile
from turnout.state.service import Service
from turnout.system.file_watcher import Watcher
from turnout.system.files import Files, write_missing
from turnout.system.home_identity import HomeIdentity

log = logging.getLogger("turnout.router")

REMOVED_AFTER_S: Final = 1.0  # sooner, files appear in a directory that a program is removing, and rmdir(2) fails


class WrittenSettings(msgspec.Struct, frozen=True):
    """What a verb wrote into settings.json, and when (nanoseconds of the file system's clock); or why it is no use."""

    settings: Settings | None
    written_ns: int = 0
    error: str = ""


class ConfigLook(NamedTuple):
    """A look at the configuration file.

    Args:
        reloading: follows the file from here on.
        found: what came of it; None: the file has not changed, and no reload was asked for.
        asked: how many reloads had been asked for when it began.
    """

    reloading: ConfigReloader
    found: ReloadResult | None
    asked: int


class OpenedSettings(msgspec.Struct, frozen=True):
    """What a service's settings.json says, and what follows the file from here on.

    Args:
        home: the service's directory.
        settings: as the last verb wrote them.
        written_ns: when it did.
        watcher: of the file; polled once.
        directory: of the service, as it was then; None: not known.
    """

    home: ServiceHome
    settings: Settings
    written_ns: int
    watcher: Watcher
    directory: HomeIdentity | None = None

    @classmethod
    def read(cls, home: ServiceHome) -> OpenedSettings:
        """Read the file; blocks as long as its file system does.

        Raises:
            ConfigError: it was written by another version, or is damaged.
            OSError: it cannot be read.
        """
        watcher = Watcher(home.settings)
        watcher.poll()
        settings, written_ns = _read(home)
        return cls(home, settings, written_ns, watcher, HomeIdentity.of(home.root))


class SettingsFollower:
    """The service as it is open now; it is opened again whenever its settings change. Owns nothing.

    :meth:`look_at_settings` and what :meth:`begin_look` returns read files, in threads; the rest is for the loop.

    Args:
        plane: the name of the plane that carries the service, which no settings change.
    """

    def __init__(self, opened: OpenedSettings, plane: str, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._watcher = opened.watcher
        self.service = Service.open(opened.home, opened.settings)
        self._planes = {"auto", plane, opened.settings.plane}  # one that was named may not work here
        self._written_ns: int = opened.written_ns
        self._written: Settings = opened.settings
        self._directory = opened.directory
        self._reloading: ConfigReloader | None = None  # made by the first look at the file that the settings name
        self._unread = False  # settings.json has changed, and could not be read
        self._missing_since: float | None = None
        self._read_error = ""
        self._reloads_asked = 0  # by SIGHUP
        self._reloads_done = 0
        self.last = ReloadResult(opened.settings)

    @property
    def settings(self) -> Settings:
        return self.service.settings

    def look_at_settings(self) -> WrittenSettings | None:
        """What a verb wrote since the last look; None: nothing, or it cannot be read yet for the reason given before.

        A file that the system did not let us read (no descriptor, an I/O error) is read again with the next look. One
        that was removed is made again.
        """
        changed = self._watcher.poll()
        if not changed and not self._unread:
            return None
        self._unread = False
        written: WrittenSettings | None
        try:
            written = WrittenSettings(*_read(self.service.home))
        except FileNotFoundError as error:
            if self._missing_since is None:
                self._missing_since = monotonic()
            if monotonic() - self._missing_since < REMOVED_AFTER_S:
                self._unread = True
                return None
            trouble = self._restore()
            written = WrittenSettings(None, error=f"{error}; {trouble}") if trouble else None
        except (TurnoutError, OSError) as error:
            written = WrittenSettings(None, error=str(error))
            self._unread = isinstance(error, OSError)
        else:
            self._missing_since = None
        known, self._read_error = self._read_error, written.error if written else ""
        return None if written and written.error and written.error == known and not changed else written

    def _restore(self) -> str:
        """Make settings.json again: a router without it cannot serve the service. Returns why that failed, or "".

        In a directory that was made again the service is another one, and is left alone.
        """
        home = self.service.home
        if self._directory is None or HomeIdentity.of(home.root) != self._directory:
            return "its directory was removed, too"
        try:
            write_missing(Files(), home.settings, dump_settings(self._written), written_ns=self._written_ns)
        except OSError as error:
            self._unread = True  # a full disk: the next look tries again
            return f"it cannot be made again yet: {error.strerror}"
        self._missing_since = None
        log.info("%s: made %s again: it was removed", self.service.name, home.settings)
        return ""

    def registry_of(self, written: WrittenSettings | None) -> RegistryFile:
        """The registry that these settings name; without new ones, the one that is open."""
        named = self.settings.registry
        if written is None or written.settings is None or written.settings.registry == named:
            return self.service.registry
        return Service.open(self.service.home, written.settings).registry

    def take(self, written: WrittenSettings) -> None:
        """A verb wrote them: they are what counts, whole. Those that this version cannot read leave what is."""
        if written.settings == self._written and written.written_ns == self._written_ns:
            return  # the file was made again
        if written.settings is None:
            log.warning("%s: the old settings stay: %s", self.service.name, written.error)
            return
        self.service = Service.open(self.service.home, written.settings)
        self._written_ns, self._reloading = written.written_ns, None
        self._written = written.settings
        later = () if written.settings.plane in self._planes else (f"plane: {NEEDS['plane']}",)
        self.last = ReloadResult(written.settings, later=later)
        self._changed()

    def reload(self) -> None:
        """SIGHUP: have the next look read the configuration file, whatever its time stamp says."""
        if self.settings.source:
            self._reloads_asked += 1
        else:
            log.info("%s: there is no configuration file; its settings are those of the last verb", self.service.name)

    def begin_look(self) -> Callable[[], ConfigLook]:
        """The look at the configuration file, for the thread of its directory; :meth:`take_file` takes its answer."""
        settings, written_ns, reloading = self.settings, self._written_ns, self._reloading
        asked, now = self._reloads_asked, self._reloads_asked != self._reloads_done

        def look() -> ConfigLook:
            following = reloading or ConfigReloader(settings, written_ns)
            due = following.is_due()
            return ConfigLook(following, following.reload(settings) if due or now else None, asked)

        return look

    def take_file(self, looked_from: Settings, look: ConfigLook) -> None:
        """A person wrote the file, with no verb so far.

        Args:
            looked_from: the settings at the time of :meth:`begin_look`; a verb has come since where they are others.
            look: what was found.
        """
        if looked_from is not self.settings:
            return
        self._reloading, done = look.reloading, look.found
        asked, self._reloads_done = self._reloads_done != look.asked, look.asked
        if done is None:
            return
        known, self.last = self.last, done
        if done.again and done.error == known.error and not asked:
            return  # said before
        name = self.service.name
        if done.changed:
            self.service = Service.open(self.service.home, done.settings)
            self._changed()
        if done.error:
            log.warning("%s: the old settings stay: %s", name, done.error)
        else:
            log.info("%s: reloaded: %s", name, ", ".join(done.changed) or "nothing that can change has changed")
        for field in done.later:
            log.warning("%s: not taken over: %s", name, field)


def _read(home: ServiceHome) -> tuple[Settings, int]:
    data, state = home.read_settings()
    settings = load_settings(data)
    for key in ignored_settings(data):
        log.warning("%s: the setting %s was removed in turnout 0.2, and is ignored", home.name, key)
    return settings, state.st_mtime_ns
