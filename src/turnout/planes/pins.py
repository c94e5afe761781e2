"""Where kernel objects stay while no router lives: a directory of a bpf filesystem, for one service of one home.

The objects are pinned into a directory of a temporary name, which is renamed when it is whole: whoever finds the
directory finds all of it. To remove it needs no right but that of its owner, and ends what is pinned there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from turnout.errors import SteeringError

SYSTEM_BPFFS: Final = Path("/sys/fs/bpf")
OWN_BPFFS: Final = "bpf"  # a home may have one of its own
_MOUNTS: Final = Path("/proc/self/mountinfo")
_OCTAL: Final = re.compile(rb"\\([0-3][0-7]{2})")


def bpffs_of(home: Path, *, mounts: Path = _MOUNTS) -> Path | None:
    """The bpf filesystem that a home uses: ``HOME/bpf`` where one is mounted there, else the system's; None: neither.

    Args:
        home: the state directory.
        mounts: what proc_pid_mountinfo(5) describes.
    """
    try:
        lines = mounts.read_bytes().splitlines()
    except OSError:
        return None
    # of fields 5 (where) and, behind a lone hyphen, the type; blanks in a path are octal
    there = {
        _OCTAL.sub(lambda found: bytes([int(found[1], 8)]), line.split()[4])
        for line in lines
        if line.partition(b" - ")[2].partition(b" ")[0] == b"bpf"
    }
    return next((path for path in (home.resolve() / OWN_BPFFS, SYSTEM_BPFFS) if os.fsencode(path) in there), None)


def _hash(text: str) -> str:
    """A name for anything: a bpf filesystem takes none with a dot in it."""
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]


def home_directory(bpffs: Path, home: Path) -> Path:
    """The directory of all services of a home."""
    return bpffs / f"turnout-{_hash(str(home.resolve()))}"


@dataclass(frozen=True, slots=True)
class Pins:
    """The pinned objects of one service. Owns its directory.

    Args:
        directory: that.
    """

    directory: Path

    @classmethod
    def of(cls, bpffs: Path, home: Path, service: str) -> Pins:
        return cls(home_directory(bpffs, home) / _hash(service))

    @property
    def unfinished(self) -> Path:
        """Where they are made, until they are whole; one that died in the middle of it leaves that."""
        return self.directory.with_name(f"{self.directory.name}-new")

    def exist(self) -> bool:
        """Whether something was pinned and not removed."""
        return _is_there(self.directory)

    def open(self, names: Sequence[str], get: Callable[[str], int]) -> dict[str, int]:
        """Descriptors of all these objects, the caller's to close.

        Args:
            names: which.
            get: opens the one at a path.

        Raises:
            OSError: one of them cannot be had; then none is open.
        """
        is_ours(self.directory)
        found: dict[str, int] = {}
        try:
            for name in names:
                found[name] = get(str(self.directory / name))
        except OSError:
            for fd in found.values():
                os.close(fd)
            raise
        return found

    def make(self, objects: Mapping[str, int], pin: Callable[[int, str], None]) -> None:
        """Pin all these objects, or none; what was pinned before is removed first.

        Raises:
            OSError: not to be had here.
            SteeringError: somebody else's directory is in the way.
        """
        self.remove()
        parent = self.directory.parent
        with contextlib.suppress(FileExistsError):
            parent.mkdir(mode=0o700)
        is_ours(parent)
        fresh = self.unfinished
        shutil.rmtree(fresh, ignore_errors=True)  # of one that died in the middle of this
        fresh.mkdir(mode=0o700)
        try:
            for name, fd in objects.items():
                pin(fd, str(fresh / name))
            fresh.rename(self.directory)
        except OSError:
            shutil.rmtree(fresh, ignore_errors=True)
            raise

    def remove(self) -> None:
        """Remove what is pinned; that alone ends what a dead router still steered. Raises OSError: no right to."""
        for left in (self.directory, self.unfinished):
            if _is_there(left):
                with contextlib.suppress(FileNotFoundError):
                    shutil.rmtree(left)
        with contextlib.suppress(OSError):  # other services have theirs in it
            self.directory.parent.rmdir()


def pins_of(home: Path, service: str) -> Pins | None:
    """The pins of one service; None where there is no bpf filesystem."""
    bpffs = bpffs_of(home)
    return Pins.of(bpffs, home, service) if bpffs else None


def _is_there(directory: Path) -> bool:
    """Whether it is. systemd mounts the system's for root alone: who may not look into it has pinned nothing there."""
    try:
        return directory.is_dir()
    except PermissionError:
        return False


def is_ours(directory: Path) -> None:
    """Everybody may make a directory in a bpf filesystem, as in /tmp: what is in another's is not to be trusted.

    Raises:
        SteeringError: it is another's, or others may write to it.
        OSError: there is none.
    """
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise SteeringError(f"{directory} is not a directory of our own with mode 0700", hint="remove it")
