"""Which router leads: one at a time, and whoever dies lets go."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from turnout.state import leader_lock
from turnout.state.leader_lock import LeaderLock
from turnout.system.directory_lock import NO_LOCK

HOLD = """
import sys
from pathlib import Path
from turnout.state.leader_lock import LeaderLock
lock = LeaderLock(Path(sys.argv[1]), Path(sys.argv[1]).parent)
print(lock.try_take(), flush=True)
sys.stdin.read()
"""


def test_one_has_it_and_names_itself_the_other_gets_it_after(tmp_path: Path) -> None:
    first, second = (LeaderLock(tmp_path / "lock", tmp_path) for _ in range(2))
    assert first.try_take()
    assert first.try_take(), "repeating it changes nothing"
    assert not second.try_take()
    assert (second.held, second.holder()) == (False, str(os.getpid()))
    first.release()
    assert second.try_take()
    second.release()


def test_a_killed_holder_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    command = [sys.executable, "-P", "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        lock = LeaderLock(path, tmp_path)
        assert not lock.try_take()
        holder.kill()
        holder.wait()
        assert lock.try_take()
        lock.release()


def test_a_lock_that_cannot_be_made_is_not_taken(tmp_path: Path) -> None:
    lock = LeaderLock(tmp_path / "missing" / "lock", tmp_path / "missing")
    assert not lock.try_take()
    assert lock.holder() == "unknown"


def test_a_lock_file_that_was_deleted_lets_no_second_router_lead(tmp_path: Path) -> None:
    first, second = (LeaderLock(tmp_path / "lock", tmp_path) for _ in range(2))
    assert first.try_take()
    (tmp_path / "lock").unlink()
    assert not second.try_take()
    assert first.restore()
    assert not first.restore()
    assert not second.try_take()
    assert second.holder() == str(os.getpid())
    first.release()
    assert second.try_take()
    second.release()


def test_a_holder_of_the_file_alone_is_respected(tmp_path: Path) -> None:
    """A router of 0.1.0 locks no directory."""
    old, new = LeaderLock(tmp_path / "lock", tmp_path / "missing"), LeaderLock(tmp_path / "lock", tmp_path)
    assert old.try_take()
    assert not new.try_take()
    old.release()
    assert new.try_take(), "the directory was not kept locked"
    new.release()


def test_a_lock_file_that_was_deleted_is_made_again_where_no_directory_can_be_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On NFS flock(2) of a directory fails: a lock needs a descriptor that is open for writing."""
    monkeypatch.setattr(leader_lock, "lock_directory", lambda _path: NO_LOCK)
    first, second = (LeaderLock(tmp_path / "lock", tmp_path) for _ in range(2))
    assert first.try_take()
    (tmp_path / "lock").unlink()
    assert first.restore()
    assert not first.restore()
    assert not second.try_take()
    first.release()


@pytest.mark.parametrize("locks_directories", [True, False])
def test_a_home_that_was_made_again_is_not_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, locks_directories: bool
) -> None:
    if not locks_directories:
        monkeypatch.setattr(leader_lock, "lock_directory", lambda _path: NO_LOCK)
    (tmp_path / "home").mkdir()
    lock = LeaderLock(tmp_path / "home/lock", tmp_path / "home")
    assert lock.try_take()
    (tmp_path / "home").rename(tmp_path / "old")
    (tmp_path / "home").mkdir()
    assert not lock.restore()
    assert list((tmp_path / "home").iterdir()) == []
    lock.release()


def test_a_lock_that_is_released_while_its_file_is_made_again_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread makes it again, and a home that hangs may keep the thread until its router has let another one lead."""
    first, second = (LeaderLock(tmp_path / "lock", tmp_path) for _ in range(2))
    lock_file = first._lock_file

    def released_meanwhile() -> int:
        fd = lock_file()
        first.release()
        return fd

    assert first.try_take()
    (tmp_path / "lock").unlink()
    monkeypatch.setattr(first, "_lock_file", released_meanwhile)
    assert not first.restore()
    assert not first.held
    assert second.try_take()
    second.release()
