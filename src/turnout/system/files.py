"""The calls that a durable write makes, behind one seam, so that a test can fail or crash at each of them.

Standard library only: everything that writes state uses it, whatever else it may import.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

from turnout.errors import StateUnwritableError

READ_LIMIT_BYTES: Final = 64 << 20
PRIVATE: Final = 0o600
_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2  # linux/fs.h
_READ_TRIES: Final = 8
_HINTS: Final = {
    errno.ENOSPC: "free some space on that disk",
    errno.EDQUOT: "your disk quota is used up",
    errno.EACCES: "check the permissions and the owner of the file and of its directory",
    errno.EPERM: "check the permissions and the owner of the file and of its directory",
    errno.EROFS: "the file system is read-only; set TURNOUT_HOME to a directory that you may write",
    errno.EIO: "the disk reports errors; see dmesg",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "the machine has no file descriptors left",
}


class Files:
    """The operating system's file calls, as they are. A descriptor that ``create`` returns belongs to the caller."""

    def create(self, path: Path, mode: int) -> int:
        """Open a new file for writing; open(2): O_EXCL never follows a link and never takes a file that is there."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)

    def write(self, fd: int, data: memoryview) -> int:
        return os.write(fd, data)

    def fsync(self, fd: int) -> None:
        os.fsync(fd)

    def close(self, fd: int) -> None:
        os.close(fd)

    def rename(self, source: Path, target: Path) -> None:
        source.replace(target)

    def link(self, source: Path, target: Path) -> None:
        """Give a file a second name; fails where ``target`` is there."""
        os.link(source, target, follow_symlinks=False)

    def exchange(self, one: Path, other: Path) -> bool:
        """Swap two names in one step (renameat2(2), RENAME_EXCHANGE, Linux 3.15).

        Returns:
            False where the system or the file system cannot; then nothing was done.
        """
        try:
            renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
        except (OSError, AttributeError):
            return False
        if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
            return True
        code = ctypes.get_errno()
        if code in {errno.ENOSYS, errno.EINVAL}:
            return False
        raise OSError(code, os.strerror(code), str(one), None, str(other))

    def unlink(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def fsync_dir(self, directory: Path) -> None:
        """Make the names in a directory durable; fsync(2): syncing a file does not sync its entry."""
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def stat(self, path: Path) -> os.stat_result:
        return path.stat()

    def read(self, path: Path, limit_bytes: int = READ_LIMIT_BYTES) -> tuple[bytes, os.stat_result]:
        """The whole of a regular file and its state, taken again while somebody writes in it.

        Raises:
            OSError: as open(2); also EISDIR, EINVAL for what is no regular file, EFBIG beyond ``limit_bytes``.
        """
        # open(2): O_NONBLOCK, for a FIFO would wait for a writer for ever
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            before = os.fstat(fd)
            tries = _READ_TRIES
            while True:
                _check_readable(path, before, limit_bytes)
                os.lseek(fd, 0, os.SEEK_SET)
                data = _read_all(fd, before.st_size, limit_bytes)
                after = os.fstat(fd)
                tries -= 1
                if tries == 0 or (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, len(data)):
                    return data, after
                before = after
        finally:
            os.close(fd)


def _check_readable(path: Path, state: os.stat_result, limit_bytes: int) -> None:
    if stat.S_ISDIR(state.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(state.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    if state.st_size > limit_bytes:
        raise OSError(errno.EFBIG, f"{state.st_size >> 20} MiB, at most {limit_bytes >> 20} are read", str(path))


def _read_all(fd: int, size_bytes: int, limit_bytes: int) -> bytes:
    parts: list[bytes] = []
    left = limit_bytes
    while left > 0 and (part := os.read(fd, min(left, max(size_bytes + 1, 65536)))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def unwritable(doing: str, path: Path, error: OSError) -> StateUnwritableError:
    """The error to raise for an OSError: what was tried, where, why, and what to do about it.

    Args:
        doing: a verb in the infinitive: "write", "read", "lock".
        path: where.
        error: what the system said.
    """
    why = error.strerror or type(error).__name__
    return StateUnwritableError(f"cannot {doing} {path}: {why}", hint=_HINTS.get(error.errno or 0))


def temp_beside(target: Path) -> Path:
    """A name that nobody has, in the same directory and so on the same file system; see :func:`sweep`."""
    return target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def write_new(files: Files, path: Path, data: bytes, *, like: Path, mode: int = PRIVATE) -> None:
    """Write ``data`` to the new, synced file ``path``; a failed one is removed.

    Where ``like`` exists its owner is taken over as far as that is allowed: root that acts on a user's registry must
    not lock that user out.

    Raises:
        OSError: as the system gave it.
    """
    fd = files.create(path, PRIVATE)
    try:
        try:
            rest = memoryview(data)
            while rest:
                written = files.write(fd, rest)  # write(2) may write less than it was given
                if written <= 0:
                    raise OSError(errno.EIO, "a write of nothing", str(path))
                rest = rest[written:]
            _take_after(files, like, fd, mode)
            files.fsync(fd)
        finally:
            files.close(fd)
    except BaseException:
        drop(files, path)
        raise


def _take_after(files: Files, like: Path, fd: int, mode: int) -> None:
    with suppress(OSError):  # the content matters, its mode is a courtesy
        if mode != PRIVATE:
            os.fchmod(fd, mode)
        if os.geteuid() == 0:
            owner = files.stat(like)
            os.fchown(fd, owner.st_uid, owner.st_gid)


def write_durably(files: Files, path: Path, data: bytes, mode: int = PRIVATE) -> None:
    """Replace a file's content so that after a crash at any moment it is the old or the new one, whole.

    A link stays a link: what it points at is replaced.

    Raises:
        StateUnwritableError: permissions, a full disk, an I/O error; the file is as it was, and no temporary is left.
    """
    target = Path(os.path.realpath(path))
    try:
        temp = temp_beside(target)
        write_new(files, temp, data, like=target, mode=mode)
        try:
            files.rename(temp, target)
        except BaseException:
            drop(files, temp)
            raise
        files.fsync_dir(target.parent)
    except OSError as error:
        raise unwritable("write", path, error) from error


def drop(files: Files, path: Path) -> None:
    """Remove a file that nobody needs; that it cannot be removed does no harm."""
    with suppress(OSError):
        files.unlink(path)


def sweep(files: Files, target: Path) -> None:
    """Remove temporaries of ``target`` that crashed writers left; only for whoever holds its lock."""
    ours = re.compile(rf"\.{re.escape(target.name)}\.\d+-[0-9a-f]{{8}}\.tmp")
    with suppress(OSError):
        for path in target.parent.iterdir():
            if ours.fullmatch(path.name):
                drop(files, path)
