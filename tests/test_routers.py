"""The keeper's routers against children and channels that are made up: who leads, whoever dies in between."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from turnout.children import Child, Children
from turnout.core.model import Identity
from turnout.errors import SpawnError
from turnout.routers import HEARD_TIMEOUT_S, LEAVE_TIMEOUT_S, SUCCESSOR_TIMEOUT_S, Routers
from turnout.system.control import Channel
from turnout.system.home import Home
from turnout.system.spawn import SpawnRequest


class World:
    """Forks nothing. Processes end when they are killed; time passes when it is told to."""

    def __init__(self, root: Path) -> None:
        self.sent: list[tuple[object, str]] = []
        self.killed: list[int] = []
        self.answers: list[Mapping[str, Any]] = []
        self.broken = False
        self._now = 0.0
        self._due: list[tuple[float, Callable[[], None]]] = []
        self._all: dict[str, Child] = {}
        self.routers = Routers(Home(root), cast("Children", self), self.after, {}, self.send, lambda _text: None)

    def get(self, boot_id: str) -> Child | None:
        return self._all.get(boot_id)

    def spawn(self, request: SpawnRequest) -> Child:
        if self.broken:
            raise SpawnError("no process to be had")
        child = cast("Child", FakeChild(request.boot_id, 100 + len(self._all)))
        self._all[child.boot_id] = child
        return child

    def kill(self, child: Child) -> None:
        self.killed.append(child.identity.pid)
        self.routers.ended(child)

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        self._due.append((self._now + delay_s, action))

    def pass_time(self, seconds: float) -> None:
        until = self._now + seconds
        while due := [entry for entry in self._due if entry[0] <= until]:
            entry = min(due, key=lambda entry: entry[0])
            self._due.remove(entry)
            self._now = entry[0]
            entry[1]()
        self._now = until

    def send(self, channel: Channel, message: Mapping[str, Any], _fds: Sequence[int]) -> None:
        self.sent.append((channel, str(message.get("op", "reply"))))

    def told(self, channel: Channel) -> list[str]:
        return [op for one, op in self.sent if one is channel]

    def attach(self, pid: int, phase: str) -> Channel:
        channel = cast("Channel", object())
        self.routers.attach(channel, {"pid": pid, "phase": phase, "id": 0}, [])
        return channel

    def led(self) -> tuple[int, Channel]:
        """A router that leads."""
        self.routers.wanted = True
        self.routers.start()
        assert self.routers.current is not None
        pid = self.routers.current.pid
        return pid, self.attach(pid, "leads")

    def replacing(self) -> tuple[int, Channel]:
        """A successor that stands by."""
        self.routers.replace(self.answers.append)
        pid = 100 + len(self._all) - 1
        return pid, self.attach(pid, "standby")

    def current_pid(self) -> int:
        """The one that leads or is about to; 0: none."""
        return self.routers.current.pid if self.routers.current else 0

    def end(self, pid: int) -> None:
        child = next(child for child in self._all.values() if child.identity.pid == pid)
        self.routers.ended(child)


class FakeChild:
    def __init__(self, boot_id: str, pid: int) -> None:
        self.boot_id = boot_id
        self.service = ""
        self.identity = Identity(pid)
        self.mine = True


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_successor_leads_and_only_then_is_the_replacement_answered(world: World) -> None:
    first, old = world.led()
    second, new = world.replacing()
    world.routers.ready(new)
    assert world.told(old)[-1] == "leave"
    assert world.answers == []
    world.routers.hears(old)
    world.routers.left(old)
    world.routers.leads(new)
    assert world.answers == [{"ok": True, "pid": second}]
    assert world.routers.leaving == [first]
    assert world.told(new)[-1] == "leaving"
    world.pass_time(LEAVE_TIMEOUT_S + SUCCESSOR_TIMEOUT_S)
    assert world.killed == []


def test_a_successor_that_dies_before_its_turn_changes_nothing(world: World) -> None:
    first, old = world.led()
    second, _ = world.replacing()
    world.end(second)
    assert [answer["ok"] for answer in world.answers] == [False]
    world.pass_time(60)
    assert world.current_pid() == first
    assert "leave" not in world.told(old)


@pytest.mark.parametrize("heard", [True, False])
def test_a_successor_that_dies_when_the_old_one_was_told_to_leave_is_followed_by_another(
    world: World, heard: bool
) -> None:
    first, old = world.led()
    second, new = world.replacing()
    world.routers.ready(new)
    if heard:
        world.routers.hears(old)
        world.routers.left(old)
    world.end(second)
    assert world.current_pid() not in {0, first, second}
    assert world.routers.leaving == [first]


def test_an_old_one_that_gives_no_sign_is_killed_soon_and_one_that_hangs_later(world: World) -> None:
    first, _ = world.led()
    _, new = world.replacing()
    world.routers.ready(new)
    world.pass_time(HEARD_TIMEOUT_S + 0.1)
    assert world.killed == [first]
    world.routers.leads(new)
    third, newest = world.replacing()
    world.routers.ready(newest)
    world.routers.hears(new)
    world.pass_time(HEARD_TIMEOUT_S + 0.1)
    assert world.killed == [first], "it is bringing a write to its end"
    world.pass_time(LEAVE_TIMEOUT_S)
    assert len(world.killed) == 2
    world.routers.leads(newest)
    assert world.answers[-1] == {"ok": True, "pid": third}


def test_an_old_one_that_hangs_with_the_lead_is_killed_also_when_its_successor_died(world: World) -> None:
    first, _ = world.led()
    second, new = world.replacing()
    world.routers.ready(new)
    world.end(second)
    world.pass_time(HEARD_TIMEOUT_S + 0.1)
    assert world.killed == [first]


def test_a_successor_that_does_not_come_up_is_killed_and_the_present_one_goes_on(world: World) -> None:
    first, _ = world.led()
    second, _ = world.replacing()
    world.pass_time(SUCCESSOR_TIMEOUT_S + 0.1)
    assert world.killed == [second]
    assert [answer["ok"] for answer in world.answers] == [False]
    assert world.current_pid() == first


def test_two_who_ask_get_one_successor(world: World) -> None:
    world.led()
    second, new = world.replacing()
    world.routers.replace(world.answers.append)
    world.routers.ready(new)
    world.routers.leads(new)
    assert world.answers == [{"ok": True, "pid": second}] * 2


def test_one_that_dies_while_its_successor_stands_by_is_followed_by_that(world: World) -> None:
    first, _ = world.led()
    second, new = world.replacing()
    world.end(first)
    world.pass_time(1.0)
    assert world.current_pid() == 0, "no third one is started: the lead is free, and the second takes it"
    world.routers.leads(new)
    assert world.current_pid() == second
    assert world.answers == [{"ok": True, "pid": second}]


def test_a_router_that_cannot_be_forked_is_tried_again_with_back_off(world: World) -> None:
    world.broken = True
    world.routers.wanted = True
    world.routers.start()
    world.pass_time(3.0)
    assert world.current_pid() == 0
    world.broken = False
    world.pass_time(6.0)
    assert world.current_pid()


def test_a_stranger_is_refused_and_its_listeners_are_closed(world: World) -> None:
    world.led()
    assert world.told(world.attach(99999, "standby")) == ["reply"]
    assert len(world.routers.leaving) == 0
