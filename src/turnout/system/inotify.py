"""A hint from the kernel that a file may have changed, so that it need not be polled fifty times a second.

Only a hint: what changed is found by looking (:mod:`turnout.system.file_watcher`), and file systems whose changes may
come from another machine give none.
"""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path
from typing import Final

# linux/magic.h: where every change goes through this kernel. NFS, FUSE, 9p and the like are not among them.
_LOCAL: Final = frozenset(
    {
        0xEF53,  # ext2, ext3, ext4
        0x58465342,  # xfs
        0x9123683E,  # btrfs
        0x01021994,  # tmpfs
        0x858458F6,  # ramfs
        0x794C7630,  # overlayfs
        0xF2F52010,  # f2fs
        0x2FC12FC1,  # zfs
        0xCA451A4E,  # bcachefs
    }
)
# sys/inotify.h
_MODIFY: Final = 0x2
_ATTRIB: Final = 0x4
_CLOSE_WRITE: Final = 0x8
_MOVED_FROM: Final = 0x40
_MOVED_TO: Final = 0x80
_CREATE: Final = 0x100
_DELETE: Final = 0x200
_GONE: Final = 0x400 | 0x800 | 0x2000 | 0x8000  # the directory itself: deleted, moved, unmounted, ignored
_OVERFLOW: Final = 0x4000
_MASK: Final = _MODIFY | _ATTRIB | _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | 0x400 | 0x800
_HEADER: Final = struct.Struct("iIII")
_READ_BYTES: Final = 65536


class Notice:
    """Reports events of one name in its directory (inotify(7)). Owns its descriptor.

    ``alive`` turns False when the directory itself is gone; then there are no more events.
    """

    def __init__(self, fd: int, name: str) -> None:
        self._fd = fd
        self._name = os.fsencode(name)
        self.alive = True

    @classmethod
    def of(cls, path: Path) -> Notice | None:
        """Watch ``path``, which need not exist; None where the system or the file system gives no such hints."""
        target = Path(os.path.realpath(path))
        directory = os.fsencode(target.parent)
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if _kind_of(libc, directory) not in _LOCAL:
                return None
            fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, AttributeError):
            return None
        if fd < 0:
            return None
        if libc.inotify_add_watch(fd, directory, _MASK) < 0:
            os.close(fd)
            return None
        return cls(fd, target.name)

    def fileno(self) -> int:
        return self._fd

    def read(self) -> bool:
        """Take the events; returns whether any of them is of the watched name."""
        try:
            data = os.read(self._fd, _READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return False
        concerned = False
        offset = 0
        while offset < len(data):
            _, mask, _, length = _HEADER.unpack_from(data, offset)
            offset += _HEADER.size
            name = data[offset : offset + length].rstrip(b"\0")
            offset += length
            if mask & _GONE:
                self.alive = False
            concerned |= name == self._name or bool(mask & (_GONE | _OVERFLOW))
        return concerned

    def close(self) -> None:
        os.close(self._fd)


def _kind_of(libc: ctypes.CDLL, directory: bytes) -> int:
    """The file system's magic number: statfs(2), whose first field it is."""
    room = ctypes.create_string_buffer(256)
    if libc.statfs(directory, room):
        return 0
    return ctypes.c_long.from_buffer(room).value & 0xFFFFFFFF
