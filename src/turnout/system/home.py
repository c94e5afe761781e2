"""Where turnout keeps its state: one directory, mode 0700; two homes never meet.

HOME/keeper.sock  keeper.lock  keeper.log  router.sock  router.lock  router-BOOT.json  router.log
HOME/services/NAME/registry.json  settings.json  builds.json  journal.jsonl  lifecycle.lock  daemons/  logs/
"""

from __future__ import annotations

import hashlib
import os
import pwd
import re
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from turnout.errors import StateUnwritableError, UsageError

OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")


def check_name(name: str) -> str:
    """Return ``name`` if it can be a service's: it becomes a directory.

    Raises:
        UsageError: it is empty, longer than 64 characters, or has others than letters, digits, dot, dash, underscore.
    """
    if not _NAME.match(name):
        raise UsageError(
            f"{name!r} is no service name", hint="letters, digits, '.', '-', '_', at most 64, none leading"
        )
    return name


def file_name(boot_id: str) -> str:
    """What the files of a boot are called, without a suffix; no two boots share one.

    What turnout starts or attaches has an id that serves as it stands. But any text is a boot id that another program
    writes into the shared registry: also one that would lead out of the directory, or that no filesystem takes.
    """
    if _NAME.match(boot_id):
        return boot_id
    return f"%{hashlib.sha256(boot_id.encode('utf-8', 'surrogatepass')).hexdigest()}"  # '%' begins no other name


@dataclass(frozen=True, slots=True)
class ServiceHome:
    """The paths of one service."""

    name: str
    root: Path

    @property
    def registry(self) -> Path:
        return self.root / "registry.json"

    @property
    def settings(self) -> Path:
        return self.root / "settings.json"

    @property
    def builds(self) -> Path:
        return self.root / "builds.json"

    @property
    def journal(self) -> Path:
        return self.root / "journal.jsonl"

    @property
    def records(self) -> Path:
        return self.root / "daemons"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    def record(self, boot_id: str) -> Path:
        return self.records / f"{file_name(boot_id)}.json"

    def log(self, boot_id: str) -> Path:
        return self.logs / f"{file_name(boot_id)}.log"

    def create(self) -> None:
        """Make the directories, mode 0700.

        Raises:
            StateUnwritableError: no permission, a full disk, or a file in the way.
        """
        for directory in (self.root.parent.parent, self.root.parent, self.root, self.records, self.logs):
            _make(directory)


@dataclass(frozen=True, slots=True)
class Home:
    """The paths of the whole state directory."""

    root: Path

    @classmethod
    def find(cls, environ: Mapping[str, str] | None = None) -> Home:
        """TURNOUT_HOME, else the user's state directory."""
        named = (os.environ if environ is None else environ).get("TURNOUT_HOME", "")
        if named:
            return cls(Path(named).expanduser().absolute())
        import platformdirs  # noqa: PLC0415  # the keeper imports this file and needs nothing but the standard library

        return cls(platformdirs.user_state_path("turnout"))

    @classmethod
    def of_user(cls, user: str, environ: Mapping[str, str] | None = None) -> Home:
        """The state directory that the verbs of ``user`` find: TURNOUT_HOME, else the one in that user's home.

        Raises:
            UsageError: there is no such user.
        """
        try:
            entry = pwd.getpwnam(user)
        except KeyError:
            raise UsageError(f"there is no user {user!r}", hint="--run-as USER") from None
        named = (os.environ if environ is None else environ).get("TURNOUT_HOME", "")
        if named or entry.pw_uid == os.geteuid():
            return cls.find(environ)
        where = "Library/Application Support" if sys.platform == "darwin" else ".local/state"
        return cls(Path(entry.pw_dir) / where / "turnout")

    @property
    def keeper_sock(self) -> Path:
        return self.root / "keeper.sock"

    @property
    def keeper_lock(self) -> Path:
        return self.root / "keeper.lock"

    @property
    def keeper_log(self) -> Path:
        return self.root / "keeper.log"

    @property
    def router_sock(self) -> Path:
        return self.root / "router.sock"

    @property
    def router_lock(self) -> Path:
        return self.root / "router.lock"

    def router_record(self, boot_id: str) -> Path:
        """The record of one router: while one replaces another, there are two."""
        return self.root / f"{boot_id}.json"

    @property
    def router_log(self) -> Path:
        return self.root / "router.log"

    @property
    def metrics(self) -> Path:
        """Where metrics are served."""
        return self.root / "metrics.json"

    @property
    def services(self) -> Path:
        return self.root / "services"

    def service(self, name: str) -> ServiceHome:
        return ServiceHome(name, self.services / check_name(name))

    def service_names(self) -> list[str]:
        """The services that have been here, sorted; those with settings only."""
        try:
            return sorted(d.name for d in self.services.iterdir() if (d / "settings.json").is_file())
        except (FileNotFoundError, NotADirectoryError):
            return []
        except PermissionError as error:
            raise StateUnwritableError(
                f"cannot read {self.services}: {error.strerror}", hint="is TURNOUT_HOME another user's?"
            ) from error

    def looseness(self) -> str:
        """Why others than its owner can look into it, in words for a log; empty where they cannot."""
        try:
            mode = stat.S_IMODE(self.root.stat().st_mode)
        except OSError:
            return ""
        return (
            f"{self.root} has mode {mode:04o}: others can look at registry, logs and sockets" if mode & OTHERS else ""
        )

    def create(self) -> None:
        """Make the directory, mode 0700.

        Raises:
            StateUnwritableError: no permission, a full disk, or a file in the way.
        """
        _make(self.root)


def _make(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        usable = os.access(directory, os.W_OK | os.X_OK)
    except OSError as error:
        raise StateUnwritableError(
            f"cannot create {directory}: {error.strerror}", hint="set TURNOUT_HOME to a directory that you may write"
        ) from error
    if not usable:
        raise StateUnwritableError(
            f"cannot write to {directory}: permission denied", hint="set TURNOUT_HOME to a directory that you may write"
        )
