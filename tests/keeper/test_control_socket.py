"""The keeper's socket against peers of every kind: each can lose its own connection, and nothing else."""

from __future__ import annotations

import array
import errno
import os
import selectors
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from turnout.errors import ProtocolError
from turnout.keeper import control_socket
from turnout.keeper.control_socket import KeeperSocket
from turnout.system import control_channel
from turnout.system.control_channel import ACCEPT_PAUSE_S, MAX_FDS, Channel, Message


class Stage:
    """A selector, a socket, and a keeper that answers every message with its own words, or raises."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.selector = selectors.DefaultSelector()
        self.raises: BaseException | None = None
        self.took: list[tuple[Message, list[int]]] = []
        self.lost: list[Channel] = []
        self.due: list[tuple[float, Callable[[], None]]] = []
        self.routers: set[int] = set()
        self.socket = KeeperSocket(path, self.selector, lambda delay_s, action: self.due.append((delay_s, action)))
        self.socket.serve(self.take, self.lost.append, lambda pid: pid in self.routers)

    def take(self, channel: Channel, message: Message, fds: list[int]) -> None:
        self.took.append((message, fds))
        if self.raises:
            raise self.raises
        self.socket.send(channel, {"ok": True, "re": message.get("id")})

    def turn(self) -> None:
        """Dispatch until nothing is to be done."""
        while events := self.selector.select(0.05):
            for key, _ in events:
                key.data()

    def connect(self) -> socket.socket:
        peer = socket.socket(socket.AF_UNIX)
        peer.connect(str(self.path))
        peer.settimeout(20)
        self.turn()
        return peer

    def serves(self) -> bool:
        with self.connect() as peer:
            peer.sendall(b'{"id":1}\n')
            self.turn()
            return b'"re":1' in peer.recv(1000)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path / "keeper.sock")
    yield stage
    stage.socket.close()
    stage.selector.close()


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.parametrize(
    "error", [RecursionError(), OverflowError(), KeyError("x"), OSError(errno.EIO, "I/O"), MemoryError()]
)
def test_a_peer_whose_message_makes_the_keeper_fail_loses_its_own_connection(stage: Stage, error: Exception) -> None:
    with stage.connect() as other, stage.connect() as peer:
        stage.raises = error
        peer.sendall(b'{"id":1}\n{"id":2}\n')
        stage.turn()
        assert peer.recv(1000) == b""
        assert len(stage.lost) == 1
        stage.raises = None
        other.sendall(b'{"id":3}\n')
        stage.turn()
        assert b'"re":3' in other.recv(1000)


@pytest.mark.parametrize("data", [b"[" * 100000 + b"\n", b"x\n", b'{"fds":1}\n', b'{"fds":true}\n', b"x" * (5 << 20)])
def test_a_peer_that_sends_garbage_loses_its_own_connection(stage: Stage, data: bytes) -> None:
    stage.routers = {os.getpid()}
    with stage.connect() as peer:
        peer.setblocking(False)
        sent = 0
        while sent < len(data):
            try:
                sent += peer.send(data[sent:])
            except BlockingIOError:
                stage.turn()
            except OSError:
                break
        stage.turn()
        assert stage.lost
    assert stage.serves()


def test_a_connection_that_another_one_replaced_in_the_same_moment_is_not_said_to_have_failed(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A router that attaches again, while what it sent over its previous connection is still unread."""
    lines: list[str] = []
    monkeypatch.setattr(control_socket, "log_line", lines.append)
    with stage.connect() as one, stage.connect() as two:
        both = list(stage.socket._channels)

        def drop_other(channel: Channel, message: Message, _fds: list[int]) -> None:
            stage.took.append((message, []))
            for other in both:
                if other is not channel:
                    stage.socket.drop(other)

        stage.socket.serve(drop_other, stage.lost.append, lambda _pid: False)
        for peer in (one, two):
            peer.sendall(b'{"id":1}\n')
        stage.turn()
    assert (len(stage.took), len(stage.lost)) == (1, 1)
    assert lines == []


def test_a_peer_that_is_gone_before_it_is_answered_is_dropped(stage: Stage) -> None:
    peer = stage.connect()
    peer.sendall(b'{"id":1}\n')
    peer.close()
    stage.turn()
    assert len(stage.lost) == 1
    assert stage.serves()


def test_descriptors_of_a_peer_that_is_no_router_never_arrive(stage: Stage) -> None:
    before = descriptors()
    with stage.connect() as peer:
        for _ in range(5):
            rights = array.array("i", [0] * 100)
            peer.sendmsg([b" "], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        peer.sendmsg([b'{"fds":3,"id":1}\n'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0] * 3))])
        stage.turn()
        assert stage.took[-1] == ({"id": 1}, [])
        assert descriptors() == before + 2, "both ends of this connection"


def test_descriptors_that_no_message_claims_end_the_connection_and_are_closed(stage: Stage) -> None:
    stage.routers = {os.getpid()}
    before = descriptors()
    with stage.connect() as peer:
        for _ in range(3):
            rights = array.array("i", [0] * (MAX_FDS // 2))
            peer.sendmsg([b" "], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        stage.turn()
        assert stage.lost
    assert descriptors() == before


def test_descriptors_of_messages_behind_one_that_failed_are_closed(stage: Stage) -> None:
    stage.routers = {os.getpid()}
    before = descriptors()
    with stage.connect() as peer:
        rights = array.array("i", [0] * 2)
        peer.sendmsg([b'{"id":1}\n{"id":2,"fds":2}\n'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        stage.raises = ProtocolError("no")
        stage.turn()
    assert descriptors() == before


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS])
def test_a_shortage_at_accept_pauses_and_does_not_spin(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    peer = socket.socket(socket.AF_UNIX)
    peer.connect(str(stage.path))

    def short(*_args: object, **_more: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(control_channel, "accept", short)
        stage.turn()  # would not come back where the socket stayed registered
    ((delay_s, resume),) = stage.due
    assert delay_s == ACCEPT_PAUSE_S
    resume()
    assert stage.serves()
    peer.close()


@pytest.mark.parametrize("instead", ["nothing", "a file"])
def test_a_socket_whose_name_was_removed_is_made_again_and_connections_go_on(stage: Stage, instead: str) -> None:
    with stage.connect() as peer:
        assert not stage.socket.restore()
        stage.path.unlink()
        if instead == "a file":
            stage.path.touch()
        assert stage.socket.restore()
        assert not stage.socket.restore()
        peer.sendall(b'{"id":1}\n')
        stage.turn()
        assert b'"re":1' in peer.recv(1000)
    assert stage.serves()


def test_a_name_that_belongs_to_another_by_now_is_not_removed_at_the_end(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "keeper.sock")
    stage.path.unlink()
    stage.path.touch()
    stage.socket.close()
    assert stage.path.exists()
    stage.selector.close()


def test_a_router_connects_although_there_are_as_many_peers_as_may_be(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_socket, "MAX_CLIENTS", 2)
    peers = [stage.connect() for _ in range(3)]
    assert [is_closed(peer) for peer in peers] == [False, False, True]
    stage.routers.add(os.getpid())
    router = stage.connect()
    router.sendall(b'{"id": 1}\n')
    stage.turn()
    assert b'"re":1' in router.recv(4096).replace(b" ", b"")
    for peer in (*peers, router):
        peer.close()


def is_closed(peer: socket.socket) -> bool:
    peer.setblocking(False)
    try:
        return peer.recv(1) == b""
    except BlockingIOError:
        return False
