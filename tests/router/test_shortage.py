"""A router that has no descriptor or memory for a listener: it lives, serves what it has, says so once, tries again."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import resource
import socket
from collections.abc import AsyncGenerator, Callable, Generator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import uvloop

from traffic import open_fds
from turnout.config.settings import Address, Settings, dump_settings
from turnout.core.model import Daemon, Identity
from turnout.errors import ProtocolError
from turnout.planes.listeners import Listeners
from turnout.planes.plane import Counters
from turnout.planes.selection import Planes
from turnout.reuseport import feature_test
from turnout.reuseport.program import attach
from turnout.router import exit_watch, keeper_link, openings, service_runtime
from turnout.router.exit_watch import ExitWatch
from turnout.router.router import Router
from turnout.state.home import Home
from turnout.system import control_channel, files
from turnout.system.control_channel import Channel
from turnout.system.process import own_identity

FAILS = 2


class Short:
    """Stands before a call that takes a descriptor. ``left``: how often it fails; ``of_file``: for this file alone.

    ``of_file`` is the end of a path. A service that runs reads its own settings all the time, in a thread: where only
    the name is given, it takes the failures that are meant for another service.
    """

    def __init__(self, call: Callable[..., Any], *, of_file: str = "") -> None:
        self._call = call
        self._of_file = of_file
        self.left = 0
        self.failed = 0

    def __get__(self, owner: object, _: type) -> Callable[..., Any]:
        return partial(self, owner)

    def __call__(self, *args: Any, **more: Any) -> Any:
        if self.left and (not self._of_file or Path(args[0]).match(self._of_file)):
            self.left -= 1
            self.failed += 1
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return self._call(*args, **more)


@dataclass
class Keeper:
    """The router's keeper, as far as a router asks for it. Owns the listeners that it offers."""

    home: Home
    listeners: dict[str, socket.socket]
    channel: Channel | None = None

    def settle(self, name: str) -> None:
        """Make a service that can be offered."""
        home = self.home.service(name)
        home.create()
        sock = self.listeners[name] = socket.create_server(("127.0.0.1", 0))
        home.settings.write_bytes(dump_settings(Settings(name=name, listen=(Address(*sock.getsockname()[:2]),))))

    def offer(self, name: str) -> None:
        assert self.channel
        sock = self.listeners[name]
        self.channel.send({"op": "listen", "service": name, "addresses": [sock.getsockname()[:2]]}, [sock.fileno()])

    async def serve(self) -> None:
        """Answer each attach, and offer what the router lacks."""
        listener = control_channel.listen(self.home.keeper_sock)
        loop = asyncio.get_running_loop()
        try:
            while True:
                await readable(listener)
                channel = control_channel.accept(listener, may_send_fds=lambda _pid: True)
                assert channel
                self.channel = channel
                with contextlib.suppress(EOFError, ConnectionError):
                    while True:
                        await readable(channel)
                        for message, fds in channel.receive():
                            self._take(message, fds)
                self.channel = None
                channel.close()
        finally:
            loop.remove_reader(listener.fileno())
            listener.close()

    def _take(self, message: control_channel.Message, fds: list[int]) -> None:
        for fd in fds:
            os.close(fd)
        if message["op"] == "attach":
            assert self.channel
            self.channel.send({"re": message["id"], "ok": True, "services": sorted(self.listeners)})
            has = {name for name, _, _ in message["listeners"]}
            for name in self.listeners.keys() - has:
                self.offer(name)


async def readable(of: Channel | socket.socket) -> None:
    loop = asyncio.get_running_loop()
    there = asyncio.Event()
    loop.add_reader(of.fileno(), there.set)
    try:
        await there.wait()
    finally:
        loop.remove_reader(of.fileno())


@contextlib.asynccontextmanager
async def running(home: Home) -> AsyncGenerator[tuple[Router, Keeper]]:
    """A router in this process; whatever happened, it has not ended."""
    home.create()
    home.services.mkdir(exist_ok=True)
    keeper = Keeper(home, {})
    keeper.settle("first")
    async with asyncio.timeout(60):
        serving = asyncio.ensure_future(keeper.serve())
        router = Router(asyncio.get_running_loop(), home)
        lives = asyncio.ensure_future(router.run())
        try:
            await accepts(router, keeper, "first")
            yield router, keeper
            assert not lives.done(), "it ended, and all of its connections with it"
        finally:
            router.shut_down()
            await asyncio.wait([lives])
            serving.cancel()
            for sock in keeper.listeners.values():
                sock.close()


async def accepts(router: Router, keeper: Keeper, name: str) -> None:
    """Until the router has accepted a client of that service."""
    with socket.socket() as client:
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, keeper.listeners[name].getsockname())
        while not router.status()["services"].get(name, {"counters": {"accepted": 0}})["counters"]["accepted"]:  # noqa: ASYNC110  # no event tells
            await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less time between two attempts."""
    for module, name in ((openings, "AGAIN_S"), (service_runtime, "WARNINGS_S"), (keeper_link, "ERROR_AGAIN_S")):
        monkeypatch.setattr(module, name, 0.05)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[str], int]:
    caplog.set_level(logging.INFO)
    return lambda part: sum(part in record.getMessage() for record in caplog.records)


def dup_fails(patch: pytest.MonkeyPatch) -> Short:
    short = Short(socket.socket.dup)
    patch.setattr(socket.socket, "dup", short)
    return short


def settings_fail(patch: pytest.MonkeyPatch) -> Short:
    short = Short(files.open_regular, of_file="second/settings.json")
    patch.setattr(files, "open_regular", short)
    return short


def plane_fails(patch: pytest.MonkeyPatch) -> Short:
    """There is no descriptor for the plane's epoll."""
    short = Short(Planes.make)
    patch.setattr(Planes, "make", short)
    return short


@pytest.mark.parametrize("shortage", [dup_fails, settings_fail, plane_fails])
def test_a_service_that_cannot_be_taken_over_for_now_is_taken_over_later(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: Callable[[str], int],
    shortage: Callable[[pytest.MonkeyPatch], Short],
) -> None:
    async def run() -> None:
        async with running(Home(tmp_path / "home")) as (router, keeper):
            short = shortage(monkeypatch)
            keeper.settle("second")
            short.left = FAILS
            keeper.offer("second")
            await accepts(router, keeper, "second")
            assert short.failed == FAILS
            await accepts(router, keeper, "first")
            assert said("Too many open files") == 1

    uvloop.run(run())


def test_a_router_that_comes_to_lead_without_descriptors_accepts_once_it_has_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[str], int]
) -> None:
    short = dup_fails(monkeypatch)
    short.left = FAILS

    async def run() -> None:
        async with running(Home(tmp_path / "home")):
            assert short.failed == FAILS
            assert said("Too many open files") == 1

    uvloop.run(run())


def test_listeners_for_which_no_descriptor_was_free_are_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[str], int]
) -> None:
    """The kernel drops them on their way to the router (recvmsg(2), MSG_CTRUNC)."""
    receive = Channel.receive
    left = [FAILS]

    def without_descriptor(channel: Channel) -> Any:
        messages = receive(channel)
        if left[0] and any(message.get("service") == "second" for message, fds in messages if fds):
            left[0] -= 1
            for _, fds in messages:
                for fd in fds:
                    os.close(fd)
            raise ProtocolError("a control message lacks its descriptors: none was free here")
        return messages

    async def run() -> None:
        async with running(Home(tmp_path / "home")) as (router, keeper):
            monkeypatch.setattr(Channel, "receive", without_descriptor)
            keeper.settle("second")
            keeper.offer("second")
            await accepts(router, keeper, "second")
            await accepts(router, keeper, "first")
            assert (left, said("none was free here")) == ([0], 1)

    uvloop.run(run())


def test_a_channel_says_that_no_descriptor_was_free_for_those_that_came() -> None:
    one, other = socket.socketpair()
    sends, takes = Channel(one), Channel(other)
    taken: list[int] = []
    try:
        sends.send({"op": "listen"}, [0, 1])
        with few_descriptors(taken), pytest.raises(ProtocolError, match="none was free"):
            takes.receive()
    finally:
        sends.close()
        takes.close()


@contextlib.contextmanager
def few_descriptors(taken: list[int]) -> Generator[None]:
    """While the block runs, this process can have no further descriptor."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (max(int(path.name) for path in Path("/proc/self/fd").iterdir()) + 1, hard)
    )
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        yield
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class NoMemory:
    """In the place of an epoll, or a loop, that takes no further descriptor."""

    def register(self, *_: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    def modify(self, *_: object) -> None: ...
    def unregister(self, *_: object) -> None: ...

    def add_reader(self, *_: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


def test_a_listener_that_cannot_be_added_leaves_nothing_behind() -> None:
    before = open_fds()
    memory: Any = NoMemory()
    listeners = Listeners(memory, memory, Counters())
    with socket.create_server(("127.0.0.1", 0)) as sock:
        for _ in range(3):
            with pytest.raises(OSError, match="allocate memory"):
                listeners.add(sock, user_timeout_ms=0)
    assert listeners.by_fd == {}
    assert open_fds() == before


def test_a_daemon_that_the_loop_cannot_watch_is_looked_for_in_the_process_table(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop: Any = NoMemory()
    ended: list[Identity] = []

    def seems_dead(identity: Identity) -> bool:
        return identity in ended

    monkeypatch.setattr(exit_watch, "provably_dead", seems_dead)
    exits = ExitWatch(loop, lambda _boot_id: None)
    exits.follow([Daemon("a", port=1, identity=own_identity())])
    assert not exits.has_ended("a")
    ended.append(own_identity())
    assert exits.has_ended("a")
    exits.close()


def test_a_trial_without_descriptors_condemns_no_plane(monkeypatch: pytest.MonkeyPatch) -> None:
    short = Short(socket.socket.accept)
    monkeypatch.setattr(socket.socket, "accept", short)
    assert feature_test.group_works(attach) == ""
    short.left = 1
    with pytest.raises(OSError, match="Too many open files"):
        feature_test.group_works(attach)
