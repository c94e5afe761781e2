"""Where turnout keeps its state: one directory, mode 0700; two homes never meet.

HOME/keeper.sock  keeper.lock  keeper.log  router.sock  router.lock  router-BOOT.json  router.log
HOME/services/NAME/registry.json  settings.json  definition.json  builds.json  journal.jsonl  lifecycle.lock
                   daemons/  logs/
"""

from __future__ import annotations

import hashlib
import os
import pwd
import re
import shlex
import stat
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from turnout.errors import StateUnwritableError, UsageError
from turnout.system.files import Files
from turnout.system.user_directory import expand_user, user_directory

SETTINGS_MAX_BYTES: Final = 4 << 20
STATE: Final = ".local/state"  # below a home directory
OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")


def check_name(name: str) -> str:
    """Return ``name`` if it can be a service's: it becomes a directory. Raises UsageError: it cannot."""
    if not _NAME.match(name):
        hint = "letters, digits, '.', '-', '_', at most 64, none leading"
        raise UsageError(f"{name!r} is no service name", hint=hint)
    return name


def file_name(boot_id: str) -> str:
    """What the files of a boot are called, without a suffix; no two boots share one.

    What turnout starts or attaches has an id that serves as it stands. But any text is a boot id that another program
    writes into the shared registry: also one that would lead out of the directory, or that no filesystem takes.
    """
    if _NAME.match(boot_id):
        return boot_id
    return f"%{hashlib.sha256(boot_id.encode('utf-8', 'surrogatepass')).hexdigest()}"  # '%' begins no other name


class _Below:
    """A path below the root of a home or of a service."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, home: Home | ServiceHome, _owner: object = None) -> Path:
        return home.root / self._name


@dataclass(frozen=True, slots=True)
class ServiceHome:
    """The paths of one service."""

    name: str
    root: Path

    registry = _Below("registry.json")
    settings = _Below("settings.json")
    definition = _Below("definition.json")
    builds = _Below("builds.json")
    journal = _Below("journal.jsonl")
    records = _Below("daemons")
    logs = _Below("logs")
    contexts = _Below("contexts")  # the execution contexts of its builds

    @property
    def home(self) -> Home:
        """That of all services."""
        return Home(self.root.parent.parent)

    def read_settings(self) -> tuple[bytes, os.stat_result]:
        """The content and the state of settings.json. Raises OSError: it cannot be read, or is far too large."""
        return Files().read(self.settings, SETTINGS_MAX_BYTES)

    def record(self, boot_id: str) -> Path:
        return self.records / f"{file_name(boot_id)}.json"

    def log(self, boot_id: str) -> Path:
        return self.logs / f"{file_name(boot_id)}.log"

    def create(self) -> None:
        """Make the directories, mode 0700. Raises as :meth:`Home.create`."""
        self.home.create()
        for directory in (self.root.parent, self.root, self.records, self.logs):
            _make(directory, like=self.home.root)


@dataclass(frozen=True, slots=True)
class Home:
    """The paths of the whole state directory."""

    root: Path

    keeper_sock = _Below("keeper.sock")
    keeper_lock = _Below("keeper.lock")
    keeper_log = _Below("keeper.log")
    router_sock = _Below("router.sock")
    router_lock = _Below("router.lock")
    router_log = _Below("router.log")
    metrics = _Below("metrics.json")
    services = _Below("services")

    @classmethod
    def find(cls, environ: Mapping[str, str] | None = None, *, usable: bool = True) -> Home:
        """TURNOUT_HOME, else the user's state directory.

        Args:
            environ: None: this process's.
            usable: refuse what is no directory and cannot become one.

        Raises:
            UsageError: it is no directory; TURNOUT_HOME names an unknown user, or a relative path below a directory
                that was deleted; or it is not set, and there is no home directory.
        """
        home = cls._found((os.environ if environ is None else environ).get("TURNOUT_HOME", ""))
        if usable:
            _check_directory(home.root)
        return home

    @classmethod
    def _found(cls, named: str) -> Home:
        if named:
            try:
                return cls(expand_user(named, setting="TURNOUT_HOME").absolute())
            except FileNotFoundError:
                why = f"TURNOUT_HOME={named} is relative, and the working directory was deleted"
                raise UsageError(why, hint="cd to another directory, or write the absolute path") from None
        state = os.environ.get("XDG_STATE_HOME", "").strip()  # XDG Base Directory Specification
        return cls((Path(state) if state else user_directory() / STATE) / "turnout")

    @classmethod
    def of_user(cls, user: str, environ: Mapping[str, str] | None = None) -> Home:
        """The state directory that the verbs of ``user`` find: TURNOUT_HOME, else the one in that user's home.

        Raises UsageError: there is no such user.
        """
        try:
            entry = pwd.getpwnam(user)
        except KeyError:
            raise UsageError(f"there is no user {user!r}", hint="--run-as USER") from None
        named = (os.environ if environ is None else environ).get("TURNOUT_HOME", "")
        if named or entry.pw_uid == os.geteuid():
            return cls.find(environ)
        return cls(Path(entry.pw_dir) / STATE / "turnout")

    def router_record(self, boot_id: str) -> Path:
        """The record of one router: while one replaces another, there are two."""
        return self.root / f"{boot_id}.json"

    def service(self, name: str) -> ServiceHome:
        return ServiceHome(name, self.services / check_name(name))

    def service_names(self) -> list[str]:
        """The services that have been here, sorted; those with settings only."""
        try:
            return sorted(d.name for d in self.services.iterdir() if (d / "settings.json").is_file())
        except (FileNotFoundError, NotADirectoryError):
            return []
        except PermissionError as error:
            problem = f"cannot read {self.services}: {error.strerror}"
            raise StateUnwritableError(problem, hint="is TURNOUT_HOME another user's?") from error

    def services_without_settings(self) -> list[str]:
        """The services of which there are records or a registry, and no settings: their file was removed; sorted."""
        with suppress(OSError):
            names = [entry.name for entry in self.services.iterdir() if _NAME.match(entry.name)]
            homes = [self.service(name) for name in sorted(names)]
            return [
                home.name
                for home in homes
                if not home.settings.exists() and (home.registry.exists() or any(home.records.glob("*.json")))
            ]
        return []

    def looseness(self) -> str:
        """Why others than its owner can look into it, in words for a log; empty where they cannot."""
        try:
            mode = stat.S_IMODE(self.root.stat().st_mode)
        except OSError:
            return ""
        loose = f"{self.root} has mode {mode:04o}: others can look at registry, logs and sockets"
        return loose if mode & OTHERS else ""

    def create(self) -> None:
        """Make the directory, mode 0700.

        Raises:
            StateUnwritableError: no permission, a full disk, a file in the way, or another user's home
                (:meth:`check_owner`).
        """
        self.check_owner()
        _make(self.root)

    def check_owner(self) -> None:
        """Refuse root in the home of another user: what root makes there, that user's turnout can no longer use.

        A home whose owner is no user of this machine is not refused: in a container root is often the only user, and
        the directory is mounted from outside. What root makes in it is given to its owner.

        Raises:
            StateUnwritableError: root acts, and the home belongs to another user of this machine; a home that does not
                exist yet, to the user in whose directory it would be made, unless TURNOUT_HOME names it.
        """
        if os.geteuid() != 0:
            return
        user = self.owner()
        if user:
            problem = f"{self.root} is the state directory of user {user}, and root would lock {user} out of it"
            raise StateUnwritableError(problem, hint=self.as_owner(user, *sys.argv[1:]))

    def as_owner(self, user: str, *words: str) -> str:
        """What root types to run this turnout in this home as its owner."""
        import shutil  # noqa: PLC0415  # for this hint alone, and it brings the compression modules along

        program = sys.argv[0] if Path(sys.argv[0]).name == "turnout" and Path(sys.argv[0]).is_absolute() else "turnout"
        become = ["sudo", "-u", user] if shutil.which("sudo") else ["runuser", "-u", user, "--"]
        return shlex.join([*become, "env", f"TURNOUT_HOME={self.root}", program, *words])

    def owner(self) -> str:
        """The user whose home it is, or would be; empty where that is the caller, or no user of this machine."""
        place = self.root
        try:
            while not place.exists() and place != place.parent and not os.environ.get("TURNOUT_HOME"):
                place = place.parent
            uid = place.stat().st_uid
            return "" if uid in {0, os.geteuid()} else pwd.getpwuid(uid).pw_name
        except (OSError, KeyError):
            return ""


def _check_directory(root: Path) -> None:
    """Refuse a state directory that is none; one that does not exist yet may be made. Raises UsageError."""
    hint = "set TURNOUT_HOME to a directory"
    try:
        if stat.S_ISDIR(root.stat().st_mode):
            return
        why = "it is no directory"
    except FileNotFoundError:
        if not root.is_symlink():
            return
        target = os.path.join(root.parent, os.readlink(root))  # noqa: PTH115, PTH118  # as it is written
        why = f"it is a symbolic link to {target}, which does not exist"
        hint = f"mkdir -m 700 -p -- {shlex.quote(target)}; or {hint}"
    except PermissionError:  # the verb names what it may not do
        return
    except OSError as error:  # below a file, a loop of symbolic links
        why = error.strerror or type(error).__name__
    raise UsageError(f"{root} cannot be the state directory: {why}", hint=hint)


def _make(directory: Path, *, like: Path | None = None) -> None:
    hint = "set TURNOUT_HOME to a directory that you may write"
    try:
        there = directory.is_dir()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if like and not there and os.geteuid() == 0:
            state = like.stat()
            os.chown(directory, state.st_uid, state.st_gid)
        usable = os.access(directory, os.W_OK | os.X_OK)
    except OSError as error:
        raise StateUnwritableError(f"cannot create {directory}: {error.strerror}", hint=hint) from error
    if not usable:
        raise StateUnwritableError(f"cannot write to {directory}: permission denied", hint=hint)
