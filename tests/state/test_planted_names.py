"""A name in a home that leads elsewhere (a link, a FIFO, another user's file) is refused before anything is written."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from turnout.control.keeper_start import ensure_keeper
from turnout.core.model import Identity
from turnout.errors import StateUnwritableError
from turnout.state.builds import Builds
from turnout.state.home import Home
from turnout.state.journal import Journal
from turnout.state.keeper_lock import take_keeper_lock
from turnout.state.leader_lock import LeaderLock
from turnout.state.lifecycle_lock import LifecycleLock
from turnout.system.daemon_log import bound, older
from turnout.system.directory_lock import names
from turnout.system.files import Files, open_private, opened, write_durably
from turnout.system.flock import take
from turnout.system.own_log import LogFile
from turnout.system.spawn import SpawnRequest, spawn
from turnout.system.spawn_record import SpawnRecord, write_record

VICTIM = b"what another user keeps in it\n"
AS_ROOT = os.geteuid() == 0
Plant = Callable[[Path, Path], None]


def _symlink(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def _hard_link(path: Path, victim: Path) -> None:
    path.hardlink_to(victim)


def _fifo(path: Path, _victim: Path) -> None:
    os.mkfifo(path)


def _of_another_user(path: Path, _victim: Path) -> None:
    path.write_bytes(VICTIM)
    os.chown(path, 4711, 4711)


PLANTS = {"a symbolic link": _symlink, "a hard link": _hard_link, "a FIFO": _fifo, "another user's": _of_another_user}


@pytest.fixture(params=PLANTS)
def plant(request: pytest.FixtureRequest) -> Plant:
    if PLANTS[request.param] is _of_another_user and not AS_ROOT:
        pytest.skip("only root can give a file away")
    return PLANTS[request.param]


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_bytes(VICTIM)
    return path


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.service("default").create()
    return home


def _lifecycle(home: Home) -> Path:
    return home.service("default").root / "lifecycle.lock"


def _enter_lifecycle(home: Home) -> None:
    with LifecycleLock(_lifecycle(home).parent, timeout_s=0.1, verb="up"):
        pass


def _record(home: Home) -> None:
    write_record(home.service("default").record("b1"), SpawnRecord("b1", "default", Identity(1), "", 0.0))


def _spawn(home: Home) -> None:
    service = home.service("default")
    spawn(SpawnRequest("b1", "default", ("/bin/true",), "/", {}, service.log("b1"), service.record("b1")))


# what is opened for writing in a home: the name, and who opens it
OPENED: dict[str, tuple[Callable[[Home], Path], Callable[[Home], object]]] = {
    "keeper.lock": (lambda h: h.keeper_lock, lambda h: take_keeper_lock(h.keeper_lock)),
    "keeper.lock, by a verb": (lambda h: h.keeper_lock, ensure_keeper),
    "keeper.log": (lambda h: h.keeper_log, ensure_keeper),
    "router.lock, by a verb": (lambda h: h.router_lock, ensure_keeper),
    "router.log": (lambda h: h.router_log, ensure_keeper),
    "lifecycle.lock": (_lifecycle, _enter_lifecycle),
    "a record's temporary": (lambda h: h.service("default").records / ".b1.json.tmp", _record),
    "a daemon's log": (lambda h: h.service("default").log("b1"), _spawn),
    "any lock": (lambda h: h.root / "any.lock", lambda h: take(h.root / "any.lock", timeout_s=0)),
}


@pytest.mark.parametrize("name", OPENED)
def test_it_is_refused_with_the_name_and_the_victim_is_as_it_was(
    home: Home, victim: Path, plant: Plant, name: str
) -> None:
    where, opens = OPENED[name]
    plant(where(home), victim)
    with pytest.raises(StateUnwritableError) as refused:
        opens(home)
    assert str(where(home)).removesuffix(".tmp").replace("/.b1", "/b1") in refused.value.message
    assert victim.read_bytes() == VICTIM


def test_a_router_does_not_lead_by_a_lock_that_is_not_its_own(home: Home, victim: Path, plant: Plant) -> None:
    plant(home.router_lock, victim)
    assert not LeaderLock(home.router_lock, home.services).try_take()
    assert victim.read_bytes() == VICTIM


def test_the_journal_loses_the_event_and_nothing_else(home: Home, victim: Path, plant: Plant) -> None:
    journal = Journal(home.service("default").journal)
    plant(journal.path, victim)
    journal.write("begin", generation=1, revision=1)
    assert journal.lost == 1
    assert victim.read_bytes() == VICTIM


def test_a_log_over_its_bound_is_cut_nowhere_else(home: Home, victim: Path, plant: Plant) -> None:
    log = home.service("default").log("b1")
    plant(log, victim)
    assert bound(log, bound_bytes=1, kept_bytes=1) == 0
    assert victim.read_bytes() == VICTIM


def test_what_is_cut_off_a_log_is_kept_nowhere_else(home: Home, victim: Path, plant: Plant) -> None:
    log = home.service("default").log("b1")
    log.write_bytes(b"x" * 100)
    plant(older(log), victim)
    bound(log, bound_bytes=10, kept_bytes=5)
    assert victim.read_bytes() == VICTIM


def test_a_log_that_was_moved_away_is_followed_to_no_other_file(
    home: Home, victim: Path, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = home.keeper_log
    log.write_bytes(b"")
    taken: list[int] = []

    def dup2(_fd: int, number: int) -> None:
        taken.append(number)

    with opened(os.open(log, os.O_RDONLY)) as standard_error:
        monkeypatch.setattr("turnout.system.own_log._is_file", lambda _: True)
        monkeypatch.setattr("turnout.system.own_log.names", lambda path, _: names(path, standard_error))
        file = LogFile(log, 10)
        log.rename(log.with_suffix(".elsewhere"))
        plant(log, victim)
        monkeypatch.setattr("turnout.system.own_log.os.dup2", dup2)
        file.check()
    assert taken == []


def test_a_file_of_our_own_is_opened_and_never_truncated(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"kept")
    fd = open_private(path, os.O_RDWR | os.O_CREAT)
    try:
        assert os.get_blocking(fd)
        assert not os.get_inheritable(fd)
        assert os.read(fd, 10) == b"kept"
    finally:
        os.close(fd)


def test_a_lock_beside_a_registry_may_belong_to_any_user_who_shares_it(tmp_path: Path) -> None:
    if not AS_ROOT:
        pytest.skip("only root can give a file away")
    path = tmp_path / "registry.json.lock"
    path.touch()
    os.chown(path, 4711, 4711)
    lock = take(path, timeout_s=0, any_owner=True)
    assert lock
    lock.release()


@pytest.mark.skipif(not AS_ROOT, reason="it takes root to make a file for another user")
def test_what_root_makes_in_the_home_of_an_unknown_user_is_given_to_that_user(home: Home) -> None:
    """A container whose only user is root, with a directory that is mounted from outside."""
    for path in (home.root, *home.root.rglob("*")):
        os.chown(path, 47110, 47110)
    service = home.service("another")
    service.create()
    _enter_lifecycle(home)
    write_durably(Files(), service.settings, b"{}")
    Journal(service.journal).write("begin", generation=1, revision=1)
    os.close(take_keeper_lock(home.keeper_lock))
    assert {path.stat().st_uid for path in (home.root, *home.root.rglob("*"))} == {47110}


def test_the_refusal_says_what_it_is(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "link").symlink_to(victim)
    with pytest.raises(OSError, match="it is a symbolic link") as refused:
        open_private(tmp_path / "link", os.O_WRONLY)
    assert refused.value.errno == errno.ELOOP
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="not a regular file"):
        open_private(tmp_path / "fifo", os.O_WRONLY)
    (tmp_path / "other").hardlink_to(victim)
    with pytest.raises(OSError, match="has 2 names"):
        open_private(tmp_path / "other", os.O_WRONLY)


def test_a_link_in_the_place_of_a_file_that_is_replaced_is_replaced_itself(tmp_path: Path, victim: Path) -> None:
    path = tmp_path / "settings.json"
    path.symlink_to(victim)
    write_durably(Files(), path, b"{}", follows_links=False)
    assert not path.is_symlink()
    assert path.read_bytes() == b"{}"
    assert victim.read_bytes() == VICTIM


def test_the_settings_and_builds_of_a_service_are_written_to_no_other_file(home: Home, victim: Path) -> None:
    service = home.service("default")
    victim.write_bytes(b"{}")
    service.builds.symlink_to(victim)
    Builds(service.builds).quarantine("b", "why", 1)
    assert victim.read_bytes() == b"{}"
