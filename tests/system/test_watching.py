"""Children that cannot be watched, and shims that say nothing: no number stays behind in the selector."""

from __future__ import annotations

import errno
import os
import selectors
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from process_support import Started, line_of, open_descriptors
from support import eventually
from turnout.core.model import Identity
from turnout.errors import NotBegunError
from turnout.keeper import children as children_module
from turnout.keeper import orphans
from turnout.keeper.children import Child, Children
from turnout.system.boot_processes import BootProcesses
from turnout.system.process import ProcessHandle, identify, is_alive
from turnout.system.shim import Shim
from turnout.system.spawn import SpawnRequest, Start
from turnout.system.spawn_record import SpawnRecord, read_records, write_record


class FewWatches(selectors.DefaultSelector):
    """A selector that the kernel allows so many descriptors (epoll_ctl(2), ENOSPC)."""

    most = 100

    def register(self, fileobj: Any, events: int, data: object = None) -> selectors.SelectorKey:
        if len(self.get_map()) >= self.most:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().register(fileobj, events, data)


class Stage:
    """Children of which nothing is forked here. Owns the selector."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.selector = FewWatches()
        self.due: list[Callable[[], None]] = []
        self.said: list[str] = []
        self.children = Children(
            self.selector, lambda _s, action: self.due.append(action), lambda _: None, self.said.append
        )

    def request(self) -> SpawnRequest:
        return SpawnRequest("b1", "svc", ("daemon",), "/", {}, self.directory / "b1.log", self.directory / "b1.json")

    def spawn(self) -> list[Child | Exception]:
        results: list[Child | Exception] = []
        self.children.spawn_daemon(self.request(), results.append)
        return results

    def run(self) -> None:
        due, self.due = self.due, []
        for action in due:
            action()

    def record(self, daemon: Identity, shim: Identity | None = None) -> SpawnRecord:
        record = SpawnRecord("b1", "svc", daemon, str(self.directory / "b1.log"), 1.0, shim=shim)
        write_record(self.directory / "b1.json", record)
        return record


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    stage.children.close()
    stage.selector.close()


@pytest.fixture
def started() -> Iterator[Started]:
    with Started() as found:
        yield found


@pytest.fixture
def shim(started: Started) -> subprocess.Popen[bytes]:
    """A parent that waits for its child, whose number it prints, as a shim does."""
    return started.run("sh", "-c", "sleep 600 & echo $!; wait")


@pytest.mark.parametrize("most", [0, 1, 2])
def test_a_daemon_that_cannot_be_watched_does_not_run(
    stage: Stage, shim: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    daemon = identify(int(line_of(shim)))
    before = open_descriptors()

    def start(_: SpawnRequest) -> Start:
        stage.record(daemon)
        report, far = os.pipe()
        os.close(far)
        yield from ()
        return ProcessHandle.open(daemon), Shim(ProcessHandle.open(identify(shim.pid)), report)

    monkeypatch.setattr(children_module, "spawn_behind_shim", start)
    stage.selector.most = most
    (error,) = stage.spawn()
    assert isinstance(error, NotBegunError)
    assert "cannot watch b1" in error.message
    assert open_descriptors() == before
    assert not stage.selector.get_map()
    assert stage.children.get("b1") is None
    assert read_records(stage.directory)["b1"].ended
    eventually(lambda: not is_alive(daemon))
    shim.wait(10)
    stage.run()
    assert len(stage.children) == 0, "its ending is over"


def test_a_shim_that_ends_without_a_report_leaves_no_number_in_the_selector(
    stage: Stage, shim: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was frozen for longer than its report is waited for."""
    daemon = identify(int(line_of(shim)))
    report, far = os.pipe()

    def start(_: SpawnRequest) -> Start:
        yield from ()
        return ProcessHandle.open(daemon), Shim(ProcessHandle.open(identify(shim.pid)), report)

    monkeypatch.setattr(children_module, "spawn_behind_shim", start)
    stage.record(daemon)
    (child,) = stage.spawn()
    assert isinstance(child, Child)
    stage.children._process_ended(child)
    stage.run()  # the time for the report is over
    stage.children._shim_ended("b1", stage.children._shims["b1"])
    os.close(far)
    assert not stage.selector.get_map()


def test_what_cannot_be_adopted_for_want_of_a_descriptor_is_not_taken_for_ended(
    stage: Stage, shim: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = stage.record(identify(int(line_of(shim))), identify(shim.pid))
    before = open_descriptors()
    for most in (0, 1):
        stage.selector.most = most
        assert not stage.children.adopt(record, "svc", stage.directory / "b1.json")

    def no_descriptor(_: Identity) -> ProcessHandle:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    stage.children.close()
    for key in list(stage.selector.get_map().values()):
        stage.selector.unregister(key.fd)
    assert open_descriptors() == before
    with monkeypatch.context() as patch:
        patch.setattr(ProcessHandle, "open", no_descriptor)
        assert not stage.children.adopt(record, "svc", stage.directory / "b1.json")
    assert not read_records(stage.directory)["b1"].ended
    stage.selector.most = 100
    assert stage.children.adopt(record, "svc", stage.directory / "b1.json")
    assert stage.children.get("b1")


@pytest.mark.parametrize("ended", [True, False])
def test_a_stop_says_what_outlived_kill_and_whether_the_daemon_did(
    stage: Stage, shim: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, *, ended: bool
) -> None:
    worker = identify(int(line_of(shim)))
    if not ended:
        assert stage.children.adopt(stage.record(identify(shim.pid)), "svc", stage.directory / "b1.json")
    monkeypatch.setattr(ProcessHandle, "signal", lambda *_: None)  # what hangs in the kernel heeds none
    monkeypatch.setattr(orphans, "processes_of", lambda _: BootProcesses([ProcessHandle.open(worker)]))
    monkeypatch.setattr(orphans, "_UNKILLABLE_AFTER_S", 0.0)
    answers: list[Mapping[str, Any]] = []
    stage.children.end_orphans("b1", signal.SIGTERM, 0.0, answers.append)
    assert answers == [], "KILL has just been sent"
    stage.run()
    assert answers == [{"ok": True, "gone": ended, "left": [worker.pid]}]
