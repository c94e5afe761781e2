"""The follower of a made-up registry: when it reads, what it applies and corrects, which verbs it answers."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fake_time import AtOnce, SkippingLoop
from turnout.core.model import Daemon, Deployment, Snapshot
from turnout.core.outcome import Outcome, Reason, apply, refuse
from turnout.errors import LockTimeoutError, StateUnwritableError, TurnoutError
from turnout.planes.loop_priority import LoopPriority
from turnout.router.follow.file_threads import FileThreads
from turnout.router.follow.registry import (
    KEEP_EVERY_S,
    REST_S,
    SETTINGS_EVERY_S,
    UNREADABLE_AGAIN_S,
    RegistryFollower,
)
from turnout.system.file_watcher import Watcher
from turnout.system.inotify import Notice


@dataclass
class Registry:
    """A registry in memory. ``error``: what each access ends with."""

    path: Path
    snapshot: Snapshot = field(default_factory=lambda: Snapshot(deployment=Deployment(1, revision=1)))
    error: Exception | None = None
    repairs: tuple[str, ...] = ()
    kept: bool = True
    ahead: bool = False
    read_at: list[float] = field(default_factory=list)
    settled_at: list[float] = field(default_factory=list)
    settle_error: Exception | None = None

    def read(self) -> Any:
        self.read_at.append(asyncio.get_running_loop().time())
        if self.error:
            raise self.error
        return SimpleNamespace(
            snapshot=self.snapshot,
            fingerprint=SimpleNamespace(ctime_ns=1),
            settled=self.kept and not self.repairs,
            repairs=self.repairs,
            ahead=self.ahead,
        )

    def settle(self, *, lock_timeout_s: float) -> Any:
        assert lock_timeout_s == 0, "a router never waits for the lock to put a file right"
        self.settled_at.append(asyncio.get_running_loop().time())
        if self.settle_error:
            raise self.settle_error
        repairs, self.repairs, self.kept = self.repairs, (), True
        return SimpleNamespace(repairs=repairs)

    def update(self, change: Callable[[Snapshot], Outcome]) -> Outcome:
        if self.error:
            raise self.error
        outcome = change(self.snapshot)
        self.snapshot = outcome.snapshot
        return outcome


class Handler:
    def __init__(self) -> None:
        self.decides = True
        self.revisions: list[int] = []
        self.polls = 0
        self.error: Exception | None = None

    def on_snapshot(self, snapshot: Snapshot) -> None:
        self.revisions.append(snapshot.deployment.revision)

    def on_poll(self, _now: float) -> None:
        self.polls += 1
        if self.error:
            raise self.error


class Scene:
    """A follower whose time passes at once; no file of the registry exists, so only what the test asks for is read."""

    def __init__(self, root: Path) -> None:
        self.registry = Registry(root / "registry.json")
        self.handler = Handler()
        self.threads = AtOnce()
        self.taken: list[object] = []
        self.written: object = None
        self.live = SimpleNamespace(
            service=SimpleNamespace(registry=self.registry, name="s"),
            settings=SimpleNamespace(source=""),
            look_at_settings=lambda: self.written,
            take=self.taken.append,
            registry_of=lambda _written: self.registry,
            begin_look=lambda: lambda: None,
            take_file=lambda *_: None,
        )
        live: Any = self.live
        files = FileThreads(self.threads, self.threads, self.threads, self.threads)
        self.follower = RegistryFollower(asyncio.get_running_loop(), files, live, self.handler, LoopPriority())

    def revise(self, revision: int) -> None:
        self.registry.snapshot = Snapshot(deployment=Deployment(1, revision=revision))


@asynccontextmanager
async def following(root: Path) -> AsyncGenerator[Scene]:
    scene = Scene(root)
    task = asyncio.ensure_future(scene.follower.run())
    await scene.follower.look()
    yield scene
    task.cancel()
    scene.follower.close()


def play(root: Path, scenario: Callable[[Scene], Any]) -> None:
    async def run() -> None:
        async with following(root) as scene:
            await scenario(scene)

    with asyncio.Runner(loop_factory=SkippingLoop) as runner:
        runner.run(run())


@pytest.fixture(autouse=True)
def no_hints(monkeypatch: pytest.MonkeyPatch) -> None:
    """No inotify, and no file that changes: a look is one that the follower decides on."""
    monkeypatch.setattr(Notice, "of", lambda _path: None)
    monkeypatch.setattr(Watcher, "poll", lambda _self: False)


def test_what_is_read_is_applied_and_an_older_revision_is_not(tmp_path: Path) -> None:
    async def scenario(at: Scene) -> None:
        assert (at.handler.revisions, at.follower.applied_revision) == ([1], 1)
        at.revise(5)
        await at.follower.look()
        at.revise(4)  # a read that was overtaken by a write of this router
        await at.follower.look()
        assert (at.handler.revisions, at.follower.applied_revision) == ([1, 5], 5)
        assert at.follower.snapshot.deployment.revision == 5

    play(tmp_path, scenario)


def test_a_registry_of_the_same_revision_is_handed_on_for_its_daemons(tmp_path: Path) -> None:
    async def scenario(at: Scene) -> None:
        at.registry.snapshot = replace(at.registry.snapshot, daemons={"a": Daemon("a", port=1)})
        await at.follower.look()
        assert at.handler.revisions == [1, 1]
        assert "a" in at.follower.snapshot.daemons

    play(tmp_path, scenario)


@pytest.mark.parametrize("error", [TurnoutError("damaged"), OSError(errno.EIO, os.strerror(errno.EIO))])
def test_a_registry_that_cannot_be_read_changes_nothing_and_is_read_again_in_a_second(
    tmp_path: Path, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(at: Scene) -> None:
        at.registry.read_at.clear()
        at.registry.error = error
        at.written = "settings"
        await at.follower.look()
        assert (at.handler.revisions, at.taken) == ([1], ["settings"]), "what a verb wrote is not lost with it"
        at.written, at.registry.error = None, None
        await asyncio.sleep(0.9 * UNREADABLE_AGAIN_S)
        assert len(at.registry.read_at) == 1
        await asyncio.sleep(0.2 * UNREADABLE_AGAIN_S)
        assert len(at.registry.read_at) == 2
        assert at.handler.revisions == [1, 1]

    play(tmp_path, scenario)
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1


def test_where_no_thread_can_be_had_it_is_read_again_in_a_second(tmp_path: Path) -> None:
    async def scenario(at: Scene) -> None:
        at.registry.read_at.clear()
        at.threads.error = OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        await at.follower.look()
        at.threads.error = None
        await asyncio.sleep(1.1 * UNREADABLE_AGAIN_S)
        assert len(at.registry.read_at) == 1

    play(tmp_path, scenario)


def test_what_a_writer_without_the_lock_undid_is_put_back_at_once_by_the_router_that_leads(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(at: Scene) -> None:
        at.registry.repairs = ("the block was put back",)
        at.handler.decides = False
        await at.follower.look()
        assert at.registry.settled_at == [], "it stands by"
        at.handler.decides = True
        await at.follower.look()
        assert len(at.registry.settled_at) == 1

    play(tmp_path, scenario)
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "s: the block was put back"
    ]


def test_a_mere_heartbeat_is_kept_once_a_second_at_most_and_the_last_one_is_not_forgotten(tmp_path: Path) -> None:
    async def scenario(at: Scene) -> None:
        for _ in range(5):
            at.registry.kept = False
            await at.follower.look()
        assert len(at.registry.settled_at) == 1
        await asyncio.sleep(1.1 * KEEP_EVERY_S)
        assert len(at.registry.settled_at) == 2
        at.registry.kept, at.registry.ahead = False, True
        await at.follower.look()
        assert len(at.registry.settled_at) == 3, "a deployment that moved on is kept at once"

    play(tmp_path, scenario)


def test_a_file_that_a_verb_is_writing_is_put_right_a_moment_later(tmp_path: Path) -> None:
    async def scenario(at: Scene) -> None:
        at.registry.repairs = ("the block was put back",)
        at.registry.settle_error = LockTimeoutError("a verb writes")
        await at.follower.look()
        at.registry.settle_error = None
        await asyncio.sleep(0.1)
        assert len(at.registry.settled_at) == 2
        assert not at.registry.repairs

    play(tmp_path, scenario)


def test_a_file_that_cannot_be_put_right_is_tried_again_in_a_second(tmp_path: Path) -> None:
    async def scenario(at: Scene) -> None:
        at.registry.repairs = ("the block was put back",)
        at.registry.settle_error = StateUnwritableError("disk full")
        await at.follower.look()
        await asyncio.sleep(2.5 * UNREADABLE_AGAIN_S)
        assert len(at.registry.settled_at) == 3

    play(tmp_path, scenario)


def test_a_verb_is_answered_once_its_revision_is_applied(tmp_path: Path) -> None:
    async def scenario(at: Scene) -> None:
        answers: list[tuple[str, int]] = []
        at.follower.when_applied(1, lambda revision: answers.append(("known", revision)))
        assert answers == [("known", 1)]
        at.registry.read_at.clear()
        at.follower.when_applied(3, lambda revision: answers.append(("third", revision)))
        at.follower.when_applied(9, lambda revision: answers.append(("ninth", revision)))
        await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        assert at.registry.read_at, "the registry is read now, and not at the next poll"
        at.revise(4)
        await at.follower.look()
        assert answers[1:] == [("third", 4)]
        at.revise(9)
        await at.follower.look()
        assert answers[2:] == [("ninth", 9)]

    play(tmp_path, scenario)


def test_of_verbs_that_wait_the_oldest_are_dropped_beyond_a_bound(tmp_path: Path) -> None:
    async def scenario(at: Scene) -> None:
        answers: list[int] = []
        for number in range(300):
            at.follower.when_applied(2, lambda _revision, number=number: answers.append(number))  # type: ignore[misc]
        at.revise(2)
        await at.follower.look()
        assert answers == list(range(300 - 256, 300))

    play(tmp_path, scenario)


def test_an_event_of_this_router_is_applied_at_once(tmp_path: Path) -> None:
    async def scenario(at: Scene) -> None:
        outcome = await at.follower.update(lambda snap: apply(snap, snap.deployment))
        assert outcome.applied
        assert (at.follower.applied_revision, at.handler.revisions) == (2, [1, 2])
        assert at.follower.writes_in_flight == 0

    play(tmp_path, scenario)


def test_an_event_that_is_refused_has_the_registry_read_for_the_reason(tmp_path: Path) -> None:
    async def scenario(at: Scene) -> None:
        at.revise(7)  # a verb came in between
        outcome = await at.follower.update(lambda snap: refuse(snap, Reason.ACTIVE_CHANGED))
        assert not outcome.applied
        assert at.handler.revisions == [1, 7]

    play(tmp_path, scenario)


def test_an_event_that_cannot_be_written_is_raised_and_leaves_nothing_in_flight(tmp_path: Path) -> None:
    async def scenario(at: Scene) -> None:
        at.registry.error = StateUnwritableError("disk full")
        with pytest.raises(StateUnwritableError):
            await at.follower.update(lambda snap: apply(snap, snap.deployment))
        at.registry.error = None
        assert at.follower.writes_in_flight == 0
        await asyncio.wait_for(at.follower.idle(), 1)
        assert at.follower.applied_revision == 1

    play(tmp_path, scenario)


def test_the_lead_is_released_after_what_must_not_be_interrupted_or_after_ten_seconds(tmp_path: Path) -> None:
    async def scenario(at: Scene) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        with at.follower.uninterrupted():
            await at.follower.idle()
            assert loop.time() - began == pytest.approx(REST_S, abs=0.2), "a file system may hang"
            waiting = asyncio.ensure_future(at.follower.idle())
            await asyncio.sleep(1)
            assert not waiting.done()
        await asyncio.wait_for(waiting, 1)

    play(tmp_path, scenario)


def test_settings_are_looked_at_once_a_second(tmp_path: Path) -> None:
    async def scenario(at: Scene) -> None:
        looks: list[float] = []
        at.live.look_at_settings = lambda: looks.append(asyncio.get_running_loop().time())
        await asyncio.sleep(10 * SETTINGS_EVERY_S)
        assert 9 <= len(looks) <= 11
        assert at.handler.polls > 100, "while no hint of the kernel comes, the file is looked at often"

    play(tmp_path, scenario)


def test_a_follower_that_is_closed_takes_nothing_any_more(tmp_path: Path) -> None:
    async def run() -> None:
        scene = Scene(tmp_path)
        scene.written = "settings"
        await asyncio.sleep(0)
        assert scene.handler.polls == 1, "a look is under way"
        scene.follower.close()
        await asyncio.sleep(5)
        assert (scene.taken, scene.handler.polls) == ([], 1)

    with asyncio.Runner(loop_factory=SkippingLoop) as runner:
        runner.run(run())


def test_a_poll_that_fails_is_followed_by_the_next_one(tmp_path: Path) -> None:
    """What goes wrong in it once must not end the mtime poll for the rest of the router's life."""

    async def scenario(at: Scene) -> None:
        loop = asyncio.get_running_loop()
        failed: list[object] = []
        loop.set_exception_handler(lambda _loop, context: failed.append(context["exception"]))
        at.handler.error = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        await asyncio.sleep(1)
        at.handler.error = None
        assert len(failed) > 1
        before = at.handler.polls
        await asyncio.sleep(1)
        assert at.handler.polls > before

    play(tmp_path, scenario)
