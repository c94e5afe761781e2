"""The calls that a durable write makes, behind one seam, so that a test can fail or crash at each of them.

Standard library only: everything that writes state uses it, whatever else it may import.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import stat
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from functools import partial
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
    errno.ELOOP: "look at the file that the link leads to, then remove the link",
    errno.EMLINK: "look for its other names: find DIRECTORY -samefile FILE; remove this name",
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

    def exchange(self, source: Path, target: Path) -> bool:
        """Swap two names in one step (renameat2(2), RENAME_EXCHANGE, Linux 3.15).

        Returns:
            False where the system or the file system cannot; then nothing was done.
        """
        try:
            renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
        except (OSError, AttributeError):
            return False
        if renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_EXCHANGE) == 0:
            return True
        code = ctypes.get_errno()
        if code in {errno.ENOSYS, errno.EINVAL}:
            return False
        raise OSError(code, os.strerror(code), str(source), None, str(target))

    def unlink(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def fsync_dir(self, directory: Path) -> None:
        """Make the names in a directory durable; fsync(2): syncing a file does not sync its entry."""
        with opened(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
            os.fsync(fd)

    def stat(self, path: Path) -> os.stat_result:
        return path.stat()

    def read(self, path: Path, limit_bytes: int = READ_LIMIT_BYTES) -> tuple[bytes, os.stat_result]:
        """The whole of a regular file and its state, read again while another process writes in it.

        Raises OSError: as open(2); also EISDIR, EINVAL for what is no regular file, EFBIG beyond ``limit_bytes``.
        """
        with opened(open_regular(path)) as fd:
            before = os.fstat(fd)
            tries = _READ_TRIES
            while True:
                if before.st_size > limit_bytes:
                    size = f"{before.st_size >> 20} MiB, at most {limit_bytes >> 20} are read"
                    raise OSError(errno.EFBIG, size, str(path))
                os.lseek(fd, 0, os.SEEK_SET)
                data = _read_all(fd, before.st_size, limit_bytes)
                after = os.fstat(fd)
                tries -= 1
                if tries == 0 or (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, len(data)):
                    return data, after
                before = after


@contextmanager
def opened(fd: int) -> Generator[int]:
    """Close a descriptor at the end of a with block."""
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def undone_on_error(undo: Callable[[], object]) -> Generator[None]:
    """Undo what came before the with block if that raises: close a descriptor, remove a file."""
    try:
        yield
    except BaseException:
        undo()
        raise


def open_private(path: Path, flags: int, *, like: Path | None = None, any_owner: bool = False) -> int:
    """Open a file of a home for writing, and prove that the name leads to a file of the home; create it with mode 0600.

    A symbolic link is not followed, a FIFO is not waited for, and nothing is truncated before the proof: the name may
    have been planted, and what it leads to may be another user's file. Truncate the descriptor afterwards.

    Args:
        path: the file.
        flags: of open(2), without O_TRUNC; O_CLOEXEC, O_NOFOLLOW and O_NONBLOCK are added.
        like: root gives a new file the owner of this path, where it exists, instead of that of the directory.
        any_owner: the file may belong to any user: a lock beside a registry that several users share.

    Returns:
        The descriptor, which belongs to the caller.

    Raises:
        OSError: as open(2); also ELOOP for a symbolic link, EINVAL for what is no regular file, EMLINK for a file with
            other names (hard links), EPERM for a file of another user. ``strerror`` says which.
    """
    try:
        fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, PRIVATE)
    except OSError as error:
        if error.errno == errno.ELOOP and path.is_symlink():
            raise OSError(errno.ELOOP, "it is a symbolic link", str(path)) from error
        if error.errno == errno.ENXIO:  # open(2): a FIFO without a reader
            raise OSError(errno.EINVAL, "not a regular file", str(path)) from error
        raise
    with undone_on_error(partial(os.close, fd)):
        state, directory = os.fstat(fd), path.parent.stat()
        if not stat.S_ISREG(state.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if state.st_nlink > 1:
            raise OSError(errno.EMLINK, f"the file has {state.st_nlink} names (hard links)", str(path))
        if not any_owner and state.st_uid not in {os.geteuid(), directory.st_uid}:
            raise OSError(errno.EPERM, f"the file belongs to uid {state.st_uid}", str(path))
        if flags & os.O_CREAT and os.geteuid() == 0 and not state.st_size:
            _give_to_owner(fd, state, directory if like is None else like.stat() if like.exists() else state)
        os.set_blocking(fd, True)  # a daemon gets it as its standard output
    return fd


def open_regular(path: Path) -> int:
    """Open a regular file for reading; never waits for a writer of a FIFO. The descriptor is the caller's.

    Raises OSError: as open(2); also EISDIR, EINVAL for what is no regular file.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    with undone_on_error(partial(os.close, fd)):
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
    return fd


def _give_to_owner(fd: int, state: os.stat_result, owner: os.stat_result) -> None:
    """What root creates in another user's directory must not lock that user out."""
    if state.st_uid == 0 and owner.st_uid != 0:
        with suppress(OSError):  # a file system without owners
            os.fchown(fd, owner.st_uid, owner.st_gid)


def read_part(fd: int, offset: int, size_bytes: int) -> bytes:
    """At most so many bytes of an open file from there on; less where it ends before."""
    parts: list[bytes] = []
    while size_bytes > 0 and (part := os.pread(fd, size_bytes, offset)):
        parts.append(part)
        offset += len(part)
        size_bytes -= len(part)
    return b"".join(parts)


def _read_all(fd: int, size_bytes: int, limit_bytes: int) -> bytes:
    parts: list[bytes] = []
    left = limit_bytes
    while left > 0 and (part := os.read(fd, min(left, max(size_bytes + 1, 65536)))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def unwritable(doing: str, path: Path, error: OSError) -> StateUnwritableError:
    """The error to raise for an OSError; ``doing``: what was tried, in the infinitive ("write", "read", "lock")."""
    why = error.strerror or type(error).__name__
    return StateUnwritableError(f"cannot {doing} {path}: {why}", hint=_HINTS.get(error.errno or 0))


@contextmanager
def or_unwritable(doing: str, path: Path) -> Generator[None]:
    """Raise an OSError of a with block as :func:`unwritable` words it."""
    try:
        yield
    except OSError as error:
        raise unwritable(doing, path, error) from error


def name_of(path: Path) -> tuple[int, int] | None:
    """Device and inode of a name now (of a link itself); None: there is no such file, or it cannot be seen."""
    try:
        state = path.lstat()
    except OSError:
        return None
    return state.st_dev, state.st_ino


def temp_beside(target: Path) -> Path:
    """An unused name in the same directory, and so on the same file system; see :func:`sweep`."""
    return target.with_name(f".{target.name}.{os.getpid()}-{os.urandom(4).hex()}.tmp")


def write_new(files: Files, path: Path, data: bytes, *, like: Path, mode: int = PRIVATE) -> None:
    """Write ``data`` to the new, synced file ``path``; a failed one is removed.

    The owner of ``like``, or of its directory where it does not exist, is taken over as far as that is allowed: root
    that acts on a user's registry must not lock that user out.

    Raises:
        OSError: as the system gave it.
    """
    fd = files.create(path, PRIVATE)
    with undone_on_error(partial(drop, files, path)):
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


def write_missing(files: Files, path: Path, data: bytes, *, written_ns: int) -> None:
    """Write a file that was removed, with the time stamp that it had; a file that is there by now is left alone.

    Raises OSError: as the system gave it; link(2) is not to be had on every file system.
    """
    temp = temp_beside(path)
    write_new(files, temp, data, like=path)
    try:
        os.utime(temp, ns=(written_ns, written_ns))
        with suppress(FileExistsError):
            path.hardlink_to(temp)  # in one step, and never over another file
    finally:
        drop(files, temp)


def _take_after(files: Files, like: Path, fd: int, mode: int) -> None:
    with suppress(OSError):  # the content matters, its mode is a courtesy
        if mode != PRIVATE:
            os.fchmod(fd, mode)
        if os.geteuid() == 0:
            try:
                owner = files.stat(like)
            except FileNotFoundError:
                owner = like.parent.stat()
            os.fchown(fd, owner.st_uid, owner.st_gid)


def write_durably(files: Files, path: Path, data: bytes, mode: int = PRIVATE, *, follows_links: bool = True) -> None:
    """Replace a file's content so that after a crash at any moment it is the old or the new one, whole.

    Args:
        files: the calls to the system.
        path: the file.
        data: its new content.
        mode: of the new file.
        follows_links: a link stays a link, and what it points at is replaced. False, for the files of a home: the link
            itself is replaced.

    Raises:
        StateUnwritableError: permissions, a full disk, an I/O error; the file is as it was, and no temporary is left.
    """
    target = Path(os.path.realpath(path)) if follows_links else path
    with or_unwritable("write", path):
        temp = temp_beside(target)
        write_new(files, temp, data, like=target, mode=mode)
        with undone_on_error(partial(drop, files, temp)):
            files.rename(temp, target)
        files.fsync_dir(target.parent)


def drop(files: Files, path: Path) -> None:
    """Remove a file that is not needed any more; that it cannot be removed does no harm."""
    with suppress(OSError):
        files.unlink(path)


def remove(path: Path) -> None:
    """As :func:`drop`: a directory that is read-only, full or gone is no reason to end a keeper or a router."""
    drop(Files(), path)


def sweep(files: Files, target: Path) -> None:
    """Remove temporaries of ``target`` that crashed writers left; only for the holder of its lock."""
    ours = re.compile(rf"\.{re.escape(target.name)}\.\d+-[0-9a-f]{{8}}\.tmp")
    with suppress(OSError):
        for path in target.parent.iterdir():
            if ours.fullmatch(path.name):
                drop(files, path)
