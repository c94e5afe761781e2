"""What a verb says of a keeper that cannot start a daemon exactly as it was asked to."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any

import pytest

from turnout.control.keeper_client import KeeperClient
from turnout.system.control_channel import Channel, Message

IDENTITY = {"ok": True, "pid": 1, "start_ticks": 2, "machine_boot_id": "m", "pid_ns": 3}
LIMITS = {"nofile": (300, 4096)}


class Answering(Channel):
    """A keeper that gives one answer, and keeps what it was asked."""

    def __init__(self, answer: Message) -> None:
        ours, self._theirs = socket.socketpair()
        super().__init__(ours)
        self.answer = answer
        self.asked: Mapping[str, Any] = {}

    def request(self, message: Mapping[str, Any], *_: object, **__: object) -> Message:
        self.asked = message
        return self.answer

    def close(self) -> None:
        super().close()
        self._theirs.close()


def said(answer: Message, **more: Any) -> tuple[Mapping[str, Any], list[str]]:
    channel, heard = Answering(answer), list[str]()
    with KeeperClient(channel) as keeper:
        keeper.spawn("s", "b", ["d"], cwd="/", env={}, on_warning=heard.append, **more)
    return channel.asked, heard


def test_limits_umask_and_program_go_to_the_keeper() -> None:
    asked, heard = said({**IDENTITY, "reduced": []}, program="/bin/d", umask=0o027, limits=LIMITS)
    assert (asked["program"], asked["umask"], asked["limits"]) == ("/bin/d", 0o027, LIMITS)
    assert heard == []


def test_a_keeper_of_an_earlier_version_is_named_as_what_gave_its_own_limits() -> None:
    _, (line,) = said(IDENTITY, umask=0o027, limits=LIMITS)
    assert "earlier version of turnout" in line
    assert "turnout down, then turnout up" in line


@pytest.mark.parametrize("more", [{}, {"program": "/bin/d"}])
def test_what_was_not_asked_for_is_not_missed(more: dict[str, Any]) -> None:
    asked, heard = said(IDENTITY, **more)
    assert heard == []
    assert not {"umask", "limits"} & set(asked)


def test_a_limit_that_the_keeper_cannot_give_is_named() -> None:
    _, (line,) = said({**IDENTITY, "reduced": ["nofile"]}, limits=LIMITS)
    assert "hard limit nofile below 300/4096" in line
