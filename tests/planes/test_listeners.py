"""A listener is watched only while its acceptor can accept: one that is readable all the time must not spin."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from select import EPOLLIN

import pytest

from plane_fakes import FakeLoop, FakeReadiness
from traffic import open_fds
from turnout.planes.listeners import FD_PAUSE_S, Listeners
from turnout.planes.plane import Counters


class Scene:
    def __init__(self) -> None:
        self.loop = FakeLoop()
        self.readiness = FakeReadiness()
        self.counters = Counters()
        self.listeners = Listeners(self.loop.as_loop, self.readiness, self.counters)
        self.sock = socket.create_server(("127.0.0.1", 0))

    def add(self) -> int:
        self.listeners.add(self.sock, user_timeout_ms=0)
        return next(iter(self.listeners.by_fd))

    def watched(self) -> list[int]:
        return list(self.readiness.watched.values())


@pytest.fixture
def scene() -> Iterator[Scene]:
    found = Scene()
    yield found
    found.listeners.close()
    found.sock.close()


def test_a_listener_is_a_descriptor_of_its_own_and_is_watched(scene: Scene) -> None:
    fd = scene.add()
    assert fd != scene.sock.fileno()
    assert scene.readiness.watched == {fd: EPOLLIN}
    scene.listeners.close()
    assert (scene.listeners.by_fd, scene.readiness.watched) == ({}, {})
    assert scene.sock.fileno() >= 0, "the caller's own was closed"


def test_a_listener_that_cannot_be_watched_leaves_nothing_open(scene: Scene) -> None:
    scene.readiness.fails = True
    before = open_fds()
    with pytest.raises(OSError, match="No space left"):
        scene.add()
    assert open_fds() == before
    assert not scene.listeners.by_fd


def test_at_the_limit_of_connections_no_listener_is_watched(scene: Scene) -> None:
    scene.add()
    scene.listeners.set_full(True)
    assert scene.watched() == [0]
    scene.listeners.set_full(False)
    assert scene.watched() == [EPOLLIN]


def test_without_descriptors_it_pauses_once_and_tries_again(scene: Scene) -> None:
    scene.add()
    scene.listeners.pause()
    scene.listeners.pause()
    assert (scene.watched(), scene.counters.fd_exhausted, scene.loop.pending) == ([0], 2, 1)
    scene.loop.go_on(FD_PAUSE_S)
    assert scene.watched() == [EPOLLIN]


def test_a_pause_ends_and_the_limit_stays(scene: Scene) -> None:
    scene.add()
    scene.listeners.set_full(True)
    scene.listeners.pause()
    scene.loop.go_on(FD_PAUSE_S)
    assert scene.watched() == [0], "the limit was still reached"
    scene.listeners.pause()
    scene.listeners.set_full(False)
    assert scene.watched() == [0], "no descriptor was left still"


def test_a_listener_that_comes_while_none_is_watched_is_not_watched_either(scene: Scene) -> None:
    scene.listeners.set_full(True)
    scene.add()
    assert scene.watched() == [0]


def test_a_listener_that_was_shut_down_is_let_go(scene: Scene) -> None:
    scene.add()
    scene.listeners.drop_shut()
    assert scene.listeners.by_fd
    scene.sock.shutdown(socket.SHUT_RDWR)
    scene.listeners.drop_shut()
    assert not scene.listeners.by_fd


def test_listeners_are_found_by_their_address(scene: Scene) -> None:
    fd = scene.add()
    address = scene.sock.getsockname()
    assert [sock.fileno() for sock in scene.listeners.at(address)] == [fd]
    assert not scene.listeners.at((address[0], 1))


@pytest.mark.parametrize("shared", [True, False])
def test_it_is_known_whether_others_may_join_a_listener(scene: Scene, *, shared: bool) -> None:
    if shared:
        scene.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    scene.add()
    assert scene.listeners.shared is shared
