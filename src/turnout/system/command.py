"""A daemon's command and environment: which file will run, and what stands for its port. Standard library only."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from turnout.errors import SpawnError

FIRST_PASSED_FD: Final = 3  # SD_LISTEN_FDS_START, sd_listen_fds(3)
# Set by an outer turnout or systemd for this process alone: sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3).
# Whole names, since LISTEN_ADDR and the like are the daemon's business.
_NOT_FOR_DAEMONS: Final = frozenset({"LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "MAINPID"})
_NOR_THESE: Final = ("TURNOUT_", "WATCHDOG_")
_WORD: Final = re.compile(r"(?<!\{)\{(port|fd|listen_port)\}(?!\})")


def check_words(argv: Sequence[str], cwd: str, env: Mapping[str, str]) -> None:
    """Raises SpawnError: execve(2) takes no such command, directory or environment. Looks at no file."""
    if not argv or not argv[0]:
        raise SpawnError("the command is empty", hint="turnout up -- COMMAND --port {port}")
    if any("\0" in word for word in (*argv, cwd, *env.keys(), *env.values())):
        raise SpawnError(f"the command of {argv[0]!r} or its environment contains a NUL byte", hint="check env")
    if any("=" in key or not key for key in env):
        raise SpawnError("a variable of the environment has an empty name or one with =", hint="check env")


def resolve_command(argv: Sequence[str], cwd: str, env: Mapping[str, str], *, program: str = "") -> str:
    """Which file will run: relative to ``cwd`` where it has a slash, else found on the PATH of ``env``.

    Blocks as long as their file systems do. ``program``: the file that ran at the deploy; it is taken while it can be
    executed.

    Raises:
        SpawnError: there is none, it is not executable, or the directory does not exist; or as :func:`check_words`.
    """
    check_words(argv, cwd, env)
    home = Path(cwd or "/")
    if not home.is_dir():
        raise SpawnError(f"no such directory: {cwd}", hint="check cwd")
    if program and is_file(Path(program)) and os.access(program, os.X_OK):
        return program
    name = argv[0]
    # an empty or relative entry of PATH is taken from the daemon's directory (environ(7)), not from ours
    entries = [""] if "/" in name else env.get("PATH", os.defpath).split(":")
    places = [home / entry / name for entry in entries]
    files = [place for place in places if is_file(place)]
    for place in files:
        if os.access(place, os.X_OK):
            return str(place)
    if files:
        raise SpawnError(f"not executable: {files[0]}", hint=f"chmod +x {files[0]}")
    if "/" in name:
        raise SpawnError(f"no such command: {places[0]}", hint="check the path")
    raise SpawnError(f"no such command: {name}", hint="is it installed, and on the PATH?")


def is_file(place: Path) -> bool:
    try:
        return place.is_file()
    except OSError:  # a directory on the way that may not be searched; a word that is no path, for its length
        return False


def clean_environment(base: Mapping[str, str], extra: Mapping[str, str], *, port: int | None) -> dict[str, str]:
    """The daemon's environment: ``base`` without what an outer turnout or systemd set for this process, then ``extra``.

    Args:
        base: what this process has.
        extra: what the service's configuration adds; a PORT in it stays.
        port: where the daemon shall listen, as PORT and TURNOUT_PORT; None where it gets a socket instead.
    """
    env = {key: value for key, value in base.items() if key not in _NOT_FOR_DAEMONS and not key.startswith(_NOR_THESE)}
    env.update(extra)
    if port is not None:
        env["TURNOUT_PORT"] = str(port)
        if "PORT" not in extra:
            env["PORT"] = str(port)
    return env


def fill_port(argv: Sequence[str], port: int, *, listen_port: int | None = None) -> tuple[str, ...]:
    """The command with its words filled in; ``{{port}}`` and other braces are left as they are.

    Args:
        argv: the command.
        port: ``{port}``, where the daemon listens.
        listen_port: ``{listen_port}``, where the service does; None: as ``port``. ``{fd}`` is the first descriptor
            that is passed on (sd_listen_fds(3)).
    """
    values = {"port": port, "fd": FIRST_PASSED_FD, "listen_port": port if listen_port is None else listen_port}
    return tuple(_WORD.sub(lambda match: str(values[match[1]]), word) for word in argv)
