"""When control connections are accepted, and when not; the loop and the kernel's accept(2) are fakes."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from turnout.system import control_channel
from turnout.system.control_channel import ACCEPT_PAUSE_S
from turnout.system.control_listener import ControlListener, Loop


class FakeLoop:
    """What the listener has the loop watch, and what is due later."""

    def __init__(self) -> None:
        self.watched: dict[int, Callable[[], None]] = {}
        self.later: list[tuple[float, Callable[[], None]]] = []
        self.full = False

    def watch(self, fd: int, action: Callable[[], None]) -> None:
        if self.full:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        self.watched[fd] = action

    def loop(self) -> Loop:
        return Loop(self.watch, self.watched.pop, lambda seconds, call: self.later.append((seconds, call)))


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as made:
        yield made


class Setting:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, sock: socket.socket) -> None:
        self.fake = FakeLoop()
        self.taken: list[Any] = []
        self.lines: list[str] = []
        self.answer: Any = None
        monkeypatch.setattr(control_channel, "accept", self.accept)
        self.listener = ControlListener(sock, self.fake.loop(), self.taken.append, self.lines.append)

    def accept(self, _sock: socket.socket, *, on_stranger: Callable[[int, int], None], may_send_fds: object) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.answer == "stranger":
            on_stranger(7, 1000)
            return None
        return self.answer

    def comes(self, answer: Any) -> None:
        """The socket becomes readable, and accept(2) answers this."""
        self.answer = answer
        (action,) = self.fake.watched.values()
        action()


@pytest.fixture
def setting(monkeypatch: pytest.MonkeyPatch, sock: socket.socket) -> Setting:
    return Setting(monkeypatch, sock)


def test_each_channel_is_handed_over_and_none_is_where_none_came(setting: Setting) -> None:
    setting.comes("a channel")
    setting.comes(None)
    assert setting.taken == ["a channel"]


def test_a_stranger_is_named_in_the_log_and_gets_no_channel(setting: Setting) -> None:
    setting.comes("stranger")
    assert setting.taken == []
    assert setting.lines == ["pid 7 of uid 1000 was turned away: it is another user's"]


def test_where_no_descriptor_is_left_the_socket_is_not_watched_for_a_moment(setting: Setting) -> None:
    setting.comes(OSError(24, "Too many open files"))
    assert setting.lines == ["cannot accept: Too many open files"]
    assert setting.fake.watched == {}
    ((seconds, resume),) = setting.fake.later
    assert seconds == ACCEPT_PAUSE_S
    resume()
    setting.comes("a channel")
    assert setting.taken == ["a channel"]


def test_a_socket_that_cannot_be_watched_after_the_pause_is_tried_again(setting: Setting) -> None:
    setting.comes(OSError(24, "Too many open files"))
    setting.fake.full = True
    setting.fake.later.pop()[1]()
    assert setting.lines[1:] == ["cannot watch the socket: Cannot allocate memory"]
    setting.fake.full = False
    ((seconds, resume),) = setting.fake.later
    assert seconds == ACCEPT_PAUSE_S
    resume()
    setting.comes("a channel")
    assert setting.taken == ["a channel"]


def test_a_listener_that_was_closed_in_the_pause_is_not_watched_again(setting: Setting) -> None:
    setting.comes(OSError(24, "Too many open files"))
    setting.listener.close()
    setting.fake.later[0][1]()
    assert setting.fake.watched == {}


def test_a_replaced_socket_is_closed_and_the_new_one_watched(setting: Setting, sock: socket.socket) -> None:
    with socket.socket(socket.AF_UNIX) as fresh:
        setting.listener.replace(fresh)
        assert sock.fileno() == -1
        assert list(setting.fake.watched) == [fresh.fileno()]
        setting.listener.close()
    assert setting.fake.watched == {}
