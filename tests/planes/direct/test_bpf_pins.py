"""Kernel objects pinned in a directory: whole or not there, of this user alone; files stand for the objects."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from traffic import open_fds
from turnout.errors import SteeringError
from turnout.planes.direct.bpf_pins import Pins, all_bpffs, pins_of, unfinished

OBJECTS = {"link": 10, "ipv4": 11}


def pin(fd: int, path: str) -> None:
    Path(path).write_text(str(fd), encoding="ascii")


def get(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def content(pins: Pins) -> dict[str, str]:
    return {entry.name: entry.read_text(encoding="ascii") for entry in pins.directory.iterdir()}


@pytest.fixture
def pins(tmp_path: Path) -> Pins:
    return Pins.of(tmp_path, tmp_path / "home", "cache")


def test_what_is_pinned_is_found_and_ends_with_its_directory(pins: Pins, tmp_path: Path) -> None:
    assert not pins.exist()
    pins.make(OBJECTS, pin)
    assert (pins.exist(), content(pins)) == (True, {"link": "10", "ipv4": "11"})
    assert [path.stat().st_mode & 0o777 for path in (pins.directory, pins.directory.parent)] == [0o700, 0o700]
    pins.remove()
    assert (pins.exist(), list(tmp_path.iterdir())) == (False, [])


def test_objects_that_cannot_all_be_pinned_are_not_there_at_all(pins: Pins) -> None:
    def fails_later(fd: int, path: str) -> None:
        if fd != OBJECTS["link"]:
            raise PermissionError
        pin(fd, path)

    with pytest.raises(PermissionError):
        pins.make(OBJECTS, fails_later)
    assert (pins.exist(), unfinished(pins.directory).exists()) == (False, False)


def test_what_a_router_left_that_died_in_the_middle_is_in_no_ones_way(pins: Pins) -> None:
    unfinished(pins.directory).mkdir(parents=True, mode=0o700)
    pins.directory.parent.chmod(0o700)
    (unfinished(pins.directory) / "ipv6").touch()
    assert not pins.exist()
    pins.make(OBJECTS, pin)
    assert set(content(pins)) == set(OBJECTS)
    assert not unfinished(pins.directory).exists()


def test_pins_are_replaced_whole(pins: Pins) -> None:
    pins.make({"old": 1}, pin)
    pins.make(OBJECTS, pin)
    assert set(content(pins)) == set(OBJECTS)


def test_all_objects_are_opened_or_none_stays_open(pins: Pins) -> None:
    pins.make(OBJECTS, pin)
    before = open_fds()
    with pytest.raises(FileNotFoundError):
        pins.open([*OBJECTS, "ipv6"], get)
    assert open_fds() == before
    found = pins.open(list(OBJECTS), get)
    assert set(found) == set(OBJECTS)
    for fd in found.values():
        os.close(fd)


def test_an_earlier_place_is_used_only_where_this_one_has_none_and_ends_otherwise(tmp_path: Path) -> None:
    earlier = Pins.of(tmp_path / "system", tmp_path / "home", "cache")
    pins = Pins(Pins.of(tmp_path / "own", tmp_path / "home", "cache").directory, (earlier.directory,))
    for place in ("system", "own"):
        (tmp_path / place).mkdir()
    earlier.make({"link": 1}, pin)
    assert pins.exist()
    for fd in pins.open(["link"], get).values():
        assert os.read(fd, 9) == b"1"
        os.close(fd)
    other = Pins(pins.directory)
    other.make({"link": 2}, pin)
    for fd in pins.open(["link"], get).values():
        assert os.read(fd, 9) == b"2"
        os.close(fd)
    assert (earlier.exist(), pins.exist()) == (False, True)


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o722])
def test_a_directory_that_others_may_write_is_not_trusted(pins: Pins, mode: int) -> None:
    pins.make(OBJECTS, pin)
    pins.directory.chmod(mode)
    before = open_fds()
    with pytest.raises(SteeringError, match="mode 0700"):
        pins.open(list(OBJECTS), get)
    assert open_fds() == before


def test_services_of_one_home_end_apart_and_homes_do_not_meet(pins: Pins, tmp_path: Path) -> None:
    sibling = Pins.of(tmp_path, tmp_path / "home", "other")
    stranger = Pins.of(tmp_path, tmp_path / "home2", "cache")
    for each in (pins, sibling, stranger):
        each.make(OBJECTS, pin)
    pins.remove()
    assert (pins.exist(), sibling.exist(), stranger.exist()) == (False, True, True)
    assert sibling.directory.parent != stranger.directory.parent


def test_a_home_uses_its_own_bpf_filesystem_before_the_systems(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    own = f"36 1 0:30 / {tmp_path.resolve()}/bpf rw - bpf bpf rw\n"
    system = "35 1 0:29 / /sys/fs/bpf rw,nosuid shared:9 - bpf bpf rw,mode=700\n"
    another = "34 1 0:28 / /sys/fs rw - sysfs sysfs rw\n"
    mounts.write_text(another + system + own)
    own_first = [tmp_path.resolve() / "bpf", Path("/sys/fs/bpf")]
    assert all_bpffs(tmp_path, mounts=mounts) == own_first
    pins = pins_of(tmp_path, "cache", mounts=mounts)
    assert pins
    assert [place.parent.parent for place in (pins.directory, *pins.others)] == own_first
    mounts.write_text(another + system)
    assert all_bpffs(tmp_path, mounts=mounts) == [Path("/sys/fs/bpf")]
    mounts.write_text(another)
    assert all_bpffs(tmp_path, mounts=mounts) == []
    assert all_bpffs(tmp_path, mounts=tmp_path / "none") == []
    assert pins_of(tmp_path, "cache", mounts=mounts) is None


def test_a_path_is_read_as_the_kernel_writes_it_whatever_is_in_it(tmp_path: Path) -> None:
    home = tmp_path / "caf\u00e9 au\\lait \udcff"
    home.mkdir()
    path = os.fsencode(home.resolve() / "bpf").replace(b"\\", b"\\134").replace(b" ", b"\\040")
    mounts = tmp_path / "mountinfo"
    mounts.write_bytes(b"36 1 0:30 / " + path + b" rw - bpf bpf rw\n37 1 0:31 / /\xff rw - ext4 x rw\n")
    assert all_bpffs(home, mounts=mounts) == [home.resolve() / "bpf"]


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """Without the right to look where others may not."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_who_may_not_look_into_the_bpf_filesystem_has_pinned_nothing_and_steers_all_the_same(tmp_path: Path) -> None:
    """systemd mounts /sys/fs/bpf with mode 0700: an ordinary user's verbs must not stumble over it."""
    closed = tmp_path / "bpf"
    closed.mkdir()
    closed.chmod(0)
    pins = Pins.of(closed, tmp_path, "cache")
    try:
        with nobody():
            assert not pins.exist()
            pins.remove()
            with pytest.raises(PermissionError):
                pins.make({}, lambda _fd, _path: None)
    finally:
        closed.chmod(0o700)
