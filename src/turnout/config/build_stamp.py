"""What makes a build this one and no other, beside what stands in the configuration.

That is its version, told by a command, and the contents of the files that it is made of. The router looks at the same
things by their time stamps, which costs next to nothing, to notice that there may be a new build.
"""

from __future__ import annotations

import hashlib
import io
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from turnout.config.settings import ServiceRequest, Settings
from turnout.errors import ConfigError
from turnout.system.command import clean_environment
from turnout.system.files import open_regular
from turnout.system.run_command import run_bounded

VERSION_TIMEOUT_S: Final = 10.0
_VERSION_CHARS: Final = 100


def is_version_pending(wanted: ServiceRequest) -> bool:
    """Whether the version of the build is not known before ``version_command`` was run."""
    return bool(wanted.settings.version_command and not wanted.version and wanted.command)


def stamped(wanted: ServiceRequest, environ: Mapping[str, str] | None = None, *, run: bool) -> ServiceRequest:
    """The same with the version that its command prints, and with the hash of its watched files.

    ``environ``: the environment of ``version_command``; None: this process's. ``run``: whether it may be run. A dry run
    runs nothing that the configuration names: the directory may be another user's. The version is left empty then
    (:func:`is_version_pending`).

    Raises:
        ConfigError: the command failed or printed nothing; a watched file cannot be read.
    """
    settings = wanted.settings
    version = wanted.version
    if run and is_version_pending(wanted):
        version = told_version(settings, environ)
    watched = contents(settings.watch) if settings.watch and wanted.command else ""
    return msgspec.structs.replace(wanted, version=version, watched=watched)


def told_version(settings: Settings, environ: Mapping[str, str] | None = None) -> str:
    """The first line that ``version_command`` says; ten seconds at most.

    ``environ``: its environment; None: this process's.

    Raises:
        ConfigError: it cannot be run, fails, is too slow, or says nothing.
    """
    argv = settings.version_command
    deadline = time.monotonic() + VERSION_TIMEOUT_S
    env = clean_environment(os.environ if environ is None else environ, {}, port=None)
    try:
        ran = run_bounded(argv, env=env, cwd=settings.cwd, deadline=deadline, errors_too=False)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"version_command: cannot run {argv[0]}: {why}", hint="check version_command") from error
    if ran.code is None:
        raise ConfigError(f"version_command: {argv[0]} took longer than {VERSION_TIMEOUT_S:g} s", hint="make it quick")
    if ran.code:
        raise ConfigError(f"version_command: {argv[0]} ended with exit code {ran.code}", hint="check version_command")
    version = next((line.strip() for line in ran.output.splitlines() if line.strip()), "")
    if not version or len(version) > _VERSION_CHARS:
        raise ConfigError(
            f"version_command: {argv[0]} said {version[:_VERSION_CHARS]!r}", hint="its first line is the version"
        )
    return version


def contents(paths: tuple[str, ...]) -> str:
    """One hash over the contents of files. Raises ConfigError: a file cannot be read."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            with io.FileIO(open_regular(Path(path))) as file:
                part = hashlib.file_digest(file, "sha256").digest()
        except OSError as error:
            raise ConfigError(f"watch: cannot read {path}: {error.strerror}", hint="check watch") from error
        digest.update(path.encode(errors="surrogateescape") + b"\0" + part)
    return digest.hexdigest()[:16]


def trace(settings: Settings) -> str | None:
    """What the configuration file and the watched files look like from outside; None while one of them is missing.

    One that is missing is being replaced at this moment, more often than not.
    """
    seen: list[str] = []
    for path in (settings.source, *settings.watch):
        try:
            state = Path(path).stat()
        except OSError:
            return None
        seen.append(f"{state.st_ino} {state.st_size} {state.st_mtime_ns} {state.st_ctime_ns}")
    return "\n".join(seen)
