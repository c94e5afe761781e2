"""One service's runtime in a router, with a plane, a registry follower and a keeper that are made up."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from turnout.config.settings import Address, Settings
from turnout.core.model import Daemon, Deployment, Identity, Snapshot
from turnout.planes.direct.doors import Doors
from turnout.planes.loop_priority import LoopPriority
from turnout.router import service_runtime
from turnout.router.exit_watch import ExitWatch
from turnout.router.follow.settings import OpenedSettings
from turnout.router.group_view import GroupView
from turnout.router.keeper_link import KeeperLink
from turnout.router.service_plane import ServicePlane
from turnout.router.service_runtime import RouterResources, ServiceRuntime
from turnout.router.upstream import REFUSED_PATIENCE_S
from turnout.state.home import Home
from turnout.system.file_watcher import Watcher
from turnout.system.interpreters import Interpreters
from turnout.testing import FakePlane

HOLD_S = 70.0


class FakeKeeper:
    draining: tuple[int, ...] = ()

    def __init__(self) -> None:
        self.interpreters = Interpreters()
        self.sent: list[Mapping[str, Any]] = []

    def send(self, message: Mapping[str, Any]) -> None:
        self.sent.append(message)


class FakeFollower:
    """A registry that says what the test says, and never touches a file."""

    def __init__(self, _loop: object, _files: object, _live: object, handler: Any, _attention: object) -> None:
        self.handler = handler
        self.snapshot = Snapshot()
        self.applied_revision = -1
        self.writes_in_flight = 0
        self.looks = 0
        self.closed = False
        self.at_rest = asyncio.Event()
        self.at_rest.set()

    async def run(self) -> None:
        await asyncio.Event().wait()

    async def look(self) -> None:
        self.looks += 1

    def look_soon(self) -> None:
        self.looks += 1

    def written_ago_s(self) -> float:
        return 0.0

    async def idle(self) -> None:
        await self.at_rest.wait()

    @contextmanager
    def uninterrupted(self) -> Generator[None]:
        yield

    def settings_changed(self) -> None:
        self.looks += 1

    def close(self) -> None:
        self.closed = True

    def apply(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.applied_revision += 1
        self.handler.on_snapshot(snapshot)


class Plane(FakePlane):
    """Refuses listeners while ``short``."""

    name = "stream"
    short = False

    def add_listener(self, sock: socket.socket) -> None:
        if self.short:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        super().add_listener(sock)


class Scene:
    def __init__(self, runtime: ServiceRuntime, plane: Plane, keeper: FakeKeeper) -> None:
        self.runtime = runtime
        self.plane = plane
        self.keeper = keeper
        self.follower = cast("FakeFollower", runtime.registry)
        self.now = 0.0

    def offer(self, *listeners: socket.socket, **message: Any) -> None:
        """The keeper sends all listeners of the service, each as a descriptor of the router's own."""
        copies = [socket.socket(fileno=os.dup(listener.fileno())) for listener in listeners]
        self.runtime.take_listeners(copies, {"op": "listen", "service": "s", **message})

    def accepted_from(self) -> list[tuple[str, int]]:
        return [sock.getsockname()[:2] for sock in self.plane.listeners]

    def poll(self) -> None:
        self.now += 10
        self.runtime.on_poll(self.now)


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    @asynccontextmanager
    async def running() -> AsyncGenerator[Scene]:
        monkeypatch.setattr(service_runtime, "RegistryFollower", FakeFollower)
        loop, keeper, plane = asyncio.get_running_loop(), FakeKeeper(), Plane()
        home = Home(tmp_path)
        settings = Settings(name="s", listen=(Address("127.0.0.1", 1),), hold_timeout_s=HOLD_S)
        opened = OpenedSettings(home.service("s"), settings, 0, Watcher(home.service("s").settings))
        with ThreadPoolExecutor(1) as threads:
            link = cast("KeeperLink", keeper)
            resources = RouterResources(loop, home, threads, threads, link, LoopPriority())
            exits = ExitWatch(loop, lambda _boot_id: None)
            setup = ServicePlane(plane, "for a test", GroupView("s", link), Doors(), exits, None)
            runtime = ServiceRuntime(resources, opened, setup)
            task = asyncio.ensure_future(runtime.run())
            await asyncio.sleep(0)
            yield Scene(runtime, plane, keeper)
            task.cancel()
            await asyncio.wait([task])

    return running


@contextmanager
def listeners(count: int) -> Generator[list[socket.socket]]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        yield sockets
    finally:
        for sock in sockets:
            sock.close()


def serving() -> Snapshot:
    daemon = Daemon("a", port=20001, identity=Identity(0), owned=True)
    return Snapshot({"a": daemon}, deployment=Deployment(1, active_boot_id="a"))


def test_clients_are_held_until_the_registry_was_read_and_then_go_where_it_says(scene: Callable[[], Any]) -> None:
    async def run() -> None:
        async with scene() as at:
            assert (at.plane.target, at.plane.pointed[-1].patience_s) == (None, HOLD_S)
            assert not at.runtime.ready
            at.follower.apply(serving())
            assert at.runtime.ready
            assert at.plane.target.boot_id == "a"
            assert at.plane.pointed[-1].patience_s == REFUSED_PATIENCE_S

    asyncio.run(run())


def test_a_router_that_stands_by_accepts_nothing_and_all_it_has_once_it_leads(scene: Callable[[], Any]) -> None:
    async def run() -> None:
        async with scene() as at:
            with listeners(2) as (first, second):
                at.offer(first, second)
                assert (at.accepted_from(), at.runtime.decides) == ([], False)
                at.runtime.become_leader()
                assert at.accepted_from() == [first.getsockname(), second.getsockname()]
                assert at.runtime.decides
                at.runtime.become_leader()
                assert len(at.accepted_from()) == 2, "once"

    asyncio.run(run())


def test_each_offer_names_all_listeners_what_is_known_stays_and_what_is_left_out_is_closed(
    scene: Callable[[], Any],
) -> None:
    async def run() -> None:
        async with scene() as at:
            at.runtime.become_leader()
            with listeners(3) as (first, second, third):
                at.offer(first, second)
                kept, dropped = at.runtime.sockets
                at.offer(first, third)
                assert at.runtime.sockets[0] is kept, "another descriptor of the same listener is closed"
                assert dropped.fileno() == -1
                assert at.accepted_from() == [first.getsockname(), third.getsockname()]

    asyncio.run(run())


def test_a_listener_that_cannot_be_accepted_from_is_tried_again_and_logged_once(
    scene: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        async with scene() as at:
            at.runtime.become_leader()
            with listeners(1) as (first,):
                at.plane.short = True
                at.offer(first)
                at.poll()
                at.poll()
                assert at.accepted_from() == []
                at.plane.short = False
                at.poll()
                assert at.accepted_from() == [first.getsockname()]

    asyncio.run(run())
    lines = [record.getMessage() for record in caplog.records]
    assert [line.startswith("s: cannot accept at") for line in lines] == [True, False]
    assert lines[1] == "s: accepts now"


def test_a_router_that_drains_accepts_nothing_and_counts_the_clients_it_has(scene: Callable[[], Any]) -> None:
    async def run() -> None:
        async with scene() as at:
            at.runtime.become_leader()
            at.follower.apply(serving())
            with listeners(1) as (first,):
                at.offer(first)
                at.plane.connect(3)
                assert at.runtime.clients_left() == 0, "it does not drain yet"
                (own,) = at.runtime.sockets
                at.runtime.begin_drain()
                assert (at.plane.accepting, at.runtime.sockets, own.fileno()) == (False, [], -1)
                assert at.runtime.clients_left() == 3
                at.plane.disconnect("a", 3)
                assert at.runtime.clients_left() == 0
                at.follower.apply(Snapshot(deployment=Deployment(1)))
                assert at.plane.pointed[-1].patience_s == HOLD_S, "its successor may know of a daemon on its way"

    asyncio.run(run())


def test_what_is_being_decided_is_finished_before_the_lead_is_released(scene: Callable[[], Any]) -> None:
    async def run() -> None:
        async with scene() as at:
            at.runtime.become_leader()
            await asyncio.sleep(0)
            at.follower.at_rest.clear()
            stopped = asyncio.ensure_future(at.runtime.stop_deciding())
            for _ in range(20):
                await asyncio.sleep(0)
            assert not stopped.done(), "a write is in flight"
            assert not at.runtime.decides
            at.follower.at_rest.set()
            await asyncio.wait_for(stopped, 20)

    asyncio.run(run())


def test_the_death_of_the_active_daemon_has_it_checked_at_once(scene: Callable[[], Any]) -> None:
    async def run() -> None:
        async with scene() as at:
            at.follower.apply(serving())
            checks: list[str] = []
            at.runtime.health.monitor.check_now = lambda: checks.append("check")
            at.runtime.on_daemon_exit("another")
            assert checks == []
            at.runtime.on_daemon_exit("a")
            assert checks == ["check"]

    asyncio.run(run())


def test_a_drain_waits_for_the_journal_entry_of_the_write_that_begins_it(scene: Callable[[], Any]) -> None:
    async def run() -> None:
        async with scene() as at:
            drains = Snapshot({"a": Daemon("a", port=1, draining=True)}, deployment=Deployment(2))
            at.follower.writes_in_flight = 1
            at.follower.apply(drains)
            assert at.runtime.drainer.drains == {}
            at.follower.writes_in_flight = 0
            at.follower.apply(drains)
            assert list(at.runtime.drainer.drains) == ["a"]

    asyncio.run(run())


def test_the_group_is_reported_to_the_keeper_once_this_router_leads(scene: Callable[[], Any]) -> None:
    async def run() -> None:
        async with scene() as at:
            with listeners(1) as (first,):
                at.offer(first, version=4, home=2, places={})
                assert at.keeper.sent == []
                at.runtime.become_leader()
                assert at.keeper.sent == [{"op": "seen", "service": "s", "version": 4, "slots": (2,), "slot": 2}]

    asyncio.run(run())


def test_the_end_closes_the_plane_the_listeners_and_the_registry(scene: Callable[[], Any]) -> None:
    async def run() -> None:
        async with scene() as at:
            with listeners(1) as (first,):
                at.offer(first)
                (own,) = at.runtime.sockets
                ended = at
        assert (ended.plane.closed, ended.follower.closed, own.fileno()) == (True, True, -1)

    asyncio.run(run())


def test_a_status_asks_the_kernel_only_for_daemons_that_may_have_clients(scene: Callable[[], Any]) -> None:
    """Each question walks the kernel's table of connections, on the loop, and a registry may name thousands."""
    others = {f"other-{number}": Daemon(f"other-{number}", port=30000 + number) for number in range(5)}
    drains = {"d": Daemon("d", port=20002, draining=True)}
    named = {boot_id: Daemon(boot_id, port=20003) for boot_id in ("a", "c", "o")}
    block = Deployment(1, active_boot_id="a", candidate_boot_id="c", old_boot_id="o")

    async def run() -> None:
        async with scene() as at:
            at.follower.apply(Snapshot({**others, **drains, **named}, deployment=block))
            asked: list[str] = []

            def ask(boot_id: str) -> int:
                asked.append(boot_id)
                return 3

            status = msgspec.structs.replace(at.runtime.report, elsewhere=ask).status()
            assert sorted(asked) == ["a", "c", "d", "o"]
            assert status["elsewhere"] == dict.fromkeys(asked, 3)

    asyncio.run(run())
