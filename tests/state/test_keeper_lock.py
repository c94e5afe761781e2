"""Which process is the keeper of a home. Locks of two descriptors conflict within one process too (flock(2))."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from turnout.errors import ConflictError
from turnout.state import keeper_lock
from turnout.state.home import Home
from turnout.state.keeper_lock import keeper_runs, read_keeper, restore_keeper_lock, take_keeper_lock
from turnout.system.files import opened
from turnout.system.process import own_identity


def test_the_lock_is_had_once_and_names_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "keeper.lock"
    with opened(take_keeper_lock(path)):
        assert read_keeper(path) == own_identity()
        with pytest.raises(ConflictError, match=f"pid {os.getpid()}"):
            take_keeper_lock(path)
    with opened(take_keeper_lock(path)):
        pass


def test_a_lock_whose_holder_cannot_be_written_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keeper.lock"

    def refuse(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", refuse)
        with pytest.raises(OSError, match="No space left"):
            take_keeper_lock(path)
    with opened(take_keeper_lock(path)):
        pass


def test_a_lock_file_that_is_there_is_kept_and_one_that_was_removed_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "keeper.lock"
    fd = take_keeper_lock(path)
    assert restore_keeper_lock(path, fd) == fd
    path.unlink()
    fresh = restore_keeper_lock(path, fd)
    with opened(fresh):
        assert read_keeper(path) == own_identity()
        with pytest.raises(ConflictError):
            take_keeper_lock(path)
    if fresh != fd:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_another_keepers_file_by_that_name_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "keeper.lock"
    with opened(take_keeper_lock(path)) as fd:
        path.unlink()
        with opened(take_keeper_lock(path)), pytest.raises(ConflictError):
            restore_keeper_lock(path, fd)


@pytest.mark.parametrize("content", [b"", b"12", b"12 x", b"0 5", b"7 0", b"1 2 3"])
def test_a_torn_or_strange_content_names_no_keeper(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "keeper.lock"
    path.write_bytes(content)
    assert read_keeper(path) is None
    assert read_keeper(tmp_path / "missing") is None


def test_a_keeper_runs_while_the_directory_is_locked(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert not keeper_runs(home)
    with opened(keeper_lock.take_keeper_lock(home.keeper_lock)):
        assert keeper_runs(home)
    assert not keeper_runs(home)
