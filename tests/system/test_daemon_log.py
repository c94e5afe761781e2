from __future__ import annotations

import os
from pathlib import Path

import pytest

from turnout.system.daemon_log import bound, older, oversized, tail


def fill(path: Path, lines: int) -> None:
    with path.open("a") as file:
        file.writelines(f"line {number:08}\n" for number in range(lines))


def test_a_log_within_its_bound_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    fill(path, 100)
    before = path.read_bytes()
    assert bound(path, bound_bytes=len(before), kept_bytes=10) == len(before)
    assert path.read_bytes() == before
    assert not older(path).exists()


def test_one_over_it_is_cut_and_its_end_is_kept_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    fill(path, 1000)
    whole = path.read_bytes()
    assert bound(path, bound_bytes=1000, kept_bytes=500) == len(whole)
    assert path.read_bytes() == b""
    assert older(path).read_bytes() == whole[-500:]
    assert older(path).stat().st_mode & 0o777 == 0o600


def test_its_writer_goes_on_at_the_new_end_and_the_file_has_no_hole(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    writer = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        for _ in range(50):
            os.write(writer, b"x" * 999 + b"\n")
            bound(path, bound_bytes=5000, kept_bytes=2000)
            assert path.stat().st_size <= 5000
            assert b"\0" not in path.read_bytes()
    finally:
        os.close(writer)
    assert older(path).stat().st_size <= 2000


def test_the_last_lines_are_told_across_a_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    fill(path, 100)
    bound(path, bound_bytes=10, kept_bytes=10_000)
    with path.open("a") as file:
        file.write("after the cut\n")
    assert tail(path, lines=3).splitlines() == ["line 00000098", "line 00000099", "after the cut"]
    assert tail(path, lines=2, bound_bytes=14) == "after the cut"


def test_what_is_no_log_is_left_alone_and_raises_nothing(tmp_path: Path) -> None:
    target = tmp_path / "somebody's"
    target.write_bytes(b"x" * 100)
    link = tmp_path / "link.log"
    link.symlink_to(target)
    assert bound(link, bound_bytes=1, kept_bytes=1) == 0
    assert bound(tmp_path / "missing.log", bound_bytes=1, kept_bytes=1) == 0
    assert bound(tmp_path, bound_bytes=1, kept_bytes=1) == 0
    assert target.read_bytes() == b"x" * 100
    assert tail(tmp_path / "missing.log", lines=3) == ""


def test_one_whose_end_cannot_be_kept_is_cut_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    fill(path, 100)
    older(path).mkdir()
    bound(path, bound_bytes=10, kept_bytes=10)
    assert path.stat().st_size == 0, "a full disk is the reason why it is cut"


@pytest.mark.parametrize("size", [10, 10_000_000])
def test_only_the_end_is_copied_however_much_was_written(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"begin")
    os.truncate(path, size)
    bound(path, bound_bytes=5, kept_bytes=4096)
    assert older(path).stat().st_size == min(size, 4096)


def test_logs_over_the_bound_are_found_whoever_wrote_them(tmp_path: Path) -> None:
    for name, size in (("a.log", 100), ("b.log", 101), ("b.log.1", 500), ("c.txt", 500)):
        (tmp_path / name).write_bytes(bytes(size))
    (tmp_path / "link.log").symlink_to("b.log.1")
    assert oversized(tmp_path, bound_bytes=100) == [tmp_path / "b.log"]
    assert oversized(tmp_path / "nowhere") == []


def test_the_end_of_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.log")
    assert tail(tmp_path / "a.log", lines=3) == ""
