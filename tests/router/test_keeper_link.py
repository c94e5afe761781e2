"""The router's session with its keeper against a channel that is made up: what goes out, what comes in, and its end."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from turnout.errors import NotRunningError, ProtocolError
from turnout.router import keeper_link
from turnout.router.keeper_link import MAX_PENDING, KeeperLink, _in_parts
from turnout.state.home import Home
from turnout.system import control_channel

Sent = Mapping[str, Any]


class FakeChannel:
    """A line to a keeper that is this test: what it sends is in ``incoming``."""

    def __init__(self) -> None:
        self.sent: list[Sent] = []
        self.fds: list[int] = []
        self.incoming: list[tuple[dict[str, Any], list[int]]] = []
        self.error: Exception | None = None  # of the next send
        self.closed = False
        self._near, self._far = socket.socketpair()

    def fileno(self) -> int:
        return self._near.fileno()

    def send(self, message: Sent, fds: Sequence[int] = (), *, wait: bool = True) -> None:
        assert not wait, "the loop never waits for the keeper"
        if self.error:
            raise self.error
        self.sent.append(message)
        self.fds.extend(fds)

    def receive(self) -> list[tuple[dict[str, Any], list[int]]]:
        if not self._near.recv(4096):
            raise EOFError
        incoming, self.incoming = self.incoming, []
        return incoming

    def say(self, message: dict[str, Any], *fds: int) -> None:
        """The keeper sends a message."""
        self.incoming.append((message, list(fds)))
        self._far.send(b"x")

    def hang_up(self) -> None:
        self._far.close()

    def close(self) -> None:
        self.closed = True
        self._near.close()
        self._far.close()


class FakeRouter:
    """Notes each call; has one listener."""

    phase = "standby"

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.sockets: list[socket.socket] = []
        self.raises: Exception | None = None

    def listeners(self) -> Sequence[tuple[str, str, int, int]]:
        return [("a", "127.0.0.1", 7000, 99)]

    def group_states(self) -> Mapping[str, Mapping[str, Any]]:
        return {"a": {"version": 2, "home": 0, "order": [[5, ""]]}}

    def group_homes(self) -> Mapping[str, int]:
        return {"a": 3}

    def take_listeners(self, service: str, sockets: Sequence[socket.socket], message: Sent) -> None:
        self.sockets.extend(sockets)
        self.calls.append(("take_listeners", service, len(sockets), message.get("version")))
        if self.raises:
            raise self.raises

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args: self.calls.append((name, *args))


class Scene:
    """A link and its router; each connect gives the next channel, none where the list is empty."""

    def __init__(self, link: KeeperLink, router: FakeRouter, channels: list[FakeChannel]) -> None:
        self.link = link
        self.router = router
        self.channels = channels
        self.connected = 0

    @property
    def channel(self) -> FakeChannel:
        return self.channels[-1]

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110  # no event tells
                await asyncio.sleep(0.001)

    async def hear(self, message: dict[str, Any], *fds: int) -> None:
        """The keeper sends a message, and the router has handled it."""
        before = len(self.channel.incoming)
        self.channel.say(message, *fds)
        assert before == 0
        await self.until(lambda: not self.channel.incoming)

    def on_connected(self) -> None:
        self.connected += 1


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    monkeypatch.setattr(keeper_link, "RETRY_S", 0.001)
    monkeypatch.setattr(keeper_link, "ERROR_AGAIN_S", 0.002)

    @asynccontextmanager
    async def running(*, runs: bool = True) -> AsyncGenerator[Scene]:
        channels: list[FakeChannel] = []
        keeper = {"runs": runs}

        def connect(path: Path, *, timeout_s: float) -> FakeChannel:
            assert (path, timeout_s) == (tmp_path / "keeper.sock", 1.0)
            if not keeper["runs"]:
                raise NotRunningError("no keeper")
            channels.append(FakeChannel())
            return channels[-1]

        monkeypatch.setattr(control_channel, "connect", connect)
        router = FakeRouter()
        with ThreadPoolExecutor(1) as files:
            link = KeeperLink(asyncio.get_running_loop(), files, Home(tmp_path), router)
            scene = Scene(link, router, channels)
            task = asyncio.ensure_future(link.run(scene.on_connected))
            if runs:
                await scene.until(lambda: link.connected)
            yield scene
            keeper["runs"] = False
            task.cancel()
            link.close()

    return running


def test_a_router_attaches_with_its_phase_and_its_listeners(scene: Callable[[], Any]) -> None:
    async def run() -> None:
        async with scene() as at:
            (attach,) = at.channel.sent
            assert (attach["op"], attach["pid"], attach["phase"]) == ("attach", os.getpid(), "standby")
            assert (attach["listeners"], at.channel.fds) == ([["a", "127.0.0.1", 7000]], [99])
            assert (attach["homes"], at.connected) == ({"a": 3}, 1)
            assert attach["groups"] == {"a": {"version": 2, "home": 0, "order": [[5, ""]]}}
            await at.hear({"re": attach["id"], "ok": True, "services": ["a"], "interpreter": "/usr/bin/python3"})
            assert at.router.calls == [("on_attached", ["a"])]
            assert at.link.interpreters.newest == "/usr/bin/python3"

    asyncio.run(run())


def test_a_router_that_the_keeper_did_not_start_is_refused(scene: Callable[[], Any]) -> None:
    async def run() -> None:
        async with scene() as at:
            await at.hear({"re": at.channel.sent[0]["id"], "ok": False, "error": "stranger"})
            assert at.router.calls == [("on_refused",)]

    asyncio.run(run())


def test_each_message_of_the_keeper_reaches_the_router(scene: Callable[[], Any]) -> None:
    async def run() -> None:
        async with scene() as at:
            for message, call in (
                ({"op": "unlisten", "service": "a"}, ("release_listeners", "a")),
                ({"op": "ended", "service": "a", "boot_id": "b"}, ("on_daemon_exit", "a", "b")),
                ({"op": "end"}, ("shut_down",)),
                ({"op": "stand_down"}, ("stand_down",)),
                ({"op": "reload"}, ("reload",)),
                ({"op": "cut", "service": "a", "boot_id": "b"}, ("cut", "a", "b")),
                ({"op": "leave"}, ("release_lead",)),
            ):
                await at.hear(message)
                assert at.router.calls.pop() == call
            assert at.channel.sent[-1] == {"op": "heard"}, "the order to leave is acknowledged"
            await at.hear({"op": "leaving", "pids": [7, 8]})
            assert at.link.draining == [7, 8]
            at.link.interpreters.add("/usr/bin/python3")
            await at.hear({"op": "interpreter", "interpreter": "python3"})
            assert at.link.interpreters.newest == "/usr/bin/python3", "no absolute path"

    asyncio.run(run())


def test_listeners_arrive_as_sockets(scene: Callable[[], Any]) -> None:
    async def run() -> None:
        async with scene() as at:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                address = listener.getsockname()
                await at.hear({"op": "listen", "service": "a", "version": 4}, os.dup(listener.fileno()))
            assert at.router.calls == [("take_listeners", "a", 1, 4)]
            (sock,) = at.router.sockets
            assert sock.getsockname() == address
            sock.close()

    asyncio.run(run())


def test_a_stop_is_answered_with_whether_the_daemon_is_gone(scene: Callable[[], Any]) -> None:
    async def run() -> None:
        async with scene() as at:
            for gone in (True, False):
                stop = asyncio.ensure_future(at.link.stop("a", "b", stop_signal="TERM", grace_s=2.0))
                await at.until(lambda: at.channel.sent[-1]["op"] == "stop")
                request = dict(at.channel.sent.pop())
                number = request.pop("id")
                assert request == {"op": "stop", "service": "a", "boot_id": "b", "signal": "TERM", "grace_s": 2.0}
                await at.hear({"re": number + 1, "ok": True, "gone": True})
                assert not stop.done(), "the answer to another request"
                await at.hear({"re": number, "ok": True, "gone": gone})
                assert await stop is gone

    asyncio.run(run())


def test_why_the_keeper_does_not_stop_a_daemon_is_logged_once(
    scene: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        async with scene() as at:
            for _ in range(3):
                stop = asyncio.ensure_future(at.link.stop("a", "b", stop_signal="TERM", grace_s=2.0))
                await at.until(lambda: at.channel.sent[-1]["op"] == "stop")
                await at.hear({"re": at.channel.sent.pop()["id"], "ok": False, "message": "b belongs to service c"})
                assert await stop is False

    asyncio.run(run())
    assert [record.getMessage() for record in caplog.records if "does not stop" in record.getMessage()] == [
        "a: the keeper does not stop b: b belongs to service c"
    ]


def test_a_keeper_that_goes_away_ends_what_waits_for_it_and_the_next_one_is_attached_to(
    scene: Callable[[], Any],
) -> None:
    async def run() -> None:
        async with scene() as at:
            first = at.channel
            stop = asyncio.ensure_future(at.link.stop("a", "b", stop_signal="TERM", grace_s=60.0))
            replace = asyncio.ensure_future(at.link.replace(timeout_s=60.0))
            await at.until(lambda: len(first.sent) == 3)
            first.hang_up()
            assert await stop is False
            with pytest.raises(NotRunningError):
                await replace
            await at.until(lambda: at.connected == 2)
            assert first.closed
            assert at.channel.sent[0]["op"] == "attach"

    asyncio.run(run())


def test_without_a_keeper_nothing_waits(scene: Callable[..., Any]) -> None:
    async def run() -> None:
        async with scene(runs=False) as at:
            assert not at.link.connected
            at.link.send({"op": "leads"})
            assert await at.link.stop("a", "b", stop_signal="TERM", grace_s=60.0) is False
            with pytest.raises(NotRunningError):
                await at.link.replace(timeout_s=60.0)

    asyncio.run(run())


def test_a_successor_or_why_there_is_none_is_answered(scene: Callable[[], Any]) -> None:
    async def run() -> None:
        async with scene() as at:
            for answer, expected in (
                ({"ok": True, "pid": 8}, (True, "")),
                ({"ok": False, "message": "the new router did not come up"}, (False, "the new router did not come up")),
            ):
                replace = asyncio.ensure_future(at.link.replace(timeout_s=60.0))
                await at.until(lambda: at.channel.sent[-1]["op"] == "replace_router")
                await at.hear({"re": at.channel.sent.pop()["id"], **answer})
                assert await replace == expected
            assert await at.link.replace(timeout_s=0.01) == (False, "no answer from the keeper within 0.01 s")

    asyncio.run(run())


def test_a_keeper_that_does_not_read_loses_its_connection(scene: Callable[[], Any]) -> None:
    async def run() -> None:
        async with scene() as at:
            first = at.channel
            first.error = BlockingIOError()
            at.link.send({"op": "leads"})
            assert first.closed
            await at.until(lambda: at.connected == 2)
            at.channel.error = ProtocolError("too long")
            with pytest.raises((NotRunningError, ProtocolError)):
                await at.link.replace(timeout_s=60.0)

    asyncio.run(run())


@pytest.mark.parametrize("error", [OSError(24, "no descriptor"), ValueError("a bug")])
def test_a_message_that_cannot_be_used_ends_the_connection_and_not_the_router(
    scene: Callable[[], Any], caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    async def run() -> None:
        async with scene() as at:
            first, at.router.raises = at.channel, error
            read, write = os.pipe()
            first.incoming.append(({"op": "listen", "service": "a"}, []))
            first.say({"op": "listen", "service": "b"}, read)
            await at.until(lambda: at.connected == 2)
            assert first.closed
            with pytest.raises(OSError, match="descriptor"):
                os.fstat(read)  # it came with the message behind the one that failed
            os.close(write)

    asyncio.run(run())
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1


def test_a_message_that_lacks_a_field_ends_the_connection_too(scene: Callable[[], Any]) -> None:
    async def run() -> None:
        async with scene() as at:
            at.channel.say({"op": "unlisten"})
            await at.until(lambda: at.connected == 2)
            assert at.router.calls == []

    asyncio.run(run())


def test_no_more_requests_wait_than_may(scene: Callable[[], Any]) -> None:
    async def run() -> None:
        async with scene() as at:
            stops = [
                asyncio.ensure_future(at.link.stop("a", f"b{number}", stop_signal="TERM", grace_s=60.0))
                for number in range(MAX_PENDING)
            ]
            await at.until(lambda: len(at.channel.sent) == MAX_PENDING + 1)
            assert await at.link.stop("a", "more", stop_signal="TERM", grace_s=60.0) is False
            assert len(at.channel.sent) == MAX_PENDING + 1
            at.link.close()
            assert set(await asyncio.gather(*stops)) == {False}
            await at.until(lambda: at.connected == 2)
            again = asyncio.ensure_future(at.link.stop("a", "b", stop_signal="TERM", grace_s=60.0))
            await at.until(lambda: at.channel.sent[-1]["op"] == "stop")
            again.cancel()

    asyncio.run(run())


def test_the_listeners_of_a_service_are_in_one_message_and_all_of_them_in_as_few_as_can_be() -> None:
    many = [(name, "127.0.0.1", 1, fd) for name in "abcdef" for fd in range(70)]
    parts = _in_parts(many)
    assert [len(part) for part in parts] == [140, 140, 140]
    assert [listener for part in parts for listener in part] == many
    assert _in_parts([]) == [[]], "a router without listeners attaches too"
