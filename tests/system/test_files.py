"""Durable writes of single files."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from faulty_files import FaultyFiles, OldSystem, names_in
from turnout.errors import StateUnwritableError
from turnout.system.files import Files, sweep, temp_beside, write_durably


def test_a_file_is_replaced_whole_and_private(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    write_durably(Files(), path, b"one")
    write_durably(Files(), path, b"two")
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o600
    assert names_in(tmp_path) == {"settings.json"}


def test_a_wider_mode_is_set_whatever_the_umask(tmp_path: Path) -> None:
    write_durably(Files(), tmp_path / "unit", b"x", mode=0o644)
    assert (tmp_path / "unit").stat().st_mode & 0o777 == 0o644


def test_the_content_is_synced_before_it_is_named_and_the_name_after(tmp_path: Path) -> None:
    files = FaultyFiles()
    write_durably(files, tmp_path / "f", b"data")
    steps = [name for name in files.steps if name != "stat"]
    assert steps == ["create", "write", "fsync", "rename", "fsync_dir"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS])
def test_an_error_at_any_step_says_what_where_why_and_leaves_no_temporary(tmp_path: Path, code: int) -> None:
    rehearsal = FaultyFiles()
    write_durably(rehearsal, tmp_path / "f", b"old!")
    for at, step in enumerate(rehearsal.steps):
        (tmp_path / "f").write_bytes(b"old!")

        def strike(number: int, _name: str, at: int = at) -> None:
            if number == at:
                raise OSError(code, os.strerror(code))

        if step == "stat":  # only looked at to keep the owner
            write_durably(FaultyFiles(strike), tmp_path / "f", b"new!")
            continue
        with pytest.raises(StateUnwritableError, match=f"cannot write {tmp_path}/f: {os.strerror(code)}") as caught:
            write_durably(FaultyFiles(strike), tmp_path / "f", b"new!")
        assert caught.value.hint
        assert (tmp_path / "f").read_bytes() == (b"new!" if step == "fsync_dir" else b"old!")
        assert names_in(tmp_path) == {"f"}


def test_a_write_that_takes_nothing_is_an_error_and_not_a_loop(tmp_path: Path) -> None:
    class Stuck(Files):
        def write(self, fd: int, data: memoryview) -> int:
            return 0

    with pytest.raises(StateUnwritableError, match="a write of nothing"):
        write_durably(Stuck(), tmp_path / "f", b"data")
    assert names_in(tmp_path) == set()


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "real")
    write_durably(Files(), tmp_path / "link", b"data")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "real").read_bytes() == b"data"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_root_leaves_a_users_file_to_the_user(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")
    os.chown(path, 65534, 65534)
    write_durably(Files(), path, b"new")
    assert (path.stat().st_uid, path.stat().st_gid) == (65534, 65534)


def test_an_exchange_swaps_two_names(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("1")
    other.write_text("2")
    if not Files().exchange(one, other):
        pytest.skip("this file system cannot exchange names")
    assert (one.read_text(), other.read_text()) == ("2", "1")
    with pytest.raises(FileNotFoundError):
        Files().exchange(one, tmp_path / "missing")


def test_where_names_cannot_be_exchanged_nothing_is_done(tmp_path: Path) -> None:
    assert OldSystem().exchange(tmp_path / "a", tmp_path / "b") is False


def test_only_the_files_own_temporaries_are_swept(tmp_path: Path) -> None:
    target = tmp_path / "a[1].json"
    mine, others = temp_beside(target), temp_beside(tmp_path / "a[1].json.b")
    mine.touch()
    others.touch()
    target.touch()
    sweep(Files(), target)
    assert names_in(tmp_path) == {others.name, target.name}


def test_descriptors_are_not_inherited_and_none_stays_open(tmp_path: Path) -> None:
    before = len(names_in(Path("/proc/self/fd")))
    fd = Files().create(tmp_path / "f", 0o600)
    assert not os.get_inheritable(fd)
    os.close(fd)
    write_durably(Files(), tmp_path / "f", b"x")
    Files().read(tmp_path / "f")
    assert len(names_in(Path("/proc/self/fd"))) == before
