"""Records where a service is defined, and refuses verbs of another file that defines a service of the same name.

services/NAME/definition.json names the configuration file, or the directory in which the command was typed. It is kept
apart from settings.json, which turnout 0.1 reads and in which it refuses fields that it does not know.
"""

from __future__ import annotations

import json
import os
import shlex
from contextlib import suppress
from pathlib import Path

import msgspec

from turnout.config.file import FILE_NAME
from turnout.config.settings import DEFAULT_SERVICE, Definition
from turnout.errors import TurnoutError, UsageError
from turnout.state.home import ServiceHome
from turnout.state.service import remembered
from turnout.system.files import Files, write_durably

LIMIT_BYTES = 65536


def defined_in(path: Path) -> Definition:
    """The definition of a service that stands in the configuration file ``path``."""
    file = path if path.is_absolute() else Path(working_directory()) / path
    return Definition(
        file=os.path.normpath(file), real_file=os.path.realpath(path), directory=os.path.normpath(file.parent)
    )


def typed_here() -> Definition:
    """The definition of a service whose command is typed in the working directory."""
    return Definition(directory=working_directory())


def working_directory() -> str:
    """The working directory as the shell names it, or else its real path; empty: it was deleted.

    PWD keeps the symbolic links that were passed on the way: a directory called ``current`` stays the same where
    deploys move that link. It counts as long as it leads here (POSIX, pwd -L).
    """
    named = os.environ.get("PWD", "")
    try:
        real = os.getcwd()  # noqa: PTH109  # Path.cwd() is the same
    except FileNotFoundError:
        return ""
    with suppress(OSError, ValueError):
        if named.startswith("/") and os.path.samefile(named, "."):  # noqa: PTH121  # as above
            return os.path.normpath(named)
    return real


def definition_of(home: ServiceHome) -> Definition | None:
    """The recorded definition of a service; None: not known.

    turnout 0.1 recorded none, but its settings name the file that they came from, unless the command was typed.
    """
    with suppress(OSError, ValueError, RecursionError):
        data, _ = Files().read(home.definition, LIMIT_BYTES)
        return msgspec.convert(json.loads(data), Definition)
    with suppress(TurnoutError):
        settings = remembered(home)
        if settings and settings.source:
            return defined_in(Path(settings.source))
    return None


def check_definition(home: ServiceHome, wanted: Definition | None, verb: str, *, automatic: bool = False) -> None:
    """Refuse a verb whose file, or typed command, is not the one that defines the service.

    Args:
        home: the service's directory.
        wanted: where the verb has its settings and its build from; None: from what the service remembers.
        verb: its name, for the hint.
        automatic: a client asks, with a command of its own, and is judged by its version
            (:mod:`turnout.lifecycle.auto_deploy_guard`).

    Raises:
        UsageError: another file, or a command that was typed elsewhere, defines the service.
    """
    known = definition_of(home)
    if known is None or wanted is None or is_same(known, wanted) or (automatic and not wanted.file):
        return
    named = known.file and Path(known.file).exists() and Path(known.file).name
    config = f" -c {shlex.quote(named)}" if named and named != FILE_NAME else ""
    service = "" if home.name == DEFAULT_SERVICE else f" --service {home.name}"
    again = f"turnout {verb}{' ADDRESS' if verb == 'attach' else ''}{config}{service}"
    if wanted.file:
        here, rename = f"{wanted.file} defines another service of that name", "or rename yours in that file"
        take_over = f"--take-over has {home.name} defined by {wanted.file}"
    else:
        here, rename = "this command was typed without that file", "or start another service: --service NAME"
        take_over = f"--take-over has {home.name} defined by this command"
        again += " -- COMMAND"
    if known.file and not Path(known.file).exists():
        # a directory without a file: the verb takes what the service remembers; a command needs --take-over everywhere
        there = f"cd / && {again} acts on that service; " if wanted.file else ""
        raise UsageError(
            f"service {home.name} is defined in {known.file}, which does not exist any more, and {here}; nothing was"
            " changed",
            hint=f"if it was moved: {take_over}; {there}else {rename}",
        )
    origin = f"is defined in {known.file}" if known.file else f"runs a command that was typed in {known.directory}"
    directory = known.directory if Path(known.directory or "-").is_dir() else "/"
    there = f"cd {shlex.quote(directory)} && {again}"
    raise UsageError(
        f"service {home.name} {origin}, and {here}; nothing was changed",
        hint=f"{there} acts on that service; {rename}; or {take_over}",
    )


def is_same(known: Definition, other: Definition) -> bool:
    """Whether both are one place: the same file by name or by real path, or a file where the command had been typed."""
    if known.file:
        return other.file == known.file or (bool(other.file) and other.real_file == known.real_file)
    if not other.file:
        return True
    return bool(known.directory) and os.path.realpath(known.directory) == os.path.realpath(other.directory)


def is_elsewhere(home: ServiceHome, file: Path) -> bool:
    """Whether a service is known to be defined in another place than the configuration file ``file``."""
    known = definition_of(home)
    return known is not None and not is_same(known, defined_in(file))


def record_definition(home: ServiceHome, wanted: Definition, *, take_over: bool) -> None:
    """Record where the service is defined, if that differs from what is recorded.

    Raises StateUnwritableError: permissions, a full disk.
    """
    known = definition_of(home)
    if known and known.file and known.file != wanted.file and not take_over:
        wanted = known  # the same file by another name: the recorded one may lead through the link that moves
    if known == wanted and home.definition.exists():
        return
    data = json.dumps(msgspec.to_builtins(wanted)).encode() + b"\n"
    write_durably(Files(), home.definition, data, follows_links=False)
