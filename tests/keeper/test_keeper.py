"""The keeper's end: each way out of it has a deadline."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from process_support import Started, line_of, open_descriptors
from support import eventually
from turnout.core.model import Identity
from turnout.errors import NotBegunError, SpawnError, TurnoutError
from turnout.keeper import children as children_module
from turnout.keeper import keeper as keeper_module
from turnout.keeper.children import Child
from turnout.keeper.keeper import Keeper
from turnout.keeper.requests import Spawn, Stop
from turnout.keeper.router_child import RouterChild
from turnout.keeper.service_listeners import ServiceListeners
from turnout.state import keeper_lock
from turnout.state.home import Home
from turnout.state.keeper_lock import keeper_runs, restore_keeper_lock, take_keeper_lock
from turnout.system.directory_lock import NO_LOCK
from turnout.system.home_identity import HomeIdentity
from turnout.system.limits import NO_LIMITS
from turnout.system.process import ProcessHandle, identify, is_alive
from turnout.system.shim import Shim
from turnout.system.spawn import SpawnRequest, Start, Wait
from turnout.system.spawn_record import EndRecord, SpawnRecord, write_record


class Clock:
    """Monotonic seconds, and the timers of a keeper, which run when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._due: list[tuple[float, Callable[[], None]]] = []

    def enter(self, delay_s: float, _priority: int, action: Callable[[], None]) -> None:
        self._due.append((self.now + delay_s, action))

    def pass_s(self, seconds: float) -> None:
        end = self.now + seconds
        while due := sorted((at for at, _ in self._due if at <= end)):
            self.now = due[0]
            ready, self._due = (
                [action for at, action in self._due if at <= self.now],
                [entry for entry in self._due if entry[0] > self.now],
            )
            for action in ready:
                action()
        self.now = end


class Unkillable:
    """Children of which one never ends: it hangs in the kernel, or belongs to another user."""

    def all(self) -> list[Child]:
        return []

    def boots_with_orphans(self) -> list[str]:
        return []

    def __len__(self) -> int:
        return 1


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.create()
    return home


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    return clock


@pytest.fixture
def keeper(home: Home, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[Keeper]:
    keeper = Keeper(home)
    children = keeper._children
    monkeypatch.setattr(keeper, "_timers", clock)
    yield keeper
    monkeypatch.setattr(keeper, "_children", children)
    keeper._close()


def test_a_keeper_that_shuts_down_does_not_wait_for_what_cannot_be_killed(
    keeper: Keeper, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "_children", Unkillable())
    keeper._shut_down()
    clock.pass_s(keeper_module.TERM_GRACE_S)
    assert not keeper._done, "the grace is theirs"
    clock.pass_s(2 * keeper_module.LEAVE_SLACK_S)
    assert keeper._done


def test_a_keeper_that_cannot_watch_its_down_verbs_shuts_down_all_the_same(
    keeper: Keeper, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_descriptor(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(keeper_module, "run_down_verbs", no_descriptor)
    with pytest.raises(OSError, match="open files"):
        keeper._go_down()
    clock.pass_s(keeper_module.DOWN_SLACK_S + 3 * keeper_module.LEAVE_SLACK_S)
    assert keeper._done


def test_a_lock_file_that_cannot_be_written_is_made_again_once_there_is_room(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = take_keeper_lock(home.keeper_lock)
    home.keeper_lock.unlink()  # a cleaner of old files
    before = open_descriptors()

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        for _ in range(3):
            with pytest.raises(OSError, match="No space"):
                restore_keeper_lock(home.keeper_lock, fd)
    assert open_descriptors() == before
    fresh = restore_keeper_lock(home.keeper_lock, fd)
    assert fresh != fd
    found = keeper_lock.read_keeper(home.keeper_lock)
    os.close(fresh)
    assert isinstance(found, Identity)
    assert found.pid == os.getpid()


def test_a_keeper_is_seen_to_run_where_no_directory_can_be_locked(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper_module, "lock_directory", lambda _path: NO_LOCK)
    assert not keeper_runs(home)
    keeper = Keeper(home)
    assert keeper_runs(home)
    keeper._close()


def test_a_keeper_that_cannot_lock_its_directory_leaves_a_home_that_was_made_again_alone(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper_module, "lock_directory", lambda _path: NO_LOCK)
    keeper = Keeper(home)
    home.root.rename(home.root.with_name("old"))
    home.root.mkdir(mode=0o700)
    home.router_sock.touch()
    keeper._watch_files()
    keeper._close()
    assert list(home.root.iterdir()) == [home.router_sock]


def test_a_service_that_cannot_be_adopted_keeps_the_keeper_from_nothing_else(
    keeper: Keeper, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        home.service(name).create()
        home.service(name).settings.touch()
    seen: list[str] = []

    def records(directory: Path) -> dict[str, SpawnRecord]:
        seen.append(directory.parent.name)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(keeper_module, "foreign_records", records)
    monkeypatch.setattr(keeper._routers, "adopt", lambda: seen.append("routers"))
    keeper._adopt()
    assert seen == ["a", "b", "routers"]


class HangingStart:
    """The start of daemon b1 of service a, which is over when the test says so."""

    def __init__(self, keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
        self.keeper = keeper
        self.answers: list[Mapping[str, Any]] = []
        self.result: Callable[[], tuple[ProcessHandle, Shim]] | None = None
        self._read, self._write = os.pipe()
        monkeypatch.setattr(children_module, "spawn_behind_shim", self._steps)
        keeper.home.service("a").create()
        keeper._requests._on_spawn(
            Spawn("a", "b1", ("daemon",), "/", {}, None, "", None, NO_LIMITS), self.answers.append
        )

    def _steps(self, _: SpawnRequest) -> Start:
        yield Wait(self._read, 5.0)
        if self.result is None:
            raise NotBegunError("its shim says nothing")
        return self.result()

    def end(self) -> None:
        os.write(self._write, b"x")
        for key, _ in self.keeper._selector.select(0):
            key.data()
        os.close(self._read)
        os.close(self._write)


def test_a_stop_during_the_start_of_a_daemon_waits_for_the_start(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = HangingStart(keeper, monkeypatch)
    stops: list[Mapping[str, Any]] = []
    keeper._requests._on_stop(Stop("a", "b1", signal.SIGTERM, 0.0), stops.append)
    with pytest.raises(SpawnError, match="already runs"):
        keeper._requests._on_spawn(Spawn("a", "b1", ("daemon",), "/", {}, None, "", None, NO_LIMITS), stops.append)
    assert (start.answers, stops) == ([], [])
    monkeypatch.setattr(keeper._children, "end_orphans", lambda *args: args[-1]({"ok": True, "gone": True}))
    start.end()
    assert start.answers[0]["message"] == "its shim says nothing"
    assert stops == [{"ok": True, "gone": True}]


def test_a_daemon_whose_start_ends_after_the_shutdown_began_is_killed(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = HangingStart(keeper, monkeypatch)
    keeper._shut_down()
    assert len(keeper._children) == 1, "the shutdown waits for it"
    report, far = os.pipe()
    with Started() as started:
        shim = started.run("sh", "-c", "sleep 600 & echo $!; wait")
        daemon = identify(int(line_of(shim)))
        start.result = lambda: (ProcessHandle.open(daemon), Shim(ProcessHandle.open(identify(shim.pid)), report))
        write_record(
            keeper.home.service("a").record("b1"), SpawnRecord("b1", "a", daemon, str(keeper.home.root / "log"), 0.0)
        )
        start.end()
        assert start.answers[0]["error"] == "NotRunningError"
        eventually(lambda: not is_alive(daemon))
    os.close(far)


@pytest.mark.parametrize("ended", [False, True])
def test_a_daemon_of_another_service_is_not_said_to_be_gone(keeper: Keeper, home: Home, *, ended: bool) -> None:
    for name in ("a", "b"):
        home.service(name).create()
        home.service(name).settings.touch()
    own = ProcessHandle.open(identify(os.getpid()))
    if ended:  # processes that it left behind may run
        record = SpawnRecord("b-1", "b", own.identity, "", 0.0, ended=EndRecord(0, 0.0))
        write_record(home.service("b").record("b-1"), record)
        own.close()
    else:
        keeper._children._all["b-1"] = Child("b-1", "b", own, Path("/r"), Path("/l"), own.identity, mine=False)
    answers: list[Mapping[str, Any]] = []
    with pytest.raises(TurnoutError, match="b-1 is a daemon of service b, not of a"):
        keeper._requests._on_stop(Stop("a", "b-1", signal.SIGCONT, 0.0), answers.append)
    assert answers == []


def test_a_router_is_not_said_to_be_a_daemon_that_is_gone(keeper: Keeper, home: Home) -> None:
    home.service("a").create()
    own = ProcessHandle.open(identify(os.getpid()))
    child = Child("router-1", "", own, Path("/r"), Path("/l"), own.identity, mine=False)
    keeper._children._all["router-1"] = child
    keeper._routers._routers["router-1"] = RouterChild(child, 0.0)
    with pytest.raises(TurnoutError, match="router-1 is a router"):
        keeper._requests._on_stop(Stop("a", "router-1", signal.SIGCONT, 0.0), lambda _: None)


def test_daemons_of_a_service_whose_settings_were_removed_are_adopted(keeper: Keeper, home: Home) -> None:
    home.service("a").create()
    with Started() as started:
        daemon = identify(started.run("sleep", "600").pid)
        record = SpawnRecord(
            "a-1", "a", daemon, str(home.service("a").log("a-1")), 0.0, home=HomeIdentity.of(home.root)
        )
        write_record(home.service("a").record("a-1"), record)
        keeper._adopt()
        assert keeper._children.get("a-1")


def test_a_keeper_whose_installation_was_removed_goes_down_with_the_one_that_is_there(
    keeper: Keeper, tmp_path: Path
) -> None:
    gone, there = tmp_path / "gone", tmp_path / "there"
    for path in (there, gone):
        path.write_text(f"#!/bin/sh\necho $0 $* >>{tmp_path}/said\n")
        path.chmod(0o700)
        keeper._routers.prefer_interpreter(str(path))
    gone.unlink()
    keeper._served["svc"] = ServiceListeners([], {})
    (tmp_path / "said").touch()
    keeper._go_down()
    said = eventually((tmp_path / "said").read_text).split()
    keeper._children.reap()
    assert said[0] == str(there)
    assert said[4:6] == ["down", "--automatic"]
