"""The keeper's routers against children and channels that are made up: who leads, whoever dies in between."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from turnout.core.model import Identity
from turnout.errors import ProtocolError, SpawnError
from turnout.keeper.children import Child, Children
from turnout.keeper.requests import Attach, request_of
from turnout.keeper.router_child import RouterStarts
from turnout.keeper.routers import (
    ACKNOWLEDGE_TIMEOUT_S,
    ADOPT_AGAIN_S,
    ATTACH_TIMEOUT_S,
    RELEASE_TIMEOUT_S,
    SUCCESSOR_TIMEOUT_S,
    Routers,
)
from turnout.state.home import Home
from turnout.system.control_channel import Channel
from turnout.system.home_identity import HomeIdentity
from turnout.system.interpreters import Interpreters
from turnout.system.net.listener import bind
from turnout.system.process import identify
from turnout.system.spawn import SpawnRequest
from turnout.system.spawn_record import EndRecord, SpawnRecord, write_record


class Scenario:
    """Forks nothing. Processes end when they are killed; time passes when it is told to."""

    def __init__(self, root: Path) -> None:
        self.sent: list[tuple[object, str]] = []
        self.killed: list[int] = []
        self.hanging: set[int] = set()
        self.answers: list[Mapping[str, Any]] = []
        self.broken = False
        self._home = Home(root)
        self.now = 0.0
        self._due: list[tuple[float, Callable[[], None]]] = []
        self._all: dict[str, Child] = {}
        self.routers = self.routers_of(lambda _text: None)

    def routers_of(self, log: Callable[[str], None], interpreters: Interpreters | None = None) -> Routers:
        children = cast("Children", self)
        starts = RouterStarts(self._home, children, self.after, log, interpreters)
        return Routers(self._home, children, starts, self.after, {}, self.send)

    def get(self, boot_id: str) -> Child | None:
        return self._all.get(boot_id)

    def spawn(self, request: SpawnRequest) -> Child:
        if self.broken:
            raise SpawnError("no process to be had")
        child = cast("Child", FakeChild(request.boot_id, 100 + len(self._all)))
        self._all[child.boot_id] = child
        return child

    def activity(self, child: Child) -> int:
        """A router that hangs stands still; any other is scheduled many times a second."""
        return 0 if child.identity.pid in self.hanging else int(self.now * 4)

    def adopt(self, record: SpawnRecord, service: str, path: Path) -> bool:
        assert (service, path.parent) == ("", self._home.root)
        if self.broken:
            return False
        child = cast("Child", FakeChild(record.boot_id, record.identity.pid))
        child.mine = False
        self._all[record.boot_id] = child
        return True

    def kill(self, child: Child) -> None:
        self.killed.append(child.identity.pid)
        self.routers.on_exit(child)

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        self._due.append((self.now + delay_s, action))

    def pass_time(self, seconds: float) -> None:
        until = self.now + seconds
        while due := [entry for entry in self._due if entry[0] <= until]:
            entry = min(due, key=lambda entry: entry[0])
            self._due.remove(entry)
            self.now = entry[0]
            entry[1]()
        self.now = until

    def send(self, channel: Channel, message: Mapping[str, Any], _fds: Sequence[int]) -> None:
        self.sent.append((channel, str(message.get("op", "reply"))))

    def told(self, channel: Channel) -> list[str]:
        return [op for one, op in self.sent if one is channel]

    def attach(self, pid: int, phase: str) -> Channel:
        channel = FakeChannel(pid)
        request = request_of({"op": "attach", "pid": pid, "phase": phase})
        assert isinstance(request, Attach)
        self.routers.attach(cast("Channel", channel), 0, request, [])
        return cast("Channel", channel)

    def led(self) -> tuple[int, Channel]:
        """A router that leads."""
        self.routers.wanted = True
        self.routers.start()
        assert self.routers.leader is not None
        pid = self.routers.leader.pid
        return pid, self.attach(pid, "leads")

    def replacing(self) -> tuple[int, Channel]:
        """A successor that stands by."""
        self.routers.replace(self.answers.append)
        pid = 100 + len(self._all) - 1
        return pid, self.attach(pid, "standby")

    def current_pid(self) -> int:
        """The one that leads or is about to; 0: none."""
        return self.routers.leader.pid if self.routers.leader else 0

    def end(self, pid: int) -> None:
        child = next(child for child in self._all.values() if child.identity.pid == pid)
        self.routers.on_exit(child)


class FakeChild:
    def __init__(self, boot_id: str, pid: int) -> None:
        self.boot_id = boot_id
        self.service = ""
        self.identity = Identity(pid)
        self.mine = True


class FakeChannel:
    def __init__(self, peer_pid: int) -> None:
        self.peer_pid = peer_pid


@pytest.fixture
def scenario(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scenario:
    scenario = Scenario(tmp_path)
    monkeypatch.setattr(time, "monotonic", lambda: scenario.now)
    return scenario


def test_a_successor_leads_and_only_then_is_the_replacement_answered(scenario: Scenario) -> None:
    first, old = scenario.led()
    second, new = scenario.replacing()
    scenario.routers.on_ready(new)
    assert scenario.told(old)[-1] == "leave"
    assert scenario.answers == []
    scenario.routers.on_leave_acknowledged(old)
    scenario.routers.on_lead_released(old)
    scenario.routers.on_lead_taken(new)
    assert scenario.answers == [{"ok": True, "pid": second}]
    assert scenario.routers.draining_pids == [first]
    assert scenario.told(new)[-1] == "leaving"
    scenario.pass_time(RELEASE_TIMEOUT_S + SUCCESSOR_TIMEOUT_S)
    assert scenario.killed == []


def test_a_successor_that_dies_before_its_turn_changes_nothing(scenario: Scenario) -> None:
    first, old = scenario.led()
    second, _ = scenario.replacing()
    scenario.end(second)
    assert [answer["ok"] for answer in scenario.answers] == [False]
    scenario.pass_time(60)
    assert scenario.current_pid() == first
    assert "leave" not in scenario.told(old)


@pytest.mark.parametrize("heard", [True, False])
def test_a_successor_that_dies_when_the_old_one_was_told_to_leave_is_followed_by_another(
    scenario: Scenario, heard: bool
) -> None:
    first, old = scenario.led()
    second, new = scenario.replacing()
    scenario.routers.on_ready(new)
    if heard:
        scenario.routers.on_leave_acknowledged(old)
        scenario.routers.on_lead_released(old)
    scenario.end(second)
    assert scenario.current_pid() not in {0, first, second}
    assert scenario.routers.draining_pids == [first]


def test_an_old_one_that_gives_no_sign_is_killed_soon_and_one_that_hangs_later(scenario: Scenario) -> None:
    first, _ = scenario.led()
    _, new = scenario.replacing()
    scenario.routers.on_ready(new)
    scenario.pass_time(ACKNOWLEDGE_TIMEOUT_S + 0.1)
    assert scenario.killed == [first]
    scenario.routers.on_lead_taken(new)
    third, newest = scenario.replacing()
    scenario.routers.on_ready(newest)
    scenario.routers.on_leave_acknowledged(new)
    scenario.pass_time(ACKNOWLEDGE_TIMEOUT_S + 0.1)
    assert scenario.killed == [first], "it is bringing a write to its end"
    scenario.pass_time(RELEASE_TIMEOUT_S)
    assert len(scenario.killed) == 2
    scenario.routers.on_lead_taken(newest)
    assert scenario.answers[-1] == {"ok": True, "pid": third}


def test_an_old_one_that_hangs_with_the_lead_is_killed_also_when_its_successor_died(scenario: Scenario) -> None:
    first, _ = scenario.led()
    second, new = scenario.replacing()
    scenario.routers.on_ready(new)
    scenario.end(second)
    scenario.pass_time(ACKNOWLEDGE_TIMEOUT_S + 0.1)
    assert scenario.killed == [first]


def test_a_successor_that_does_not_come_up_is_killed_and_the_present_one_goes_on(scenario: Scenario) -> None:
    first, _ = scenario.led()
    second, _ = scenario.replacing()
    scenario.pass_time(SUCCESSOR_TIMEOUT_S + 0.1)
    assert scenario.killed == [second]
    assert [answer["ok"] for answer in scenario.answers] == [False]
    assert scenario.current_pid() == first


def test_two_who_ask_get_one_successor(scenario: Scenario) -> None:
    scenario.led()
    second, new = scenario.replacing()
    scenario.routers.replace(scenario.answers.append)
    scenario.routers.on_ready(new)
    scenario.routers.on_lead_taken(new)
    assert scenario.answers == [{"ok": True, "pid": second}] * 2


def test_one_that_dies_while_its_successor_stands_by_is_followed_by_that(scenario: Scenario) -> None:
    first, _ = scenario.led()
    second, new = scenario.replacing()
    scenario.end(first)
    scenario.pass_time(1.0)
    assert scenario.current_pid() == 0, "no third one is started: the lead is free, and the second takes it"
    scenario.routers.on_lead_taken(new)
    assert scenario.current_pid() == second
    assert scenario.answers == [{"ok": True, "pid": second}]


def test_a_router_that_cannot_be_forked_is_tried_again_with_back_off(scenario: Scenario) -> None:
    scenario.broken = True
    scenario.routers.wanted = True
    scenario.routers.start()
    scenario.pass_time(3.0)
    assert scenario.current_pid() == 0
    scenario.broken = False
    scenario.pass_time(6.0)
    assert scenario.current_pid()


def test_a_stranger_is_refused_and_its_listeners_are_closed(scenario: Scenario) -> None:
    scenario.led()
    assert scenario.told(scenario.attach(99999, "standby")) == ["reply"]
    assert len(scenario.routers.draining_pids) == 0


def test_a_replacement_that_cannot_be_started_is_answered_with_the_reason(scenario: Scenario) -> None:
    first, _ = scenario.led()
    scenario.broken = True
    scenario.routers.replace(scenario.answers.append)
    (answer,) = scenario.answers
    assert not answer["ok"]
    assert "no process to be had" in answer["message"]
    assert f"router {first} goes on" in answer["message"]
    assert scenario.current_pid() == first


def test_a_replacement_of_none_is_answered_once_it_leads(scenario: Scenario) -> None:
    scenario.routers.replace(scenario.answers.append)
    assert scenario.answers == [], "it runs, and leads nothing yet"
    pid = scenario.current_pid()
    scenario.attach(pid, "leads")
    assert scenario.answers == [{"ok": True, "pid": pid}]


def test_a_replacement_of_none_that_dies_is_answered_and_tried_again(scenario: Scenario) -> None:
    scenario.routers.replace(scenario.answers.append)
    scenario.end(scenario.current_pid())
    (answer,) = scenario.answers
    assert (answer["ok"], "no router runs" in answer["message"]) == (False, True)
    scenario.pass_time(1)
    assert scenario.current_pid(), "another one was started"


def test_what_a_router_says_counts_from_a_router_alone(scenario: Scenario) -> None:
    pid, channel = scenario.led()
    stranger = cast("Channel", FakeChannel(1))
    scenario.routers.on_ready(stranger)
    assert "leave" not in scenario.told(channel)
    request = request_of({"op": "attach", "pid": pid, "phase": "leaving"})
    assert isinstance(request, Attach)
    assert scenario.routers.attach(stranger, 0, request, []) is None
    assert scenario.current_pid() == pid
    assert not scenario.routers.has_channel(stranger)


def test_why_no_router_can_be_started_is_said_once_and_kept(tmp_path: Path) -> None:
    lines: list[str] = []
    scenario = Scenario(tmp_path)
    routers = scenario.routers_of(lines.append)
    scenario.broken = True
    routers.wanted = True
    routers.start()
    scenario.pass_time(20)
    assert [line for line in lines if "no process to be had" in line] == [lines[0]]
    assert "no process to be had" in routers.starts.trouble
    scenario.broken = False
    scenario.pass_time(10)
    assert (routers.starts.trouble, routers.leader is not None) == ("", True)


def test_a_router_that_does_not_come_up_has_the_next_one_tried_with_another_interpreter(
    scenario: Scenario, tmp_path: Path
) -> None:
    for name in ("old", "new"):
        (tmp_path / name).symlink_to("/bin/sh")
    interpreters = Interpreters(str(tmp_path / "old"))
    routers = scenario.routers_of(lambda _text: None, interpreters)
    scenario.routers = routers
    routers.prefer_interpreter(str(tmp_path / "new"))
    routers.wanted = True
    routers.start()
    assert routers.leader
    assert routers.leader.interpreter == str(tmp_path / "new")
    scenario.end(scenario.current_pid())
    scenario.pass_time(1)
    assert routers.leader.interpreter == str(tmp_path / "old")


def test_descriptors_that_are_no_listeners_are_closed_and_what_else_comes_along_is_taken(scenario: Scenario) -> None:
    """A router may not know yet that one of its listeners was shut down; without it, it serves all the same."""
    pid, _ = scenario.led()
    read, write = os.pipe()
    connected, other = socket.socketpair()
    request = request_of({"op": "attach", "pid": pid, "listeners": [["a", "127.0.0.1", 1], ["a", "127.0.0.1", 2]]})
    assert isinstance(request, Attach)
    with pytest.raises(ProtocolError):
        scenario.routers.attach(cast("Channel", FakeChannel(pid)), 0, request, [os.dup(read)])
    shut = bind("127.0.0.1", 0)
    shut.shutdown(socket.SHUT_RDWR)
    names = [["a", "127.0.0.1", 1], ["b", "127.0.0.1", 2], ["c", "127.0.0.1", 3], ["d", "127.0.0.1", 4]]
    request = request_of({"op": "attach", "pid": pid, "listeners": names})
    assert isinstance(request, Attach)
    listening = bind("127.0.0.1", 0)
    fds = [read, connected.detach(), shut.detach(), listening.detach()]
    scenario.routers.attach(cast("Channel", FakeChannel(pid)), 0, request, fds)
    assert [*scenario.routers._served] == ["d"]
    scenario.routers._served["d"].close()
    for closed in (write, other.fileno()):  # the other ends tell
        with pytest.raises(OSError, match=r"Broken pipe|closed"):
            os.write(closed, b"x")
    os.close(write)
    other.close()


def test_a_router_that_runs_and_cannot_attach_again_keeps_its_clients(scenario: Scenario) -> None:
    pid, channel = scenario.led()
    scenario.routers.on_channel_closed(channel)  # it has no descriptor left, or its home's file system hangs
    scenario.pass_time(10 * ATTACH_TIMEOUT_S)
    assert (scenario.killed, scenario.current_pid()) == ([], pid)
    scenario.attach(pid, "leads")
    assert scenario.routers.leader
    assert scenario.routers.leader.leads


def test_a_router_that_attaches_again_and_again_keeps_its_clients(scenario: Scenario) -> None:
    pid, channel = scenario.led()
    for _ in range(40):  # it cannot take a listener that it is offered, closes the connection, and tries again
        scenario.routers.on_channel_closed(channel)
        scenario.pass_time(1.0)
        assert scenario.killed == []
        channel = scenario.attach(pid, "leads")


def test_a_router_that_hangs_and_is_not_attached_is_replaced(scenario: Scenario) -> None:
    pid, channel = scenario.led()
    scenario.routers.on_channel_closed(channel)
    scenario.pass_time(1.5 * ATTACH_TIMEOUT_S)
    scenario.hanging.add(pid)
    scenario.pass_time(2 * ATTACH_TIMEOUT_S)
    assert scenario.killed == [pid]
    assert scenario.current_pid() != pid


@pytest.mark.parametrize("hangs", [False, True])
def test_a_router_of_an_earlier_keeper_is_replaced_if_it_hangs_and_else_keeps_its_clients(
    scenario: Scenario, tmp_path: Path, *, hangs: bool
) -> None:
    home = Home(tmp_path)
    record = SpawnRecord("router-1", "", identify(os.getpid()), "", 0.0, home=HomeIdentity.of(tmp_path))
    write_record(home.router_record("router-1"), record)
    if hangs:
        scenario.hanging.add(os.getpid())
    scenario.routers.adopt()
    assert scenario.current_pid() == os.getpid()
    scenario.pass_time(5 * ATTACH_TIMEOUT_S)
    assert scenario.killed[:1] == ([os.getpid()] if hangs else [])


def test_a_router_of_an_earlier_keeper_that_cannot_be_watched_yet_keeps_its_record_and_is_adopted_later(
    scenario: Scenario, tmp_path: Path
) -> None:
    path = Home(tmp_path).router_record("router-1")
    write_record(path, SpawnRecord("router-1", "", identify(os.getpid()), "", 0.0, home=HomeIdentity.of(tmp_path)))
    scenario.broken = True  # no descriptor is left
    scenario.routers.adopt()
    scenario.pass_time(3 * ADOPT_AGAIN_S)
    assert path.exists(), "it runs, and leads"
    scenario.broken = False
    scenario.pass_time(ADOPT_AGAIN_S)
    assert scenario.current_pid() == os.getpid()
    channel = scenario.attach(os.getpid(), "leads")
    scenario.pass_time(3 * ADOPT_AGAIN_S)
    assert scenario.routers.has_channel(channel), "it is adopted once"


def test_the_record_of_a_router_that_has_ended_is_removed(scenario: Scenario, tmp_path: Path) -> None:
    path = Home(tmp_path).router_record("router-1")
    write_record(path, SpawnRecord("router-1", "", Identity(1), "", 0.0, ended=EndRecord(0, 0.0)))
    scenario.routers.adopt()
    assert not path.exists()
    assert not scenario.routers.wanted


def test_a_router_of_an_earlier_keeper_counts_as_draining_until_it_names_its_phase(
    scenario: Scenario, tmp_path: Path
) -> None:
    """The leader, which attaches first, would have daemons stopped whose clients the other one still carries."""
    home = Home(tmp_path)
    drains, leads = os.getppid(), os.getpid()
    for number, pid in enumerate((drains, leads)):
        boot_id = f"router-{number}"
        record = SpawnRecord(boot_id, "", identify(pid), "", float(number), home=HomeIdentity.of(tmp_path))
        write_record(home.router_record(boot_id), record)
    scenario.routers.adopt()
    channel = scenario.attach(leads, "leads")
    assert (scenario.routers.draining_pids, scenario.current_pid()) == ([drains], leads)
    assert scenario.told(channel)[-1] == "leaving"
    scenario.attach(drains, "leaving")
    assert scenario.routers.draining_pids == [drains]
    scenario.end(drains)
    assert scenario.routers.draining_pids == []
    assert scenario.told(channel)[-1] == "leaving"


def test_a_router_that_never_attached_carries_nothing_and_is_replaced(scenario: Scenario) -> None:
    scenario.routers.wanted = True
    scenario.routers.start()
    pid = scenario.current_pid()
    scenario.pass_time(ATTACH_TIMEOUT_S)
    assert scenario.killed == [pid]


def test_a_router_brings_the_listeners_of_many_services_in_several_messages(scenario: Scenario) -> None:
    """A message has 192 descriptors at most; the router is attached with the last of them."""
    pid, before = scenario.led()
    channel = cast("Channel", FakeChannel(pid))
    for name, more in (("a", True), ("b", False)):
        message = {"op": "attach", "pid": pid, "phase": "leads", "listeners": [[name, "127.0.0.1", 1]], "more": more}
        request = request_of(message)
        assert isinstance(request, Attach)
        dropped = scenario.routers.attach(channel, 0, request, [bind("127.0.0.1", 0).detach()])
        assert dropped is (None if more else before)
        assert scenario.routers.has_channel(channel) is not more
    assert [*scenario.routers._served] == ["a", "b"]
    for served in scenario.routers._served.values():
        served.close()


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({"groups": {"a": {"version": 1, "home": 0, "order": [[0, "v1"]]}}}, id="daemons' listeners alone"),
        pytest.param({"homes": {"a": 9}}, id="an index that there is not"),
    ],
)
def test_a_group_that_cannot_be_taken_over_keeps_the_router_from_nothing_else(
    scenario: Scenario, more: dict[str, Any]
) -> None:
    pid, _ = scenario.led()
    first = bind("127.0.0.1", 0)
    first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    host, port = first.getsockname()
    socks = [first, bind(host, port, shared=True), bind("127.0.0.1", 0)]
    if "groups" in more:
        more["groups"]["a"]["order"] = [[os.fstat(sock.fileno()).st_ino, "v1"] for sock in socks[:2]]
    names = [["a", host, port], ["a", host, port], ["b", "127.0.0.1", 2]]
    request = request_of({"op": "attach", "pid": pid, "phase": "leads", "listeners": names, **more})
    assert isinstance(request, Attach)
    channel = cast("Channel", FakeChannel(pid))
    scenario.routers.attach(channel, 0, request, [sock.detach() for sock in socks])
    assert scenario.routers.has_channel(channel)
    assert [*scenario.routers._served] == ["b"]
    scenario.routers._served["b"].close()
    bind(host, port).close()  # nothing of the group is left open
