"""The keeper's children against processes that are made up: what is signalled when, and who is answered."""

from __future__ import annotations

import errno
import math
import os
import signal
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any, Self, cast

import pytest

from turnout.core.model import Identity
from turnout.errors import NotBegunError
from turnout.keeper import children as children_module
from turnout.keeper import orphans
from turnout.keeper.children import Child, Children
from turnout.system.boot_processes import Boot, BootProcesses
from turnout.system.process import ProcessHandle
from turnout.system.spawn import SpawnRequest
from turnout.system.spawn_record import EndRecord, SpawnRecord

TERM, CONT, KILL = signal.SIGTERM, signal.SIGCONT, signal.SIGKILL


class FakeProcess:
    """A handle whose signals are noted; its process ends when the test says so."""

    def __init__(self, scene: Scene, name: str, pid: int) -> None:
        self.scene = scene
        self.name = name
        self.identity = Identity(pid, 1)
        self.closed = False

    def fileno(self) -> int:
        return 1000 + self.identity.pid

    def signal(self, number: int) -> None:
        self.scene.signals.append((self.name, signal.Signals(number)))

    def signal_group(self, number: int) -> None:
        self.scene.signals.append((f"group of {self.name}", signal.Signals(number)))

    def close(self) -> None:
        self.closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class FakeShim:
    """Reports the daemon's status through a selector that the test dispatches."""

    def __init__(self, handle: FakeProcess) -> None:
        self.handle = handle
        self.report = 5000 + handle.identity.pid
        self.exit_status: int | None = None

    @property
    def identity(self) -> Identity:
        return self.handle.identity

    def status(self) -> int | None:
        return self.exit_status

    def close_report(self) -> None:
        self.report = -1

    def close(self) -> None:
        self.close_report()
        self.handle.close()


class FakeSelector:
    def __init__(self) -> None:
        self.watched: dict[int, Callable[[], None]] = {}
        self.full = False

    def register(self, fd: Any, _events: int, action: Callable[[], None]) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        assert fd not in self.watched
        self.watched[fd] = action

    def unregister(self, fd: Any) -> None:
        del self.watched[fd]


class Scene:
    """One daemon ``b1`` behind a shim. ``left``: processes of the boot that outlive it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.now = 1000.0
        self.due: list[tuple[float, Callable[[], None]]] = []
        self.signals: list[tuple[str, signal.Signals]] = []
        self.ends: list[tuple[str, int | None]] = []
        self.ended: list[str] = []
        self.lines: list[str] = []
        self.left: list[FakeProcess] = []
        self.selector = FakeSelector()
        self.daemon = FakeProcess(self, "daemon", 10)
        self.shim = FakeShim(FakeProcess(self, "shim", 11))
        self.children = Children(
            cast("Any", self.selector), self.after, lambda child: self.ended.append(child.boot_id), self.lines.append
        )

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        self.due.append((self.now + delay_s, action))

    def pass_s(self, seconds: float) -> None:
        end = self.now + seconds
        while ready := [entry for entry in self.due if entry[0] <= end]:
            entry = min(ready, key=lambda entry: entry[0])
            self.due.remove(entry)
            self.now = max(self.now, entry[0])
            entry[1]()
        self.now = end

    def request(self, boot_id: str = "b1", service: str = "a") -> SpawnRequest:
        path = self.root / f"{boot_id}.json"
        return SpawnRequest(boot_id, service, ("daemon",), "/", {}, self.root / "log", path)

    def started(self) -> Child:
        results: list[Child | Exception] = []
        self.children.spawn_daemon(self.request(), results.append)
        (child,) = results
        assert isinstance(child, Child), child
        return child

    def daemon_ends(self, status: int = 0) -> None:
        """The shim reports the end."""
        self.shim.exit_status = status
        self.selector.watched[self.shim.report]()

    def to(self, name: str) -> list[signal.Signals]:
        return [number for process, number in self.signals if process == name]


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    scene = Scene(tmp_path)

    def start(_request: SpawnRequest) -> Generator[Any, bool, Any]:
        yield from ()
        return scene.daemon, scene.shim

    def record_end(path: Path, status: int | None) -> None:
        scene.ends.append((path.stem, status))

    monkeypatch.setattr(time, "monotonic", lambda: scene.now)
    monkeypatch.setattr(children_module, "spawn_behind_shim", start)
    monkeypatch.setattr(children_module, "record_end", record_end)
    monkeypatch.setattr(children_module, "bound", lambda _path: 0)
    monkeypatch.setattr(children_module, "is_shell", lambda _identity: False)
    monkeypatch.setattr(
        orphans, "processes_of", lambda _boot: BootProcesses(cast("list[ProcessHandle]", list(scene.left)))
    )
    monkeypatch.setattr(orphans, "fed_by_others", lambda _pids: set[int]())
    return scene


def test_a_daemon_that_ends_by_itself_is_recorded_and_noticed_once(scene: Scene) -> None:
    scene.started()
    assert scene.children.get("b1")
    scene.daemon_ends(256)
    scene.pass_s(60)
    assert (scene.ends, scene.ended) == ([("b1", 256)], ["b1"])
    assert scene.children.get("b1") is None
    assert scene.signals == []
    assert scene.daemon.closed


def test_what_a_daemon_leaves_behind_is_known_until_its_shim_ends(scene: Scene) -> None:
    scene.started()
    scene.daemon_ends()
    assert scene.children.boots_with_orphans() == ["b1"]
    scene.selector.watched[scene.shim.handle.fileno()]()
    assert scene.children.boots_with_orphans() == []
    assert scene.shim.handle.closed
    assert scene.selector.watched == {}


def test_a_stop_is_one_signal_and_its_answer_comes_when_nothing_is_left(scene: Scene) -> None:
    child = scene.started()
    answers: list[Mapping[str, Any]] = []
    scene.left = [FakeProcess(scene, "worker", 12)]
    scene.children.stop(child, TERM, 10.0, answers.append)
    scene.children.stop(child, TERM, 20.0, answers.append)
    assert scene.to("daemon") == [TERM, CONT], "the second request joins the first"
    assert scene.to("worker") == [], "a master ends its workers by itself"
    scene.daemon_ends()
    assert scene.to("worker") == [TERM, CONT]
    scene.pass_s(1)
    assert answers == []
    scene.left = []
    scene.pass_s(1)
    assert answers == [{"ok": True, "gone": True, "left": []}] * 2


def test_kill_comes_to_all_after_the_shortest_grace_that_was_asked_for(scene: Scene) -> None:
    child = scene.started()
    scene.left = [FakeProcess(scene, "worker", 12)]
    scene.children.stop(child, TERM, 100.0)
    scene.pass_s(1)
    scene.children.stop(child, TERM, 2.0)
    scene.pass_s(1.9)
    assert KILL not in scene.to("daemon") + scene.to("worker")
    scene.pass_s(0.2)
    assert KILL in scene.to("daemon")
    assert KILL in scene.to("worker")


def test_what_a_daemon_left_behind_has_the_rest_of_the_shortest_grace(scene: Scene) -> None:
    child = scene.started()
    scene.left = [FakeProcess(scene, "worker", 12)]
    scene.children.stop(child, TERM, 2.0)
    scene.children.stop(child, TERM, 100.0)
    scene.pass_s(1)
    scene.daemon_ends()
    scene.pass_s(0.9)
    assert scene.to("worker") == [TERM, CONT]
    scene.pass_s(0.2)
    assert KILL in scene.to("worker")


def test_a_request_with_less_grace_hastens_the_end_of_orphans(scene: Scene) -> None:
    scene.left = [FakeProcess(scene, "orphan", 12)]
    scene.children.end_orphans("b1", TERM, 100.0)
    scene.pass_s(1)
    scene.children.end_orphans("b1", TERM, 1.0)
    scene.pass_s(0.9)
    assert scene.to("orphan") == [TERM, CONT]
    scene.pass_s(0.2)
    assert KILL in scene.to("orphan")


def test_what_outlives_kill_is_named_and_not_waited_for(scene: Scene) -> None:
    child = scene.started()
    answers: list[Mapping[str, Any]] = []
    scene.children.stop(child, TERM, 1.0, answers.append)
    scene.left = [FakeProcess(scene, "hangs", 12)]
    scene.daemon_ends()
    scene.pass_s(30)
    assert answers == [{"ok": True, "gone": True, "left": [12]}]
    assert any("outlived KILL" in line for line in scene.lines)


@pytest.mark.parametrize("shell", [False, True])
def test_a_shell_that_does_not_end_has_what_it_runs_signalled_at_half_of_its_grace(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, *, shell: bool
) -> None:
    monkeypatch.setattr(children_module, "is_shell", lambda _identity: shell)
    child = scene.started()
    scene.left = [FakeProcess(scene, "daemon", 10), FakeProcess(scene, "command", 12)]
    scene.children.stop(child, signal.SIGINT, 10.0)
    scene.pass_s(4.9)
    assert scene.to("command") == []
    scene.pass_s(0.2)
    assert scene.to("command") == ([signal.SIGINT, CONT] if shell else [])
    assert scene.to("daemon") == [signal.SIGINT, CONT], "it had its signal"


def test_a_daemon_that_cannot_be_watched_is_ended_and_its_start_has_failed(scene: Scene) -> None:
    scene.left = [FakeProcess(scene, "daemon again", 10)]
    scene.selector.full = True
    results: list[Child | Exception] = []
    scene.children.spawn_daemon(scene.request(), results.append)
    (error,) = results
    assert isinstance(error, NotBegunError)
    assert "cannot watch b1" in error.message
    assert scene.to("daemon again") == [KILL]
    assert (scene.children.get("b1"), scene.children.boots_with_orphans()) == (None, [])
    assert scene.ends == [("b1", None)]
    scene.left = []
    scene.pass_s(60)
    assert len(scene.children) == 0


def test_orphans_of_a_daemon_that_has_ended_are_ended_too(scene: Scene) -> None:
    answers: list[Mapping[str, Any]] = []
    scene.left = [FakeProcess(scene, "orphan", 12)]
    scene.children.end_orphans("b1", TERM, 5.0, answers.append)
    assert scene.to("orphan") == [TERM, CONT]
    assert len(scene.children) == 1, "a shutdown waits for it"
    scene.left = []
    scene.pass_s(1)
    assert (answers, len(scene.children)) == ([{"ok": True, "gone": True, "left": []}], 0)


def test_a_router_is_killed_with_its_group_and_no_boot_is_looked_for(scene: Scene) -> None:
    child = Child(
        "router-1", "", cast("ProcessHandle", scene.daemon), Path("/r"), Path("/l"), Identity(10, 1), mine=True
    )
    scene.children._all["router-1"] = child
    scene.children.kill(child)
    assert scene.signals == [("group of daemon", KILL), ("daemon", KILL)]
    assert child.kill_at == math.inf


def test_a_child_that_is_gone_is_not_killed(scene: Scene) -> None:
    child = scene.started()
    scene.daemon_ends()
    scene.children.kill(child)
    assert scene.signals == []


class Opened:
    """ProcessHandle.open: the processes that live, by pid; any other one has ended."""

    def __init__(self, *living: FakeProcess) -> None:
        self.living = {process.identity.pid: process for process in living}
        self.error: OSError | None = None

    def open(self, identity: Identity) -> FakeProcess:
        if self.error:
            raise self.error
        if identity.pid not in self.living:
            raise ProcessLookupError(identity.pid)
        return self.living[identity.pid]


def record_of(scene: Scene, *, shim: bool = False, ended: bool = False) -> SpawnRecord:
    end = EndRecord(0, 0.0) if ended else None
    shims = Identity(11, 1) if shim else None
    return SpawnRecord("b1", "a", scene.daemon.identity, str(scene.root / "log"), 0.0, ended=end, shim=shims)


def test_a_daemon_of_an_earlier_keeper_is_watched_by_its_pidfd(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children_module, "ProcessHandle", Opened(scene.daemon, scene.shim.handle))
    assert scene.children.adopt(record_of(scene, shim=True), "a", scene.root / "b1.json")
    assert scene.lines == ["adopted a b1, pid 10"]
    scene.selector.watched[scene.daemon.fileno()]()
    assert (scene.ends, scene.ended) == ([("b1", None)], ["b1"])
    assert scene.children.boots_with_orphans() == ["b1"], "its shim lives"


def test_a_daemon_that_ended_while_no_keeper_ran_is_recorded_so(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children_module, "ProcessHandle", Opened())
    assert scene.children.adopt(record_of(scene), "a", scene.root / "b1.json")
    assert (scene.ends, scene.ended, scene.lines) == ([("b1", None)], [], [])


def test_of_a_daemon_that_ended_the_shim_is_adopted_alone(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children_module, "ProcessHandle", Opened(scene.shim.handle))
    assert scene.children.adopt(record_of(scene, shim=True, ended=True), "a", scene.root / "b1.json")
    assert scene.children.boots_with_orphans() == ["b1"]
    assert scene.ends == []


@pytest.mark.parametrize("lacks", ["descriptor", "watch"])
def test_a_process_that_runs_and_cannot_be_watched_is_not_adopted_and_keeps_its_record(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, lacks: str
) -> None:
    opened = Opened(scene.daemon)
    opened.error = OSError(errno.EMFILE, os.strerror(errno.EMFILE)) if lacks == "descriptor" else None
    scene.selector.full = lacks == "watch"
    monkeypatch.setattr(children_module, "ProcessHandle", opened)
    assert not scene.children.adopt(record_of(scene), "a", scene.root / "b1.json")
    assert (scene.children.get("b1"), scene.ends) == (None, [])
    assert scene.lines[0].startswith("cannot adopt a b1: ")
    assert scene.daemon.closed is (lacks == "watch")


def test_nothing_is_looked_for_beside_the_boot(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    boots: list[Boot] = []

    def processes(boot: Boot) -> BootProcesses:
        boots.append(boot)
        return BootProcesses([])

    monkeypatch.setattr(orphans, "processes_of", processes)
    child = scene.started()
    scene.children.stop(child, TERM, 1.0)
    scene.daemon_ends()
    assert boots == [Boot("b1", scene.daemon.identity, scene.shim.identity)]
