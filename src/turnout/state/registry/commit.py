"""Puts a registry's new content in place so that a writer without the lock is noticed, and a crash harms nothing.

    FILE.good.new, synced ─ temp, synced ─ exchange temp and FILE ─ FILE.good.new becomes FILE.good ─ sync the directory

At each moment FILE is the old or the new content, whole, and the newest content is on the disk twice. What the exchange
displaced is what another program wrote last: if that is not what was read, it has to be merged.
"""

from __future__ import annotations

import errno
import stat
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from turnout.system.files import PRIVATE, Files, drop, temp_beside, undone_on_error, write_new

KEPT_DAMAGED: Final = 5
_CANNOT_LINK: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


def good_copy(target: Path) -> Path:
    return target.with_name(f"{target.name}.good")


def next_good_copy(target: Path) -> Path:
    """The content that is about to be put in place; it stays behind only where a writer died."""
    return target.with_name(f"{target.name}.good.new")


class Placed(msgspec.Struct, frozen=True):
    """FILE has the new content. ``displaced`` is a file with what stood there if that was not what was expected.

    The caller owns the displaced file.
    """

    displaced: Path | None = None
    durable: bool = True


def place(files: Files, target: Path, data: bytes, before: bytes | None) -> Placed | None:
    """Put ``data`` in place of ``before`` (None: no file); for the holder of the lock.

    Returns:
        None where something else turned out to stand there and nothing was changed.

    Raises:
        OSError: as the system gave it; nothing was changed.
    """
    upcoming = next_good_copy(target)
    mode = _mode_of(files, target)
    temp = temp_beside(target)

    def undo() -> None:
        drop(files, temp)
        drop(files, upcoming)

    with undone_on_error(undo):
        files.unlink(upcoming)
        write_new(files, upcoming, data, like=target, mode=mode)
        write_new(files, temp, data, like=target, mode=mode)
        in_place, left_over = _swap(files, temp, target, before)
    if not in_place:
        undo()
        return None
    displaced = temp if left_over and not _holds(files, temp, before) else None
    if displaced is None:
        drop(files, temp)
    return Placed(displaced, durable=_promote(files, target))


def _swap(files: Files, temp: Path, target: Path, before: bytes | None) -> tuple[bool, bool]:
    """Whether the content is in place, and whether ``temp`` now is what stood there."""
    if before is None:
        try:
            files.link(temp, target)  # unlike a rename it never hides a file that has just come
        except FileExistsError:
            return False, False
        except OSError as error:
            if error.errno not in _CANNOT_LINK:
                raise
            files.rename(temp, target)
        return True, False
    try:
        if files.exchange(temp, target):
            return True, True
        if files.read(target)[0] != before:
            return False, False
    except FileNotFoundError:
        return False, False
    files.rename(temp, target)  # where the system cannot exchange, a writer in just this moment is overwritten
    return True, False


def _holds(files: Files, path: Path, data: bytes | None) -> bool:
    try:
        return files.read(path)[0] == data
    except OSError:
        return True  # what cannot be read cannot be merged either


def _promote(files: Files, target: Path) -> bool:
    try:
        files.rename(next_good_copy(target), good_copy(target))
        files.fsync_dir(target.parent)
    except OSError:
        return False
    return True


def keep_good(files: Files, target: Path, data: bytes) -> None:
    """Make ``data``, which stands in FILE already, the last good copy; for the holder of the lock.

    Raises OSError: as the system gave it; the copy is as it was.
    """
    upcoming = next_good_copy(target)
    files.unlink(upcoming)
    write_new(files, upcoming, data, like=target, mode=_mode_of(files, target))
    files.rename(upcoming, good_copy(target))
    files.fsync_dir(target.parent)


def _mode_of(files: Files, target: Path) -> int:
    """A file that others may read stays so."""
    try:
        return stat.S_IMODE(files.stat(target).st_mode) & 0o777
    except OSError:
        return PRIVATE


def keep_aside(files: Files, target: Path, data: bytes) -> Path:
    """Copy unusable content to ``FILE.damaged-TIME``, unless the newest copy is the same, and drop the oldest ones.

    Raises OSError: it could not be copied.
    """
    prefix = f"{target.name}.damaged-"
    kept = sorted(path for path in target.parent.iterdir() if path.name.startswith(prefix))
    with suppress(OSError):
        if kept and files.read(kept[-1])[0] == data:
            return kept[-1]
    aside = target.with_name(prefix + stamp())
    write_new(files, aside, data, like=target)
    for old in kept[: max(0, len(kept) + 1 - KEPT_DAMAGED)]:
        drop(files, old)
    return aside


def stamp() -> str:
    """The time, for a file's name: sorts as it goes by."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
