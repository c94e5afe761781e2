"""The router's admin socket against peers of every kind: each can lose its own connection, and nothing else."""

from __future__ import annotations

import array
import asyncio
import errno
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from turnout.router import admin_server
from turnout.router.admin_server import AdminServer
from turnout.router.admin_socket import AdminSocket
from turnout.system import control_channel
from turnout.system.daemon_threads import DaemonThreads
from turnout.system.home_identity import HomeIdentity


class Router:
    """Answers, or raises."""

    raises: Exception | None = None

    def __init__(self) -> None:
        self.doors: set[tuple[str, int]] = set()
        self.shut = asyncio.Event()

    def status(self) -> Mapping[str, Any]:
        if self.raises:
            raise self.raises
        return {"pid": 1}

    def drains(self, service: str) -> Sequence[Mapping[str, Any]]:
        raise KeyError(service)

    def open_door(self, service: str, source: str, port: int) -> Callable[[], None]:
        if service != "s":
            raise KeyError(service)
        if port == 1:
            raise OSError(errno.EHOSTUNREACH, "this router does not steer the group")
        self.doors.add((source, port))

        def shut() -> None:
            self.doors.discard((source, port))
            self.shut.set()

        return shut

    def when_applied(self, service: str, revision: int, reply: Callable[[int], None]) -> None:
        assert service
        reply(revision)


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def ask(path: Path, data: bytes, fds: Sequence[int] = ()) -> bytes:
    """What comes back until there is a line, or the connection is closed."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as peer:
        peer.setblocking(False)
        await loop.sock_connect(peer, str(path))
        if fds:
            peer.sendmsg([b" "], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
        try:
            async with asyncio.timeout(20):
                await loop.sock_sendall(peer, data)
                return await loop.sock_recv(peer, 65536)
        except (BrokenPipeError, ConnectionResetError):
            return b""


def serving(path: Path, does: Callable[[Router, AdminServer], Any]) -> None:
    """Run a router's admin socket while ``does`` runs; whatever it did, the next question is answered."""

    async def run() -> None:
        router = Router()
        server = AdminServer(
            asyncio.get_running_loop(), control_channel.listen(path), HomeIdentity.of(path.parent), router
        )
        await does(router, server)
        router.raises = None
        assert b'"pid":1' in await ask(path, b'{"op":"status"}\n')
        server.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 200000 + b"\n",
        b"hello\n",
        b'{"op":"status","fds":-1}\n',
        b'{"op":"status","fds":true}\n',
        b'{"op":NaN}\n',
        b"x" * (5 << 20),
        b'{"id":' + b"9" * 5000 + b"}\n",
    ],
)
def test_a_peer_that_sends_garbage_loses_its_own_connection(tmp_path: Path, data: bytes) -> None:
    async def does(_router: Router, _server: AdminServer) -> None:
        assert await ask(tmp_path / "router.sock", data) == b""

    serving(tmp_path / "router.sock", does)


@pytest.mark.parametrize(
    "data",
    [
        b'{"op":["x"]}\n',
        b'{"op":"applied","service":"a","revision":1e999}\n',
        b'{"op":"applied","service":5,"revision":1}\n',
        b'{"op":"applied"}\n',
        b'{"op":"drains","service":"nope"}\n',
    ],
)
def test_a_question_that_is_none_is_answered_with_what_is_wrong(tmp_path: Path, data: bytes) -> None:
    async def does(_router: Router, _server: AdminServer) -> None:
        assert b'"ok":false' in await ask(tmp_path / "router.sock", data)

    serving(tmp_path / "router.sock", does)


def test_an_answer_that_cannot_be_given_ends_one_connection(tmp_path: Path) -> None:
    async def does(router: Router, _server: AdminServer) -> None:
        router.raises = RecursionError()
        assert await ask(tmp_path / "router.sock", b'{"op":"status"}\n') == b""

    serving(tmp_path / "router.sock", does)


def test_descriptors_that_a_peer_sends_never_arrive(tmp_path: Path) -> None:
    async def does(_router: Router, _server: AdminServer) -> None:
        before = descriptors()
        assert b'"ok":true' in await ask(tmp_path / "router.sock", b'{"op":"status"}\n', [0] * 100)
        await asyncio.sleep(0)
        assert descriptors() <= before + 1

    serving(tmp_path / "router.sock", does)


def test_a_shortage_at_accept_pauses_and_the_next_peer_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []
    accept = control_channel.accept

    def short(*args: Any, **more: Any) -> Any:
        tries.append(1)
        if len(tries) == 1:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return accept(*args, **more)

    monkeypatch.setattr(control_channel, "accept", short)

    async def does(_router: Router, _server: AdminServer) -> None:
        assert b'"pid":1' in await ask(tmp_path / "router.sock", b'{"op":"status"}\n')
        assert len(tries) == 2

    serving(tmp_path / "router.sock", does)


@pytest.mark.parametrize("removed", [True, False])
def test_a_socket_whose_name_was_removed_is_made_again(tmp_path: Path, removed: bool) -> None:
    path = tmp_path / "router.sock"

    async def run() -> None:
        files = DaemonThreads("home")
        admin_server = AdminSocket(asyncio.get_running_loop(), files, path, Router(), lambda: True)
        admin_server.open()
        await admin_server.settled()
        before = path.stat().st_ino
        if removed:
            path.rename(tmp_path / "away")
        admin_server.look()
        await admin_server.settled()
        await asyncio.sleep(0)
        assert (path.stat().st_ino != before) is removed
        assert b'"pid":1' in await ask(path, b'{"op":"status"}\n')
        admin_server.close()
        files.shutdown()

    asyncio.run(run())


class Talkative(Router):
    """Its answer is larger than a socket takes."""

    def status(self) -> Mapping[str, Any]:
        return {"pid": 1, "long": "x" * (1 << 20)}


async def question(path: Path) -> socket.socket:
    """A peer that has asked, and does not read."""
    peer = socket.socket(socket.AF_UNIX)
    peer.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(peer, str(path))
    await loop.sock_sendall(peer, b'{"op":"status","id":1}\n')
    return peer


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110  # no event tells
        await asyncio.sleep(0.01)


async def read_all(peer: socket.socket, size: int) -> int:
    """Read so many bytes, or to the end."""
    got = 0
    while got < size and (part := await asyncio.get_running_loop().sock_recv(peer, 65536)):
        got += len(part)
    return got


def talking(path: Path, does: Callable[[AdminServer], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the socket of a router with long answers, on a loop that may not be kept: no send waits."""

    def waits(*_: object) -> None:
        raise AssertionError("the loop waits for a peer")

    async def run() -> None:
        server = AdminServer(asyncio.get_running_loop(), control_channel.listen(path), None, Talkative())
        with monkeypatch.context() as patch:
            patch.setattr(control_channel.Channel, "send", waits)
            await does(server)
        server.close()

    asyncio.run(run())


def test_a_peer_that_reads_late_gets_its_whole_answer_and_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "router.sock"

    async def does(_server: AdminServer) -> None:
        async with asyncio.timeout(20):
            with await question(path) as late, await question(path) as prompt:
                assert await read_all(prompt, 1 << 20) >= 1 << 20
                await asyncio.get_running_loop().sock_sendall(late, b'{"op":"status","id":2}\n')
                assert await read_all(late, 2 << 20) >= 2 << 20, "its next question is answered after that"

    talking(path, does, monkeypatch)


def test_a_peer_that_never_reads_is_cut_off_at_its_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(admin_server, "UNREAD_S", 0.05)
    path = tmp_path / "router.sock"

    async def does(_server: AdminServer) -> None:
        before = descriptors()
        async with asyncio.timeout(20):
            with await question(path):
                await until(lambda: "does not read its answer" in caplog.text)
        assert descriptors() <= before

    talking(path, does, monkeypatch)


def test_of_peers_that_do_not_read_only_a_few_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(admin_server, "UNREAD_MOST", 2)
    path = tmp_path / "router.sock"

    async def does(_server: AdminServer) -> None:
        async with asyncio.timeout(20):
            with await question(path) as one, await question(path), await question(path):
                await until(lambda: "too many others" in caplog.text)
                assert await read_all(one, 1 << 20) >= 1 << 20
                with await question(path) as another:
                    assert await read_all(another, 1 << 20) >= 1 << 20

    talking(path, does, monkeypatch)


def test_a_peer_that_goes_with_its_answer_unread_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "router.sock"

    async def does(server: AdminServer) -> None:
        before = descriptors()
        async with asyncio.timeout(20):
            with await question(path):
                await until(lambda: server._unread)
            await until(lambda: descriptors() <= before)

    talking(path, does, monkeypatch)


def test_a_door_is_open_as_long_as_the_verb_that_asked_for_it(tmp_path: Path) -> None:
    path = tmp_path / "router.sock"

    async def does(router: Router, _server: AdminServer) -> None:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX) as peer:
            peer.setblocking(False)
            await loop.sock_connect(peer, str(path))
            for _ in range(2):
                await loop.sock_sendall(peer, b'{"op":"door","service":"s","source":"127.47.77.2","port":9}\n')
                assert b'"ok":true' in await loop.sock_recv(peer, 65536)
            assert router.doors == {("127.47.77.2", 9)}
        await asyncio.wait_for(router.shut.wait(), 20)
        for message, why in (
            (b'{"op":"door","service":"s","source":"127.47.77.2","port":1}', b"does not steer"),
            (b'{"op":"door","service":"t","source":"127.47.77.2","port":2}', b"does not serve"),
            (b'{"op":"door","service":"s","source":"127.47.77.2","port":0}', b"bad request: door"),
            (b'{"op":"door","service":"s"}', b"bad request: door"),
        ):
            assert why in await ask(path, message + b"\n")

    serving(path, does)
