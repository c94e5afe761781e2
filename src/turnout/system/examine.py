"""Looking at a registry without touching anything: what a person should know of the file before trusting it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from turnout.core.codec import Finding, NotARegistry, loads
from turnout.core.merge import merge
from turnout.core.model import Snapshot
from turnout.errors import RegistryUnsupportedError
from turnout.system.commit import good_copy
from turnout.system.files import Files, unwritable


@dataclass(frozen=True, slots=True)
class Examined:
    """What was found.

    Args:
        path: the file.
        exists: it is there.
        damaged: why it is no registry; empty where it is one.
        findings: what had to be dropped or mended to understand it, and what it lacks of the deployment.
        good_revision: that of the last good copy; None where there is none that can be read.
        aside: names of ``FILE.damaged-…`` and ``FILE.displaced-…`` beside it, oldest first.
    """

    path: Path
    exists: bool
    damaged: str
    findings: tuple[Finding, ...]
    good_revision: int | None
    aside: tuple[str, ...]

    @property
    def sound(self) -> bool:
        return self.exists and not self.damaged and not self.findings


def examine(path: Path) -> Examined:
    """Read ``path`` and its last good copy.

    Raises:
        RegistryUnsupportedError: a higher major version wrote it.
        StateUnwritableError: it cannot be read: permissions, a directory, over 64 MiB, an I/O error.
    """
    target = Path(os.path.realpath(path))
    good = _good(target)
    exists, damaged = True, ""
    findings: tuple[Finding, ...] = ()
    try:
        decoded = loads(Files().read(target)[0])
        findings = decoded.report
        if good is not None:
            _, notes = merge(good, decoded.snapshot)
            findings += tuple(Finding("deployment", note) for note in notes)
    except FileNotFoundError:
        exists = False
    except OSError as error:
        raise unwritable("read", path, error) from error
    except NotARegistry as error:
        damaged = str(error)
    revision = good.deployment.revision if good is not None else None
    return Examined(path, exists, damaged, findings, revision, _aside(target))


def _good(target: Path) -> Snapshot | None:
    try:
        return loads(Files().read(good_copy(target))[0]).snapshot
    except (OSError, NotARegistry, RegistryUnsupportedError):
        return None


def _aside(target: Path) -> tuple[str, ...]:
    prefixes = (f"{target.name}.damaged-", f"{target.name}.displaced-")
    try:
        return tuple(sorted(entry.name for entry in target.parent.iterdir() if entry.name.startswith(prefixes)))
    except OSError:
        return ()
