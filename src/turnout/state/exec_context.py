"""Records the execution context of a daemon: environment, program, directory, umask and limits at exec(2).

The path of its program, its environment, umask and resource limits (getrlimit(2)), the name of the directory that it
was deployed from, and what its files looked like. HOME/services/NAME/contexts/ID.json, mode 0600: environments hold
secrets.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from turnout.errors import UsageError
from turnout.state.builds import Build
from turnout.system.command import clean_environment, is_file, resolve_command
from turnout.system.files import Files, opened, or_unwritable, write_durably
from turnout.system.limits import own_limits, parse_limits, spell_limit
from turnout.system.process import own_status

MAX_BYTES: Final = 3 << 20  # of one record; the keeper takes no longer request, and execve(2) no larger environment
KEPT_BYTES: Final = 32 << 20  # of all records of a service
DIGEST_BYTES: Final = 16 << 20  # larger files are compared by inode, size and time
SHOWN_NAMES: Final = 12
# Variables of one login session, terminal or service invocation. They are not part of a deploy, and would make two
# deploys from two terminals differ.
_SESSION: Final = frozenset(
    {
        *("TERM", "TERMCAP", "TERMINFO", "COLORTERM", "LINES", "COLUMNS", "WINDOWID", "WINDOW", "STY", "LS_COLORS"),
        *("DISPLAY", "WAYLAND_DISPLAY", "WAYLAND_SOCKET", "XAUTHORITY", "ICEAUTHORITY", "SESSION_MANAGER", "MAIL"),
        *("DESKTOP_SESSION", "DESKTOP_STARTUP_ID", "GDMSESSION", "XDG_CURRENT_DESKTOP", "XDG_VTNR", "GPG_TTY"),
        *("XDG_ACTIVATION_TOKEN", "GPG_AGENT_INFO", "_", "SHLVL", "PWD", "OLDPWD"),
        *("INVOCATION_ID", "JOURNAL_STREAM", "SYSTEMD_EXEC_PID"),
    }
)
_SESSION_PREFIXES: Final = (
    *("SSH_", "XDG_SESSION_", "XDG_SEAT", "SUDO_", "TMUX", "ZELLIJ", "TERM_", "LC_TERMINAL", "VTE_", "VSCODE_"),
    *("KONSOLE_", "ITERM_", "KITTY_", "ALACRITTY_", "WEZTERM_", "GNOME_TERMINAL_"),
)


class FileState(msgspec.Struct, frozen=True):
    """What a file looked like; ``digest``: hexadecimal SHA-256, empty for a file above DIGEST_BYTES."""

    inode: int
    size_bytes: int
    mtime_ns: int
    digest: str = ""


class ExecContext(msgspec.Struct, frozen=True):
    """The environment, program, directory, umask and limits that a daemon inherits.

    Args:
        program: the absolute path of the program, without a symbolic link in its directory.
        env: the environment below the build's own ``env``.
        umask: 0 to 0o777; None: the keeper's.
        limits: resource limits by name, soft and hard.
        directory: the name by which the shell knew the build's directory, where that leads through a symbolic link.
        files: the program, its script and the watched files, by absolute path.
    """

    program: str
    env: Mapping[str, str]
    umask: int | None = None
    limits: Mapping[str, tuple[int, int]] = msgspec.field(default_factory=dict[str, tuple[int, int]])
    directory: str = ""
    files: Mapping[str, FileState] = msgspec.field(default_factory=dict[str, FileState])


# -- taking one ------------------------------------------------------------------------------------------------------


def capture(build: Build, *, watch: Iterable[str] = (), environ: Mapping[str, str] | None = None) -> ExecContext:
    """The context of this process, for a deploy of ``build`` from here.

    Args:
        build: what is deployed.
        watch: further files that it is made of.
        environ: the environment; None: this process's.

    Raises:
        SpawnError: the command cannot be run.
    """
    env = session_free(os.environ if environ is None else environ)
    return derive(ExecContext("", env, _own_umask(), own_limits()), build, watch=watch)


def derive(context: ExecContext, build: Build, *, watch: Iterable[str] = ()) -> ExecContext:
    """The context that another build of the same service was recorded with, for ``build``.

    Raises SpawnError: the command cannot be run.
    """
    program = pinned(resolve_command(build.command, build.cwd, {**context.env, **build.env}))
    files = file_states(_files_of(build, program, watch))
    return ExecContext(program, context.env, context.umask, context.limits, _link_to(build.cwd), files)


def session_free(environ: Mapping[str, str]) -> dict[str, str]:
    """An environment without what belongs to one login session, terminal or invocation, or to turnout itself."""
    clean = clean_environment(environ, {}, port=None)
    return {key: clean[key] for key in clean if key not in _SESSION and not key.startswith(_SESSION_PREFIXES)}


def pinned(program: str) -> str:
    """The same program by a path whose directory has no symbolic link: a release that is swapped does not swap it.

    Its own name stays as it is, since many programs look at it.
    """
    path = Path(program)
    return str(Path(os.path.realpath(path.parent)) / path.name)


def swapped_directory() -> tuple[str, str] | None:
    """The working directory, and the directory that the link in $PWD leads to meanwhile; None: they are the same.

    A shell that stands in ``current`` stays in the release that it entered, whatever the link leads to now.
    """
    named = Path(os.environ.get("PWD", ""))
    try:
        here, now = Path.cwd(), named.resolve(strict=True)
    except OSError:
        return None
    if not named.is_absolute() or here == now:
        return None
    link = next((part for part in (named, *named.parents) if part.is_symlink()), None)
    if link is None:
        return None
    # A program that was given another directory but the same $PWD (posix_spawn(3), env -C) may stand anywhere: the two
    # are releases of one thing where they differ in the part alone that the link stands for.
    below = named.relative_to(link).parts
    release = here
    for part in reversed(below):
        if release.name != part:
            return None
        release = release.parent
    return (str(here), str(now)) if release.parent == link.resolve().parent else None


def _link_to(directory: str) -> str:
    """The name by which the shell knows a directory, where that leads through a symbolic link; else empty."""
    named = Path(os.environ.get("PWD", ""))
    try:
        through_link = named.is_absolute() and named.samefile(directory) and str(named.resolve()) != str(named)
    except OSError:
        return ""
    return str(named) if through_link else ""


def _own_umask() -> int:
    """umask(2) cannot be asked without being set; a verb has one thread while it starts something."""
    with suppress(KeyError, ValueError):
        return int(own_status()["Umask"], 8)  # Linux 4.7
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


# -- its files -------------------------------------------------------------------------------------------------------


def _files_of(build: Build, program: str, watch: Iterable[str]) -> list[str]:
    """The program, the script or the archive that it runs, and the watched files."""
    words = [word for word in build.command[1:] if word and not word.startswith("-") and "\0" not in word]
    script = next((path for path in (Path(build.cwd) / word for word in words) if is_file(path)), None)
    return list(dict.fromkeys([program, *([str(script)] if script else []), *watch]))


def file_states(paths: Iterable[str]) -> dict[str, FileState]:
    """What the files look like; a file that cannot be read is left out."""
    found: dict[str, FileState] = {}
    for path in paths:
        with suppress(OSError):
            found[path] = _state(path)
    return found


def _state(path: str) -> FileState:
    # open(2): O_NONBLOCK, for a FIFO would wait for a writer
    with opened(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)) as fd:
        state, digest = os.fstat(fd), ""
        if stat.S_ISREG(state.st_mode) and state.st_size <= DIGEST_BYTES:
            with open(fd, "rb", closefd=False) as file:  # the descriptor is open already
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileState(state.st_ino, state.st_size, state.st_mtime_ns, digest)


def changed_files(context: ExecContext) -> list[str]:
    """The files of a context that are not what they were: other content, another file in their place, or gone."""
    return [path for path, before in context.files.items() if _differs(path, before)]


def _differs(path: str, before: FileState) -> bool:
    try:
        now = os.stat(path)  # noqa: PTH116  # as everywhere in this module
        if (now.st_ino, now.st_size, now.st_mtime_ns) == (before.inode, before.size_bytes, before.mtime_ns):
            return False
        return not before.digest or _state(path).digest != before.digest
    except OSError:
        return True


# -- comparing -------------------------------------------------------------------------------------------------------


def difference(before: ExecContext, after: ExecContext) -> str:
    """What differs, in one line: names of variables, never their values; empty: nothing."""
    parts: list[str] = []
    env = {
        "changed": [name for name, value in after.env.items() if before.env.get(name, value) != value],
        "new": [name for name in after.env if name not in before.env],
        "gone": [name for name in before.env if name not in after.env],
    }
    changes = [f"{_names(names)} {how}" for how, names in env.items() if names]
    if changes:
        parts.append(f"environment: {', '.join(changes)}")
    if before.program != after.program:
        parts.append(f"program {before.program} -> {after.program}")
    if before.umask is not None and after.umask is not None and before.umask != after.umask:
        parts.append(f"umask {before.umask:04o} -> {after.umask:04o}")
    parts += [
        f"limit {name} {spell_limit(before.limits[name])} -> {spell_limit(limit)}"
        for name, limit in after.limits.items()
        if name in before.limits and before.limits[name] != limit
    ]
    return "; ".join(parts)


def _names(names: Sequence[str]) -> str:
    shown = " ".join(sorted(names)[:SHOWN_NAMES])
    return f"{shown} and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else shown


# -- the files of records --------------------------------------------------------------------------------------------


class Contexts:
    """The records of one service. Equal contexts are one file, named by its hash.

    Args:
        directory: where they lie; made with mode 0700 when it is needed.
        files: the calls to the system.
    """

    def __init__(self, directory: Path, *, files: Files | None = None) -> None:
        self._directory = directory
        self._files = files or Files()

    def save(self, context: ExecContext) -> str:
        """Keep a context, durably, and return its id.

        Raises:
            UsageError: the environment is too large.
            StateUnwritableError: as :func:`write_durably`.
        """
        data = _encode(context)
        if len(data) > MAX_BYTES:
            largest = max(context.env, key=lambda name: len(context.env[name]), default="")
            raise UsageError(
                f"the environment is too large for a daemon: {len(data)} bytes, at most {MAX_BYTES}",
                hint=f"unset what the daemon does not need; the largest variable is {largest}",
            )
        context_id = hashlib.sha256(data).hexdigest()[:16]
        path = self._path(context_id)
        if self._read(path) != data:
            with or_unwritable("make the directory of", path):
                self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_durably(self._files, path, data, follows_links=False)
        return context_id

    def load(self, context_id: str) -> ExecContext | None:
        """A context by its id; None where there is none, or it cannot be read."""
        if not context_id.isalnum():
            return None
        try:
            data, _ = self._files.read(self._path(context_id), MAX_BYTES)
            raw = json.loads(data)
            raw["limits"] = parse_limits(raw["limits"])
            return msgspec.convert(raw, ExecContext)
        except (OSError, ValueError, TypeError, KeyError, RecursionError):  # msgspec.ValidationError is a ValueError
            return None

    def _read(self, path: Path) -> bytes | None:
        """The bytes of a record: a damaged record is written again."""
        try:
            return self._files.read(path, MAX_BYTES)[0]
        except OSError:
            return None

    def prune(self, ids: Sequence[str], *, spare: Collection[str] = ()) -> None:
        """Remove the records that are not in ``ids``, newest first, and those that exceed KEPT_BYTES together.

        ``spare``: ids that stay, whatever their size.
        """
        left_bytes = KEPT_BYTES
        kept: set[str] = set()
        for context_id in dict.fromkeys(ids):
            with suppress(OSError):
                left_bytes -= self._path(context_id).stat().st_size
                if left_bytes >= 0 or context_id in spare:
                    kept.add(context_id)
        with suppress(OSError):
            for path in list(self._directory.iterdir()):
                if path.suffix in {".json", ".tmp"} and path.stem not in kept:
                    path.unlink(missing_ok=True)

    def _path(self, context_id: str) -> Path:
        return self._directory / f"{context_id}.json"


def _encode(context: ExecContext) -> bytes:
    plain = {**msgspec.to_builtins(context), "env": dict(sorted(context.env.items()))}
    return json.dumps(plain, indent=1).encode() + b"\n"  # the standard library's: it carries surrogates there and back
