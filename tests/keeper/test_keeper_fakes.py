"""The keeper's own part, with parts around it that are made up: what it has them do, and in which order it ends."""

from __future__ import annotations

import errno
import math
import os
import selectors
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest

from process_support import open_descriptors
from turnout.config.settings import Address, Settings, dump_settings
from turnout.core.model import Identity
from turnout.errors import ConflictError, StateUnwritableError
from turnout.keeper import keeper as keeper_module
from turnout.keeper.children import Child
from turnout.keeper.keeper import DOWN_SLACK_S, LEAVE_SLACK_S, TERM_GRACE_S, Keeper
from turnout.keeper.log_bounds import LOOK_S
from turnout.keeper.service_listeners import ServiceListeners
from turnout.keeper.shutdown import DEFAULT_TERMS
from turnout.state.home import Home
from turnout.state.keeper_lock import keeper_runs, take_keeper_lock
from turnout.system.home_identity import HomeIdentity
from turnout.system.process import own_identity
from turnout.system.spawn_record import EndRecord, SpawnRecord, read_records, write_record

SETTINGS = Settings(
    name="a", listen=(Address("127.0.0.1", 47000),), stop_signal="QUIT", stop_grace_s=40.0, drain_grace_s=30.0
)


@dataclass
class FakeChildren:
    """Children that end when the test says so. ``refuses``: boots that cannot be stopped."""

    calls: list[tuple[object, ...]] = field(default_factory=list)
    running: list[Child] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    refuses: set[str] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self.running) + len(self.orphans)

    def all(self) -> list[Child]:
        return list(self.running)

    def boots_with_orphans(self) -> list[str]:
        return list(self.orphans)

    def stop(self, child: Child, number: int, grace_s: float) -> None:
        self.calls.append(("stop", child.boot_id, number, grace_s))
        if child.boot_id in self.refuses:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    def end_orphans(self, boot_id: str, number: int, grace_s: float) -> None:
        self.calls.append(("end orphans", boot_id, number, grace_s))

    def adopt(self, record: SpawnRecord, service: str, path: Path) -> bool:
        self.calls.append(("adopt", record.boot_id, service, path.name))
        return True

    def reap(self) -> None:
        self.calls.append(("reap",))

    def close(self) -> None:
        self.calls.append(("close",))


class FakeRouters:
    """Every method call is noted. The routers' boots begin with ``router-``."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.starts = type("Starts", (), {"interpreter": "/usr/bin/python3"})()

    def is_router(self, child: Child) -> bool:
        return child.boot_id.startswith("router-")

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args: self.calls.append((name, *args))


class FakeListeners:
    def __init__(self) -> None:
        self.looks = 0

    def refresh(self) -> None:
        self.looks += 1


class FakeListener(ServiceListeners):
    def __init__(self, closed: list[str], name: str) -> None:
        super().__init__([], {})
        self._closed, self._name = closed, name

    def close(self) -> None:
        self._closed.append(self._name)


class Scene:
    """A keeper of an empty home. Time passes when the test says so."""

    def __init__(self, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.home = home
        self.lines: list[str] = []
        self.due: list[tuple[float, Callable[[], None]]] = []
        self.closed: list[str] = []
        self.downs: list[list[str]] = []
        self.over: Callable[[], None] = lambda: None
        self.children, self.routers, self.listeners = FakeChildren(), FakeRouters(), FakeListeners()
        monkeypatch.setattr(keeper_module, "log_line", self.lines.append)
        monkeypatch.setattr(keeper_module, "run_down_verbs", self.run_down_verbs)
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "sleep", lambda _seconds: None)
        self.keeper = Keeper(home)
        self.real = self.keeper._children
        for name in ("children", "routers", "listeners"):
            monkeypatch.setattr(self.keeper, f"_{name}", getattr(self, name))
        monkeypatch.setattr(self.keeper, "_timers", self)

    def enter(self, delay_s: float, _priority: int, action: Callable[[], None]) -> None:
        self.due.append((self.now + delay_s, action))

    def run(self, *, blocking: bool) -> float | None:
        """As sched does: what is due, and how long until the next."""
        assert not blocking
        while ready := [entry for entry in self.due if entry[0] <= self.now]:
            entry = min(ready, key=lambda entry: entry[0])
            self.due.remove(entry)
            entry[1]()
        return 0.0 if self.due else None

    def pass_s(self, seconds: float) -> None:
        end = self.now + seconds
        while ready := [entry[0] for entry in self.due if entry[0] <= end]:
            self.now = min(ready)
            self.run(blocking=False)
        self.now = end

    def run_down_verbs(self, _start: object, services: list[str], *_: object) -> None:
        self.downs.append(services)
        self.over = cast("Callable[[], None]", _[-1])

    def child(self, boot_id: str, service: str = "a") -> Child:
        unused: Any = None
        child = Child(boot_id, service, unused, Path("/r"), Path("/l"), Identity(7), mine=True)
        self.children.running.append(child)
        return child

    def serve(self, name: str = "a") -> None:
        self.keeper._served[name] = FakeListener(self.closed, name)

    def gets(self, *numbers: int) -> None:
        """These signals come at once."""
        for number in numbers:
            self.keeper._signals._note(number, None)
        self.keeper._on_signal()

    def sent(self) -> list[Mapping[str, Any]]:
        return [cast("Mapping[str, Any]", args[0]) for name, *args in self.routers.calls if name == "send_all"]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.service("a").create()
    home.service("a").settings.write_bytes(dump_settings(SETTINGS))
    return home


@pytest.fixture
def scene(home: Home, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    scene = Scene(home, monkeypatch)
    yield scene
    if scene.keeper._lock_fd >= 0:
        scene.keeper._close()
    scene.real.close()


# -- the loop ----------------------------------------------------------------------------------------------------------


def test_an_action_that_fails_ends_neither_the_loop_nor_the_actions_after_it(scene: Scene) -> None:
    read, write = os.pipe()
    os.write(write, b"x")
    events: list[str] = []

    def readable() -> None:
        events.append("readable")
        if len(events) == 3:
            scene.keeper._done = True
        raise ValueError("a fault")

    def timer() -> None:
        events.append("timer")
        raise ValueError("another fault")

    scene.keeper._selector.register(read, selectors.EVENT_READ, readable)
    scene.keeper._after(0.0, timer)
    _run(scene)
    os.close(read)
    os.close(write)
    assert events == ["timer", "readable", "readable"]
    assert len([line for line in scene.lines if "internal error: ValueError" in line]) == 2, "each is logged once"


def test_a_keeper_says_that_it_is_ready_once_it_knows_what_there_is(scene: Scene) -> None:
    scene.keeper._done = True
    seen: list[list[tuple[object, ...]]] = []
    _run(scene, lambda: seen.append([*scene.routers.calls]))
    assert seen == [[("adopt",)]]


def test_it_ends_with_its_listeners_closed_its_sockets_removed_and_the_lock_released(scene: Scene) -> None:
    scene.home.router_sock.touch()
    scene.serve()
    scene.keeper._done = True
    _run(scene)
    assert scene.closed == ["a"]
    assert scene.children.calls[-1] == ("close",)
    assert not scene.home.keeper_sock.exists()
    assert not scene.home.router_sock.exists()
    assert not keeper_runs(scene.home)
    assert scene.lines[-1] == "keeper ended"


def _run(scene: Scene, ready: Callable[[], None] = lambda: None) -> None:
    """Until the keeper is done; then its descriptors are closed."""
    before = {number: signal.getsignal(number) for number in (signal.SIGCHLD, *TERMINAL)}
    try:
        scene.keeper.run(ready)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        scene.keeper._lock_fd = -1


TERMINAL = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def test_a_second_keeper_of_a_home_is_refused_and_leaves_no_descriptor(scene: Scene) -> None:
    before = open_descriptors()
    with pytest.raises(ConflictError, match=f"a keeper already runs for {scene.home.root}: pid {os.getpid()}"):
        Keeper(scene.home)
    assert open_descriptors() == before


def test_a_keeper_that_cannot_write_its_lock_file_leaves_the_directory_unlocked(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_path: Path) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = open_descriptors()
    monkeypatch.setattr(keeper_module, "take_keeper_lock", full)
    with pytest.raises(StateUnwritableError, match="No space left"):
        Keeper(home)
    assert not keeper_runs(home)
    assert open_descriptors() == before


def test_a_keeper_whose_lock_file_another_process_has_leaves_the_directory_unlocked(home: Home) -> None:
    """The directory could not be locked when that process began, on a file system that has no such locks."""
    fd = take_keeper_lock(home.keeper_lock)
    before = open_descriptors()
    with pytest.raises(ConflictError, match=f"pid {os.getpid()}"):
        Keeper(home)
    assert open_descriptors() == before
    os.close(fd)
    assert not keeper_runs(home)


# -- signals -----------------------------------------------------------------------------------------------------------


def test_a_hangup_has_the_routers_look_at_their_settings_and_ends_nothing(scene: Scene) -> None:
    scene.gets(signal.SIGHUP)
    assert scene.sent() == [{"op": "reload"}]
    assert scene.children.calls == [("reap",)]
    assert not scene.keeper._requests.going_down


def test_a_child_that_ended_is_waited_for(scene: Scene) -> None:
    scene.gets(signal.SIGCHLD)
    assert scene.children.calls == [("reap",)]
    assert scene.sent() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_sigterm_takes_all_services_down_and_the_rest_after_that(scene: Scene, number: int) -> None:
    scene.serve("b")
    scene.serve("a")
    scene.gets(number)
    assert scene.downs == [["a", "b"]]
    assert scene.keeper._requests.going_down
    assert not scene.keeper._requests.shutting_down
    scene.child("b1")
    scene.over()
    assert scene.children.calls[-1] == ("stop", "b1", signal.SIGQUIT, 40.0), "its own grace, all of it"


def test_a_second_sigterm_does_not_wait_for_the_services(scene: Scene) -> None:
    scene.child("b1")
    scene.gets(signal.SIGTERM)
    scene.gets(signal.SIGTERM)
    assert ("stop", "b1", signal.SIGQUIT, TERM_GRACE_S) in scene.children.calls


def test_services_that_do_not_go_down_are_stopped_when_drain_and_grace_are_over(scene: Scene) -> None:
    scene.serve()
    scene.child("b1")
    scene.gets(signal.SIGTERM)
    scene.pass_s(40.0 + 30.0 + DOWN_SLACK_S - 0.1)
    assert not scene.keeper._requests.shutting_down
    scene.pass_s(0.2)
    assert scene.keeper._requests.shutting_down


def test_children_are_waited_for_whatever_becomes_of_the_signals_beside_theirs(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(keeper_module, "run_down_verbs", fail)
    scene.gets(signal.SIGTERM, signal.SIGCHLD)
    assert scene.children.calls == [("reap",)]


# -- children ----------------------------------------------------------------------------------------------------------


def test_the_leader_is_sent_which_daemon_ended(scene: Scene) -> None:
    scene.keeper._child_ended(scene.child("b1"))
    assert scene.listeners.looks == 1
    assert scene.routers.calls == [("send_leader", {"op": "ended", "service": "a", "boot_id": "b1"})]


def test_a_router_that_ended_is_replaced_unless_the_keeper_shuts_down(scene: Scene) -> None:
    router = scene.child("router-1", service="")
    scene.keeper._child_ended(router)
    assert scene.routers.calls == [("on_exit", router)]
    scene.keeper._requests.shutting_down = True
    scene.keeper._child_ended(router)
    assert len(scene.routers.calls) == 1


def _write(scene: Scene, boot_id: str, **more: Any) -> None:
    service = scene.home.service("a")
    record = SpawnRecord(boot_id, "a", own_identity(), str(service.log(boot_id)), 0.0)
    write_record(service.record(boot_id), replace(record, **more))


def test_services_that_cannot_be_listed_keep_no_router_from_being_adopted(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_home: Home) -> list[str]:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Home, "service_names", fail)
    scene.keeper._adopt()
    assert scene.routers.calls == [("adopt",)]


def test_what_an_earlier_keeper_left_is_adopted_and_what_has_ended_is_not(scene: Scene) -> None:
    own = HomeIdentity.of(scene.home.root)
    _write(scene, "b1", home=own)
    _write(scene, "b2", home=own, ended=EndRecord(0, 0.0))
    _write(scene, "b3", home=own, ended=EndRecord(0, 0.0), shim=own_identity())
    scene.keeper._adopt()
    assert sorted(map(str, scene.children.calls)) == [
        "('adopt', 'b1', 'a', 'b1.json')",
        "('adopt', 'b3', 'a', 'b3.json')",
    ]
    assert scene.routers.calls == [("adopt",)]
    assert scene.keeper._log_bounds._directories == {scene.home.service("a").logs}, "orphans may go on writing"


def test_a_process_of_another_home_is_not_adopted_and_its_record_is_ended(scene: Scene) -> None:
    _write(scene, "b1", home=HomeIdentity(1, 2))
    scene.keeper._adopt()
    assert scene.children.calls == []
    ended = read_records(scene.home.service("a").records)["b1"].ended
    assert ended
    assert ended.status is None
    assert "b1" in scene.lines[0]
    assert "is a process of another home: left alone" in scene.lines[0]


# -- the shutdown ------------------------------------------------------------------------------------------------------


def test_a_shutdown_closes_the_listeners_and_stops_each_daemon_by_its_own_signal(scene: Scene) -> None:
    scene.serve()
    scene.child("b1")
    scene.child("router-1", service="")
    scene.children.orphans = ["b0"]
    scene.keeper._shut_down()
    assert scene.sent() == [{"op": "end"}]
    assert (scene.closed, scene.keeper._served) == (["a"], {})
    assert scene.children.calls == [
        ("stop", "b1", signal.SIGQUIT, TERM_GRACE_S),
        ("stop", "router-1", DEFAULT_TERMS.signal, TERM_GRACE_S),
        ("end orphans", "b0", DEFAULT_TERMS.signal, TERM_GRACE_S),
    ]
    scene.keeper._shut_down()
    assert len(scene.children.calls) == 3, "once"


def test_it_leaves_as_soon_as_nothing_is_left(scene: Scene) -> None:
    scene.child("b1")
    scene.keeper._shut_down(math.inf)
    scene.pass_s(39.0)
    assert not scene.keeper._done
    scene.children.running.clear()
    scene.pass_s(0.1)
    assert scene.keeper._done


def test_what_cannot_be_ended_is_named_after_the_longest_grace(scene: Scene) -> None:
    scene.child("b1")
    scene.keeper._shut_down(math.inf)
    scene.pass_s(40.0 + LEAVE_SLACK_S - 0.1)
    assert not any("cannot be ended" in line for line in scene.lines)
    scene.pass_s(0.2)
    assert "a b1 (pid 7) cannot be ended" in scene.lines
    assert scene.keeper._done


def test_a_daemon_that_cannot_be_stopped_keeps_the_keeper_from_nothing_else(scene: Scene) -> None:
    scene.child("b1")
    scene.child("b2")
    scene.children.refuses = {"b1"}
    scene.children.orphans = ["b0"]
    scene.keeper._shut_down()
    assert [call[:2] for call in scene.children.calls] == [("stop", "b1"), ("stop", "b2"), ("end orphans", "b0")]
    scene.pass_s(40.0 + 2 * LEAVE_SLACK_S)
    assert scene.keeper._done


# -- files -------------------------------------------------------------------------------------------------------------


def test_socket_and_lock_that_were_removed_are_made_again_and_said_once(scene: Scene) -> None:
    scene.home.keeper_sock.unlink()
    scene.home.keeper_lock.unlink()
    scene.keeper._watch_files()
    assert scene.home.keeper_sock.is_socket()
    assert keeper_runs(scene.home)
    made = [line for line in scene.lines if line.endswith("again: it was removed")]
    assert len(made) == 2
    scene.pass_s(5.0)
    assert len([line for line in scene.lines if "again" in line]) == 2


def test_a_home_that_was_removed_is_said_once_and_let_be(scene: Scene) -> None:
    scene.home.root.rename(scene.home.root.with_name("away"))
    scene.keeper._watch_files()
    scene.pass_s(5.0)
    assert [line for line in scene.lines if f"{scene.home.root} was removed" in line] == scene.lines
    assert len(scene.lines) == 1
    assert not scene.home.root.exists()


def test_files_that_cannot_be_made_again_are_tried_again_each_second(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[float] = []

    def full() -> bool:
        tries.append(scene.now)
        raise StateUnwritableError("cannot create the socket: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(scene.keeper._socket, "restore", full)
        scene.keeper._watch_files()
        scene.pass_s(3.5)
    assert tries == [1000.0, 1001.0, 1002.0, 1003.0]
    assert len(scene.lines) == 1, "it is logged once"


def test_logs_are_bounded_again_after_a_look_that_failed(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []

    def look() -> float:
        looks.append(scene.now)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(scene.keeper._log_bounds, "check", look)
    with pytest.raises(OSError, match="Input/output error"):
        scene.keeper._bound_logs()
    assert [at for at, _ in scene.due] == [scene.now + LOOK_S]
