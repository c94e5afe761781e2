"""The router's own writes, and what others are shown while one is under way."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from traffic import open_fds
from turnout.core.model import Deployment, Snapshot
from turnout.core.outcome import Outcome, apply
from turnout.errors import LockTimeoutError
from turnout.planes.loop_priority import LoopPriority
from turnout.router.follow import file_threads
from turnout.router.follow import registry as following_module
from turnout.router.follow.file_threads import FileThreads
from turnout.router.follow.registry import RegistryFollower
from turnout.system.daemon_threads import DaemonThreads
from turnout.system.inotify import Notice


class Registry:
    """A registry in memory, whose second write waits for ``go`` and fails."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.snapshot = Snapshot(deployment=Deployment(1, revision=1))
        self.writes = 0
        self.go = threading.Event()

    def update(self, change: Callable[[Snapshot], Outcome]) -> Outcome:
        self.writes += 1
        if self.writes == 2:
            assert self.go.wait(20)
            raise LockTimeoutError("another writer has the lock")
        outcome = change(self.snapshot)
        self.snapshot = outcome.snapshot
        return outcome

    def read(self) -> Any:  # a Read, as far as it is looked at
        return SimpleNamespace(
            snapshot=self.snapshot, fingerprint=SimpleNamespace(ctime_ns=1), settled=True, repairs=(), ahead=False
        )


class Host:
    """Puts off what it sees while a write is under way, as a service does for its drainer."""

    decides = True

    def __init__(self) -> None:
        self.following: RegistryFollower | None = None
        self.seen = -1
        self.sees = asyncio.Event()

    def on_snapshot(self, snapshot: Snapshot) -> None:
        assert self.following
        if not self.following.writes_in_flight:
            self.seen = snapshot.deployment.revision
            self.sees.set()

    def on_poll(self, now: float) -> None:
        pass


def live_of(registry: Registry, source: str = "", look: Callable[[], object] = lambda: None) -> Any:
    """Live settings, as far as a router that follows a registry asks for them."""
    return SimpleNamespace(
        service=SimpleNamespace(registry=registry, name="cache"),
        settings=SimpleNamespace(source=source),
        look_at_settings=lambda: None,
        registry_of=lambda _written: registry,
        begin_look=lambda: look,
        take_file=lambda *_: None,
    )


def test_what_was_put_off_for_a_write_that_fails_is_seen_after_it(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry.json")

    def next_revision(snap: Snapshot) -> Outcome:
        return apply(snap, snap.deployment)

    async def run(reading: ThreadPoolExecutor, writing: ThreadPoolExecutor) -> None:
        host = Host()
        live = live_of(registry)
        files = FileThreads(reading, writing, reading, reading)
        following = RegistryFollower(asyncio.get_running_loop(), files, live, host, LoopPriority())
        host.following = following
        task = asyncio.ensure_future(following.run())
        async with asyncio.timeout(20):
            await host.sees.wait()  # the first look, which nothing but its first poll has asked for
            host.sees.clear()
            applied = asyncio.ensure_future(following.update(next_revision))
            fails = asyncio.ensure_future(following.update(next_revision))
            await applied
            assert following.applied_revision == 2
            assert host.seen == 1, "the other write is under way"
            registry.go.set()
            await asyncio.wait([fails])
            assert isinstance(fails.exception(), LockTimeoutError)
            await host.sees.wait()
            assert host.seen == 2
        following.close()
        task.cancel()

    with ThreadPoolExecutor(2) as reading, ThreadPoolExecutor(1) as writing:
        asyncio.run(run(reading, writing))


@pytest.mark.parametrize("hanging", ["the configuration file", "the registry"])
def test_a_directory_that_hangs_is_said_once_and_so_is_that_it_answers_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, hanging: str
) -> None:
    monkeypatch.setattr(file_threads, "HANGS_S", 0.1)
    registry = Registry(tmp_path / "home" / "registry.json")
    hangs, go = threading.Event(), threading.Event()

    def hang() -> None:
        if not go.is_set():
            hangs.set()
            assert go.wait(20)

    def said(what: str) -> int:
        return sum(what in record.getMessage() for record in caplog.records)

    async def until(what: str) -> None:
        async with asyncio.timeout(20):
            while not said(what):  # noqa: ASYNC110  # no event tells
                await asyncio.sleep(0.01)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        reading, configuration = DaemonThreads("read"), DaemonThreads("configuration")
        live = live_of(registry, str(tmp_path / "project" / "turnout.toml"))
        if hanging == "the registry":
            live.look_at_settings = hang
        else:
            live.begin_look = lambda: hang
        host = Host()
        files = FileThreads(reading, reading, configuration, reading)
        following = host.following = RegistryFollower(loop, files, live, host, LoopPriority())
        where = tmp_path / ("home" if hanging == "the registry" else "project")
        await until(f"{where} has not answered for 0.1 s")
        assert hangs.is_set()
        await asyncio.sleep(0.2)  # twice the time after which it was said
        # of that directory: on a busy machine the other one may not answer for so long either
        assert (said(f"{where} has not answered"), said(f"{where} answers again")) == (1, 0)
        monkeypatch.setattr(file_threads, "HANGS_S", 20.0)
        go.set()
        await until(f"{where} answers again")
        await asyncio.sleep(0.1)  # a few looks fall into that time, of which each would say it again
        assert (said(f"{where} has not answered"), said(f"{where} answers again")) == (1, 1)
        following.close()
        files.shutdown()

    asyncio.run(run())


class FirstShort(LoopPriority):
    """There is no memory for the first descriptor that is to be watched."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def watch(self, fd: int) -> None:
        self.asked += 1
        if self.asked == 1:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        super().watch(fd)


def test_settings_that_come_with_a_source_of_hints_for_which_there_is_no_memory_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following_module, "HINTS_AGAIN_S", 0.05)
    monkeypatch.setattr(following_module, "SETTINGS_EVERY_S", 0.05)
    registry = Registry(tmp_path / "registry.json")
    if not (hints := Notice.of(registry.path)):
        pytest.skip("this file system gives no hints")
    hints.close()
    taken: list[object] = []

    async def run() -> None:
        threads = DaemonThreads("files")
        loop_priority = FirstShort()
        live = live_of(registry)
        live.look_at_settings = lambda: "written"
        live.take = taken.append
        host = Host()
        files = FileThreads(threads, threads, threads, threads)
        before = open_fds()
        following = host.following = RegistryFollower(asyncio.get_running_loop(), files, live, host, loop_priority)
        async with asyncio.timeout(20):
            while loop_priority.asked < 2:  # noqa: ASYNC110  # no event tells
                await asyncio.sleep(0.01)
        assert taken
        assert len(loop_priority.wakeup_fds) == 1
        following.close()
        assert open_fds() <= before
        files.shutdown()

    asyncio.run(run())
    assert taken[0] == "written"
