"""Identifies the home that a process belongs to. Standard library only: the keeper imports this.

A home can be copied (cp -a, a backup that is restored, a snapshot that is mounted elsewhere). Records, registry and
lock files of the copy name processes of the original, which live. What proves that a process belongs to this home:

- Its record carries device and inode of the home directory, as the process that wrote it saw them. A copy and a
  restored backup are other directories, so they have another inode; ``mv`` within a file system keeps both, and so does
  a bind mount. The number cannot be reused while the process lives: its log is open, and that keeps every directory
  above it. An id in a file of the home would prove less, since it is copied with the rest.
- A record of 0.1.0 carries neither. It belongs to this home if the log that it names lies here. Elsewhere (the home was
  moved or copied) the kernel proves its process: the router's working directory is the home, the daemon writes to a log
  of this home, or it is a child of the process that holds this home's keeper lock.
- A lock is held by the kernel, for one file of one device; what is written in it proves nothing.
- A request over the control sockets names the home; a keeper or a router of another home refuses it.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

_PROC: Final = Path("/proc")


@dataclass(frozen=True, slots=True)
class HomeIdentity:
    """A home directory, as stat(2) tells it from every other; device and inode."""

    device: int
    inode: int

    @classmethod
    def of(cls, root: Path) -> Self | None:
        """That of the home at ``root``; None where the directory is missing or cannot be looked at."""
        try:
            state = root.stat()
        except OSError:
            return None
        return cls(state.st_dev, state.st_ino)

    @classmethod
    def loads(cls, payload: object) -> Self | None:
        """From what :meth:`dumps` made; None where it is anything else."""
        match payload:
            case [int(device), int(inode)]:
                return cls(device, inode)
            case _:
                return None

    def dumps(self) -> list[int]:
        return [self.device, self.inode]


def home_of_records(directory: Path) -> Path:
    """The home whose records lie in ``directory``: HOME/services/NAME/daemons, or HOME itself for the routers'."""
    return directory.parents[2] if directory.name == "daemons" and len(directory.parents) > 2 else directory


def runs_for(pid: int, home: Path, log: Path, *, keeper_pid: int | None, proc: Path = _PROC) -> bool:
    """Whether the kernel shows that a living process belongs to a home: for a record that does not say.

    Args:
        pid: the process, which is known to be the one that is meant.
        home: the home directory.
        log: its log, as this home has it.
        keeper_pid: the process that holds the home's keeper lock; None where none does.
        proc: where proc(5) is mounted.
    """
    process = proc / str(pid)
    if _same(process / "cwd", home) or any(_same(process / "fd" / number, log) for number in ("1", "2")):
        return True
    with suppress(OSError, IndexError, ValueError):
        # proc_pid_stat(5): behind the name in parentheses come the state and the parent
        parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
        return keeper_pid is not None and parent == keeper_pid
    return False


def _same(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except OSError:
        return False
