"""Where kernel objects stay while no router lives: a directory of a bpf filesystem, for one service of one home.

The objects are pinned into a directory of a temporary name, which is renamed when it is whole: a router that finds the
directory finds all of it. To remove it needs no right but that of its owner, and ends what is pinned there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from turnout.errors import SteeringError

SYSTEM_BPFFS: Final = Path("/sys/fs/bpf")
OWN_BPFFS: Final = "bpf"  # a home may have one of its own
_MOUNTS: Final = Path("/proc/self/mountinfo")
_OCTAL: Final = re.compile(rb"\\([0-3][0-7]{2})")


def all_bpffs(home: Path, *, mounts: Path = _MOUNTS) -> list[Path]:
    """The bpf filesystems that a home may use: first ``HOME/bpf`` where one is mounted there, then the system's.

    ``mounts``: a file as proc_pid_mountinfo(5) describes it.
    """
    try:
        lines = mounts.read_bytes().splitlines()
    except OSError:
        return []
    # of fields 5 (where) and, behind a lone hyphen, the type; blanks in a path are octal
    there = {
        _OCTAL.sub(lambda found: bytes([int(found[1], 8)]), line.split()[4])
        for line in lines
        if line.partition(b" - ")[2].partition(b" ")[0] == b"bpf"
    }
    return [path for path in (Path(os.path.realpath(home)) / OWN_BPFFS, SYSTEM_BPFFS) if os.fsencode(path) in there]


def _hash(text: str) -> str:
    """A name for any text: a bpf filesystem takes none with a dot in it."""
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]


def home_directory(bpffs: Path, home: Path) -> Path:
    """The directory of all services of a home."""
    return bpffs / f"turnout-{_hash(os.path.realpath(home))}"


class Pins(msgspec.Struct, frozen=True):
    """The pinned objects of one service. Owns its directories.

    Args:
        directory: where they are made.
        others: where an earlier router may have made them, when that was the place for it. What is there goes on
            steering whatever is made here: the kernel runs every program of a network namespace, the oldest first.
    """

    directory: Path
    others: tuple[Path, ...] = ()

    @classmethod
    def of(cls, bpffs: Path, home: Path, service: str) -> Pins:
        return cls(home_directory(bpffs, home) / _hash(service))

    def exist(self) -> bool:
        """Whether something was pinned and not removed."""
        return any(map(_is_there, (self.directory, *self.others)))

    def open(self, names: Sequence[str], get: Callable[[str], int]) -> dict[str, int]:
        """Descriptors of all these objects, the caller's to close; of those elsewhere, only if there are none here.

        What is not used is removed. ``get`` opens the object at a path.

        Raises:
            OSError: one of them cannot be had; then none is open.
        """
        places = (self.directory, *self.others)
        used = next(filter(_is_there, places), self.directory)
        is_ours(used)
        found: dict[str, int] = {}
        try:
            for name in names:
                found[name] = get(str(used / name))
            _remove(place for place in places if place != used)
        except OSError:
            for fd in found.values():
                os.close(fd)
            raise
        return found

    def make(self, objects: Mapping[str, int], pin: Callable[[int, str], None]) -> None:
        """Pin all these objects, or none; what was pinned before is removed first.

        Raises:
            OSError: not to be had here.
            SteeringError: another user's directory is in the way.
        """
        self.remove()
        parent = self.directory.parent
        with contextlib.suppress(FileExistsError):
            parent.mkdir(mode=0o700)
        is_ours(parent)
        fresh = unfinished(self.directory)
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
        _remove((self.directory, *self.others))


def pins_of(home: Path, service: str, *, mounts: Path = _MOUNTS) -> Pins | None:
    """The pins of one service; None where there is no bpf filesystem. ``mounts``: as for :func:`all_bpffs`."""
    places = [Pins.of(bpffs, home, service).directory for bpffs in all_bpffs(home, mounts=mounts)]
    return Pins(places[0], tuple(places[1:])) if places else None


def unfinished(directory: Path) -> Path:
    """Where a directory's pins are made, until they are whole."""
    return directory.with_name(f"{directory.name}-new")


def _remove(directories: Iterable[Path]) -> None:
    """Remove what is pinned in each of these, and what was to be. Raises OSError: no right to."""
    for directory in directories:
        for left in (directory, unfinished(directory)):
            if _is_there(left):
                with contextlib.suppress(FileNotFoundError):
                    shutil.rmtree(left)
        with contextlib.suppress(OSError):  # other services have theirs in it
            directory.parent.rmdir()


def _is_there(directory: Path) -> bool:
    """Whether the directory is there, and this user's.

    systemd mounts the system's for root alone: a user that may not look into it has pinned nothing there. Where every
    user may write, a directory of that name that another one made is in the way of nothing but pins.
    """
    try:
        found = directory.lstat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()


def is_ours(directory: Path) -> None:
    """Every user may make a directory in a bpf filesystem, as in /tmp: what is in another's is not to be trusted.

    Raises:
        SteeringError: it is another's, or others may write to it.
        OSError: there is none.
    """
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise SteeringError(f"{directory} is not a directory of our own with mode 0700", hint="remove it")
