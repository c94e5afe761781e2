"""A keeper that is killed over a daemon's call, again and again: each call is answered by the next one."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable

import pytest

from filtered import DEADLINE_S, Filtered
from support import report, scaled
from turnout.activation import answers as module
from turnout.activation import sockets
from turnout.activation.answers import AFTER_LAST, BindAnswers, Memory
from turnout.activation.seccomp import Notifications
from turnout.testing import free_port

BINDS = """
import socket
for _ in range({count}):
    sock = socket.socket()
    sock.bind(("127.0.0.1", {own}))
    print(sock.getsockname()[1])
    sock.close()
"""


class Nowhere:
    """No address that daemons share."""

    def get(self) -> None:
        return None

    def processes(self) -> tuple[()]:
        return ()

    def admit(self, *_: object) -> None:
        raise AssertionError


def die(*_: object, **_more: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _after(function: Callable[..., object]) -> Callable[..., object]:
    def call(*args: object, **more: object) -> object:
        function(*args, **more)
        die()
        return None

    return call


DEATHS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "noted": lambda patch: patch.setattr(module, "address_of", die),
    "looked at": lambda patch: patch.setattr(module, "bind_in_place", die),
    "bound": lambda patch: patch.setattr(module, "bind_in_place", _after(sockets.bind_in_place)),
    "received": lambda patch: patch.setattr(Notifications, "receive", _after(Notifications.receive)),
}


@pytest.mark.parametrize("moment", DEATHS)
def test_every_bind_is_answered_by_the_successor(moment: str) -> None:
    """One that died before it could note the call leaves it to the kernel: the daemon has its own port then."""
    unnoted = AFTER_LAST + 6 if moment == "received" else 0  # more than a successor looks ahead
    kills, given, own = max(unnoted, scaled(10, 100)), free_port(), free_port()
    with Filtered(BINDS.format(count=kills + 1, own=own)) as daemon:
        memory = Memory.new(given, own)
        memory.call = daemon.first_call
        memory.store()
        for _ in range(kills):
            assert _keeper(daemon, memory.fd, DEATHS[moment]) == -signal.SIGKILL
        assert _keeper(daemon, memory.fd, None) == 0
        ports = [int(word) for word in daemon.printed().split()]
        memory.close()
    report("keeper killed over a bind", moment=moment, kills=kills, answered=len(ports), given=ports.count(given))
    assert len(ports) == kills + 1
    assert set(ports) == ({own, given} if moment == "received" else {given})


def _keeper(daemon: Filtered, memory_fd: int, dies: Callable[[pytest.MonkeyPatch], None] | None) -> int:
    """A keeper in a process of its own, until it dies or the daemon has ended; its exit code."""
    pid = os.fork()
    if not pid:
        try:
            _serve(daemon, memory_fd, dies)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _serve(daemon: Filtered, memory_fd: int, dies: Callable[[pytest.MonkeyPatch], None] | None) -> None:
    answers = BindAnswers(
        daemon.notifications, Memory.of(memory_fd), lambda _port: False, Nowhere(), lambda _line: None
    )
    answers.take_over()
    if dies:
        dies(pytest.MonkeyPatch())
    poller = select.poll()
    poller.register(daemon.notifications.fileno(), select.POLLIN)
    while any(events & select.POLLIN for _, events in poller.poll(DEADLINE_S * 1000)):
        answers.turn()
    os._exit(0)
