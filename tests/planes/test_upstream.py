"""Daemons that refuse, swallow, or go away with clients in their queue; and clients that do not wait for them."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Iterator

import pytest

from stage import Daemon, Stage
from support import eventually
from traffic import at_once, is_reset, listening_fds, open_fds, read_all, read_exactly, reset
from turnout.core.connection_policy import Policy

QUESTION = bytes(range(256)) * 16


class BlackHole:
    """A listener whose queue is full: the kernel drops what else comes, so a connect gets no answer at all."""

    def __init__(self) -> None:
        self.daemon = Daemon("black hole")
        self.daemon.listener.listen(0)
        self._filling: list[socket.socket] = []
        while not self._swallows():
            assert len(self._filling) < 20

    def _swallows(self) -> bool:
        sock = socket.socket()
        sock.setblocking(False)
        self._filling.append(sock)
        sock.connect_ex(self.daemon.listener.getsockname())
        return not select.select([], [sock], [], 0.2)[1]

    def close(self) -> None:
        for sock in (*self._filling, self.daemon.listener):
            sock.close()


@pytest.fixture
def black_hole() -> Iterator[BlackHole]:
    with contextlib.closing(BlackHole()) as found:
        yield found


def held_or_connecting(stage: Stage, count: int) -> None:
    """Wait until the plane has accepted so many clients and has none of them with a daemon."""
    eventually(lambda: stage.plane.counters.accepted >= count)
    assert stage.call(stage.plane.connections) == 0


def test_a_client_whose_connect_a_black_hole_swallows_goes_to_the_next_daemon_with_all_it_said(
    stage: Stage, black_hole: BlackHole
) -> None:
    stage.set_upstream(black_hole.daemon)
    client = stage.client()
    client.sendall(QUESTION)
    held_or_connecting(stage, 1)
    far = stage.daemon("v2").accept()
    assert read_exactly(far, len(QUESTION)) == QUESTION
    far.sendall(QUESTION[::-1])
    assert read_exactly(client, len(QUESTION)) == QUESTION[::-1]
    far.close()


def test_a_client_that_sends_and_half_closes_before_the_connect_is_done_gets_its_answer(
    stage: Stage, black_hole: BlackHole
) -> None:
    stage.set_upstream(black_hole.daemon)
    client = stage.client()
    client.sendall(QUESTION)
    client.shutdown(socket.SHUT_WR)
    held_or_connecting(stage, 1)
    far = stage.daemon("v2").accept()
    assert read_all(far) == QUESTION
    far.sendall(b"answer")
    far.close()
    assert read_all(client) == b"answer"


@pytest.mark.parametrize("said", [b"", QUESTION], ids=["before any byte", "after its question"])
def test_a_client_that_resets_before_the_connect_is_done_is_gone_and_no_daemon_ever_hears_of_it(
    stage: Stage, black_hole: BlackHole, said: bytes
) -> None:
    for sock in stage.pair(stage.daemon("v1")):  # libuv keeps one descriptor in reserve from its first stream on
        sock.close()
    eventually(lambda: stage.call(stage.plane.connections) == 0)
    stage.set_upstream(black_hole.daemon)
    before = open_fds()
    clients = [stage.client() for _ in range(10)]
    held_or_connecting(stage, 10)
    for client in clients:
        client.sendall(said)
        reset(client)
    eventually(lambda: open_fds() == before, why="descriptors of clients that are gone")
    daemon = stage.daemon("v2")
    last = stage.client()
    last.sendall(b"the last")
    far = daemon.accept()
    assert far.recv(100) == b"the last", "the daemon met a client that was gone"
    far.close()


def test_a_client_that_closes_before_the_connect_is_done_is_served_or_gone_and_leaves_nothing(
    stage: Stage, black_hole: BlackHole
) -> None:
    """A close looks like a half-close at first: the daemon may get the question, and the answer meets nobody."""
    for sock in stage.pair(stage.daemon("v1")):  # libuv keeps one descriptor in reserve from its first stream on
        sock.close()
    eventually(lambda: stage.call(stage.plane.connections) == 0)
    stage.set_upstream(black_hole.daemon)
    before = open_fds() - listening_fds()
    clients = [stage.client() for _ in range(10)]
    held_or_connecting(stage, 10)
    for client in clients:
        client.sendall(QUESTION)
        client.close()
    daemon = stage.daemon("v2")
    for _ in clients:
        with contextlib.suppress(ConnectionResetError), daemon.accept() as far:
            assert read_all(far) == QUESTION
            far.sendall(QUESTION)
    eventually(lambda: stage.call(stage.plane.connections) == 0)
    eventually(lambda: open_fds() - listening_fds() == before, why="more than the listener of v2 is left")


def test_a_black_hole_ends_in_a_reset_when_the_hold_is_over(kind: str, black_hole: BlackHole) -> None:
    """It accepts nobody, but does not refuse: it may be busy, so it is waited for as long as for one that starts."""
    stage = Stage(kind, policy=Policy(hold_timeout_s=0.5))
    try:
        stage.call(lambda: stage.plane.set_upstream(black_hole.daemon.target, patience_s=0.1))
        clients = [stage.client() for _ in range(3)]
        with at_once(*(lambda client=client: _must_be_reset(client) for client in clients)):
            pass
        assert stage.plane.counters.hold_timeout == 3
    finally:
        stage.close()


def _must_be_reset(sock: socket.socket) -> None:
    assert is_reset(sock)


def test_a_daemon_that_closes_its_listener_with_connections_queued_resets_those_and_the_next_are_served(
    stage: Stage,
) -> None:
    """Each of them was the daemon's: the kernel had completed its handshake, so its end is passed on as a reset.

    In a group its listener is the router's from then on, and so are they.
    """
    daemon = stage.daemon("v1")
    queued = [stage.client() for _ in range(20)]
    for client in queued:
        client.sendall(QUESTION)
    eventually(lambda: stage.call(stage.plane.connections) == 20)
    stage.end(daemon)
    for client in queued if not stage.group else ():
        assert is_reset(client)
    eventually(lambda: stage.call(stage.plane.connections) == 0)
    late = stage.client()
    late.sendall(QUESTION)
    eventually(lambda: stage.plane.counters.connect_failed > 0)
    successor = stage.daemon("v2")
    for _ in (*(queued if stage.group else ()), late):
        far = successor.accept()
        assert read_exactly(far, len(QUESTION)) == QUESTION
        far.close()


def test_a_dead_daemon_is_a_reset_once_the_patience_is_over_and_not_before(stage: Stage) -> None:
    dead = stage.daemon("dead")
    stage.end(dead)
    stage.set_upstream(dead, patience_s=0.3)
    client = stage.client()
    assert is_reset(client)
    assert stage.plane.counters.hold_timeout == 1
    assert stage.plane.counters.connect_failed > 1, "it was tried once, and not again"
