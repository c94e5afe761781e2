"""A lock on a directory. Locks of two descriptors conflict within one process too (flock(2))."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from turnout.system.directory_lock import NO_LOCK, is_locked, lock_directory, names, unlock
from turnout.system.files import opened


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_a_directory_is_locked_by_one_and_free_again_after_it(tmp_path: Path) -> None:
    fd = lock_directory(tmp_path)
    assert is_locked(tmp_path)
    with pytest.raises(BlockingIOError):
        lock_directory(tmp_path)
    unlock(fd)
    assert not is_locked(tmp_path)


def test_to_look_takes_nothing(tmp_path: Path) -> None:
    before = descriptors()
    assert not is_locked(tmp_path)
    assert descriptors() == before


def test_a_directory_that_is_missing_or_cannot_be_locked_has_no_lock_and_is_not_locked(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "missing", tmp_path / "file"):
        assert lock_directory(path) == NO_LOCK
        assert not is_locked(path)
    unlock(NO_LOCK)


def test_a_name_is_compared_by_what_it_leads_to(tmp_path: Path) -> None:
    path, link = tmp_path / "file", tmp_path / "link"
    path.touch()
    link.symlink_to(path)
    with opened(os.open(path, os.O_RDONLY)) as fd:
        assert names(path, fd)
        assert names(link, fd)
        path.rename(tmp_path / "moved")
        assert not names(path, fd)
        path.touch()
        assert not names(path, fd), "made again, it is another file"
    assert not names(path, fd), "a closed descriptor names nothing"
