"""Noticing changes of a file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from turnout.system.file_watcher import TWO_TICKS_NS, Watcher


class Clocks:
    """A wall clock far ahead of every file, so that none is young unless a test says so."""

    def __init__(self) -> None:
        self.wall_ns = 1 << 62
        self.monotonic_ns = 1

    def watch(self, path: Path) -> Watcher:
        return Watcher(path, wall_ns=lambda: self.wall_ns, monotonic_ns=lambda: self.monotonic_ns)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "registry.json"
    path.write_text("one")
    return path


def test_the_first_poll_always_reports(path: Path) -> None:
    assert Clocks().watch(path).poll()
    assert Clocks().watch(path.with_name("missing")).poll()


def test_an_unchanged_file_is_reported_once(path: Path) -> None:
    watcher = Clocks().watch(path)
    assert [watcher.poll() for _ in range(4)] == [True, False, False, False]


def test_a_file_replaced_by_one_of_the_same_size_and_time_is_a_change(path: Path) -> None:
    watcher = Clocks().watch(path)
    watcher.poll()
    state = path.stat()
    other = path.with_name("other")
    other.write_text("two")
    os.utime(other, ns=(state.st_atime_ns, state.st_mtime_ns))
    other.replace(path)
    assert watcher.poll()
    assert not watcher.poll()


def test_a_change_in_place_is_a_change(path: Path) -> None:
    watcher = Clocks().watch(path)
    watcher.poll()
    with path.open("a") as file:
        file.write("!")
    assert watcher.poll()


def test_missing_is_a_state_and_so_is_being_there_again(path: Path) -> None:
    watcher = Clocks().watch(path)
    watcher.poll()
    path.unlink()
    assert [watcher.poll(), watcher.poll()] == [True, False]
    path.write_text("one")
    assert [watcher.poll(), watcher.poll()] == [True, False]


def test_a_path_through_a_file_is_as_good_as_missing(path: Path) -> None:
    watcher = Clocks().watch(path / "below")
    assert [watcher.poll(), watcher.poll()] == [True, False]


def test_a_change_seen_within_two_ticks_is_read_once_more_when_they_are_over(path: Path) -> None:
    clocks = Clocks()
    watcher = clocks.watch(path)
    state = path.stat()
    clocks.wall_ns = max(state.st_mtime_ns, state.st_ctime_ns) + TWO_TICKS_NS - 1
    assert watcher.poll()
    assert not watcher.poll()
    clocks.monotonic_ns += TWO_TICKS_NS
    assert [watcher.poll(), watcher.poll()] == [True, False]


def test_a_time_stamp_in_the_future_is_read_once_more_and_not_for_ever(path: Path) -> None:
    clocks = Clocks()
    clocks.wall_ns = 0
    watcher = clocks.watch(path)
    assert watcher.poll()
    clocks.monotonic_ns += TWO_TICKS_NS
    assert [watcher.poll(), watcher.poll(), watcher.poll()] == [True, False, False]


def test_a_link_that_is_pointed_elsewhere_is_a_change(path: Path) -> None:
    link, other = path.with_name("link"), path.with_name("other")
    other.write_text("one")
    link.symlink_to(path)
    watcher = Clocks().watch(link)
    watcher.poll()
    link.unlink()
    link.symlink_to(other)
    assert watcher.poll()
