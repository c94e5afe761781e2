"""Looking at a registry without touching anything: what a person should know of the file before trusting it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

import msgspec

from turnout.core.model import Snapshot
from turnout.errors import RegistryUnsupportedError
from turnout.state.registry.commit import good_copy
from turnout.state.registry.decoder import NotARegistry, Repair, loads
from turnout.state.registry.merge import merge
from turnout.system.files import Files, unwritable

_TRIES: Final = 5
_AGAIN_S: Final = 0.05


class Examined(msgspec.Struct, frozen=True):
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
    findings: tuple[Repair, ...]
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
    found = _look(path, target)
    for _ in range(_TRIES - 1):
        if not found.findings:
            break
        time.sleep(_AGAIN_S)  # a writer may be between the file and its good copy
        found = _look(path, target)
    return found


def _look(path: Path, target: Path) -> Examined:
    good = read_or_none(good_copy(target))
    exists, damaged = True, ""
    findings: tuple[Repair, ...] = ()
    try:
        decoded = loads(Files().read(target)[0])
        findings = decoded.report
        if good is not None:
            _, notes = merge(good, decoded.snapshot)
            findings += tuple(Repair("deployment", note) for note in notes)
    except FileNotFoundError:
        exists = False
    except OSError as error:
        raise unwritable("read", path, error) from error
    except NotARegistry as error:
        damaged = str(error)
    revision = good.deployment.revision if good is not None else None
    return Examined(path, exists, damaged, findings, revision, _aside(target))


def read_or_none(path: Path) -> Snapshot | None:
    """What one file says, without its last good copy; None where it cannot be read."""
    try:
        return loads(Files().read(path)[0]).snapshot
    except (OSError, NotARegistry, RegistryUnsupportedError):
        return None


def _aside(target: Path) -> tuple[str, ...]:
    prefixes = (f"{target.name}.damaged-", f"{target.name}.displaced-")
    try:
        return tuple(sorted(entry.name for entry in target.parent.iterdir() if entry.name.startswith(prefixes)))
    except OSError:
        return ()
