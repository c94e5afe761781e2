"""The keeper's requests against parts that are made up: each reaches its part, and each is answered once."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from turnout.core.model import Identity
from turnout.errors import NotBegunError
from turnout.keeper.activations import run_under_filter
from turnout.keeper.children import Child
from turnout.keeper.request_handler import RequestHandler
from turnout.state.home import Home
from turnout.system.control_channel import Channel
from turnout.system.home_identity import HomeIdentity

LISTEN = {"op": "listen", "service": "a", "addresses": [["127.0.0.1", 7000]], "interpreter": "/usr/bin/python3"}
SPAWN = {"op": "spawn", "service": "a", "boot_id": "b1", "argv": ["daemon"], "cwd": "/", "env": {"A": "b"}}
STOP = {"op": "stop", "service": "a", "boot_id": "b1", "signal": "TERM", "grace_s": 2}


@dataclass
class FakeSocket:
    sent: list[Mapping[str, Any]] = field(default_factory=list)
    dropped: list[object] = field(default_factory=list)

    def send(self, _channel: Channel, message: Mapping[str, Any]) -> None:
        self.sent.append(message)

    def drop(self, channel: Channel) -> None:
        self.dropped.append(channel)


@dataclass
class FakeChildren:
    """No child, unless ``running`` has it. A start is over when the test calls ``done``."""

    calls: list[tuple[object, ...]] = field(default_factory=list)
    running: dict[str, Child] = field(default_factory=dict)
    starting: set[str] = field(default_factory=set)
    deferred: list[Callable[[], None]] = field(default_factory=list)
    done: Callable[[Any], None] = lambda _result: None

    def get(self, boot_id: str) -> Child | None:
        return self.running.get(boot_id)

    def is_starting(self, boot_id: str) -> bool:
        return boot_id in self.starting

    def after_start(self, boot_id: str, action: Callable[[], None]) -> bool:
        if boot_id in self.starting:
            self.deferred.append(action)
        return boot_id in self.starting

    def spawn_daemon(self, request: Any, done: Callable[[Any], None]) -> None:
        self.calls.append(("spawn", request.boot_id, request.env, request.pass_fds))
        self.held = (request.held_fds, request.before_exec)
        self.starting.add(request.boot_id)
        self.done = done

    def stop(self, child: Child, number: int, grace_s: float, reply: Callable[[Mapping[str, Any]], None]) -> None:
        self.calls.append(("stop", child.boot_id, number, grace_s))
        reply({"ok": True, "gone": True})

    def end_orphans(self, boot_id: str, number: int, grace_s: float, reply: Callable[[Any], None]) -> None:
        self.calls.append(("end orphans", boot_id, number, grace_s))
        reply({"ok": True, "gone": True})

    def kill(self, child: Child) -> None:
        self.calls.append(("kill", child.boot_id))


class FakeRouters:
    """The routers' channels are those in ``channels``; every method call is noted."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.channels: set[object] = set()
        self.leader = None
        self.draining_pids = [11]
        self.starts = type("Starts", (), {"trouble": "no interpreter"})()
        self.wanted = False
        self.before: object = None

    def has_channel(self, channel: object) -> bool:
        return channel in self.channels

    def is_router(self, child: Child) -> bool:
        return child.boot_id.startswith("router-")

    def attach(self, channel: object, number: object, _request: object, fds: list[int]) -> object:
        self.calls.append(("attach", channel, number, len(fds)))
        for fd in fds:
            os.close(fd)
        return self.before

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args: self.calls.append((name, *args))


@dataclass
class FakeListeners:
    served: dict[str, Any] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    error: OSError | None = None
    listener: Any = None

    def bind(self, name: str, addresses: list[tuple[str, int]]) -> bool:
        if self.error:
            raise self.error
        self.served[name] = type("Served", (), {"addresses": addresses})()
        return True

    def unbind(self, name: str) -> bool:
        return self.served.pop(name, None) is not None

    def take(self, *_: object) -> tuple[Any, int]:
        if self.error:
            raise self.error
        return self.listener, 0

    def group_of(self, name: str) -> None:
        self.calls.append(f"group of {name}")

    def watch(self) -> None:
        self.calls.append("watch")

    def refresh(self) -> None:
        self.calls.append("refresh")


@dataclass
class FakeActivations:
    calls: list[tuple[object, ...]] = field(default_factory=list)

    def prepare(self, service: str, boot_id: str, *, given: int, serving: int, shares: bool) -> tuple[int, ...]:
        self.calls.append(("prepare", service, boot_id, given, serving, shares))
        return (91, 92, 93)

    def started(self, boot_id: str, held: object, *, runs: bool) -> None:
        self.calls.append(("started", boot_id, held, runs))

    def binds_of(self, boot_id: str) -> dict[str, object]:
        return {"serving": 3000, "others": [9100], "trouble": boot_id}


class FakeListener:
    def __init__(self) -> None:
        self.closings = 0

    def fileno(self) -> int:
        return 99

    def close(self) -> None:
        self.closings += 1


class Scene:
    def __init__(self, root: Path) -> None:
        self.home = Home(root)
        self.home.service("a").create()
        self.socket, self.children, self.routers, self.listeners = (
            FakeSocket(),
            FakeChildren(),
            FakeRouters(),
            FakeListeners(),
        )
        self.activations = FakeActivations()
        self.shut_down = 0
        socket, children, routers, listeners = cast("Any", (self.socket, self.children, self.routers, self.listeners))
        activations = cast("Any", self.activations)
        self.handler = RequestHandler(self.home, socket, children, routers, listeners, activations, self._shut_down)

    def _shut_down(self) -> None:
        self.shut_down += 1

    def ask(self, message: Mapping[str, Any], fds: tuple[int, ...] = (), channel: object = "verb") -> Mapping[str, Any]:
        """The one answer to a request; empty where there is none yet."""
        self.socket.sent.clear()
        self.handler.on_message(cast("Channel", channel), {**message, "id": 5}, list(fds))
        assert len(self.socket.sent) <= 1
        return self.socket.sent[0] if self.socket.sent else {}

    def child(self, boot_id: str, service: str = "a") -> Child:
        unused: Any = None
        child = Child(boot_id, service, unused, Path("/r"), Path("/l"), Identity(7), mine=True)
        self.children.running[boot_id] = child
        return child


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path / "home")


def test_hello_names_the_services_the_routers_that_drain_and_why_none_starts(scene: Scene) -> None:
    scene.ask(LISTEN)
    answer = scene.ask({"op": "hello"})
    assert (answer["re"], answer["ok"], answer["pid"]) == (5, True, os.getpid())
    assert (answer["router_pid"], answer["attached"], answer["leaving"]) == (0, False, [11])
    assert (answer["services"], answer["trouble"]) == ({"a": [("127.0.0.1", 7000)]}, "no interpreter")


def test_a_service_that_is_listened_for_has_a_router_started_with_the_verbs_interpreter(scene: Scene) -> None:
    assert scene.ask(LISTEN) == {"ok": True, "re": 5}
    assert scene.routers.calls == [("prefer_interpreter", "/usr/bin/python3"), ("start",)]
    assert scene.routers.wanted


def test_an_address_that_cannot_be_bound_is_named_and_no_router_is_started(scene: Scene) -> None:
    scene.listeners.error = OSError(errno.EADDRINUSE, "in use", "127.0.0.1:7000")
    answer = scene.ask(LISTEN)
    assert (answer["ok"], answer["error"], answer["errno"]) == (False, "bind", errno.EADDRINUSE)
    assert answer["address"] == "127.0.0.1:7000"
    assert ("start",) not in scene.routers.calls
    assert not scene.routers.wanted


def test_addresses_are_given_back_and_the_routers_are_sent_that_once(scene: Scene) -> None:
    scene.ask(LISTEN)
    assert scene.ask({"op": "unlisten", "service": "a"})["left"] == []
    assert scene.ask({"op": "unlisten", "service": "a"})["ok"]
    assert scene.routers.calls.count(("send_all", {"op": "unlisten", "service": "a"})) == 1


def test_a_daemon_is_answered_when_its_start_is_over_and_its_listener_is_closed_here(scene: Scene) -> None:
    listener = scene.listeners.listener = FakeListener()
    assert scene.ask(SPAWN) == {}, "the start takes its time"
    ((_, boot_id, env, fds),) = scene.children.calls
    assert (boot_id, cast("dict[str, str]", env)["A"], fds) == ("b1", "b", (99,))
    assert listener.closings == 0
    scene.children.done(scene.child("b1"))
    (answer,) = scene.socket.sent
    assert (answer["ok"], answer["pid"], answer["reduced"]) == (True, 7, ())
    assert listener.closings == 1
    assert "refresh" in scene.listeners.calls


@pytest.mark.parametrize("runs", [True, False])
def test_a_daemon_that_is_activated_is_started_with_what_its_shim_holds(scene: Scene, runs: bool) -> None:
    scene.ask({**SPAWN, "activation": {"given": 40001, "serving": 3000}})
    assert scene.children.held == ((91, 92, 93), run_under_filter)
    boot_id = str(SPAWN["boot_id"])
    assert scene.activations.calls == [("prepare", "a", boot_id, 40001, 3000, False)]
    scene.children.done(scene.child(boot_id) if runs else NotBegunError("broken"))
    assert scene.activations.calls[1:] == [("started", boot_id, (91, 92, 93), runs)]
    found = scene.ask({"op": "binds", "service": "a", "boot_id": boot_id})
    assert (found["serving"], found["others"], found["trouble"]) == (3000, [9100], boot_id)


def test_the_group_is_open_before_a_daemon_is_started_that_will_join_it(scene: Scene) -> None:
    """The router has until the daemon's bind to make room at the lowest index."""
    scene.ask({**SPAWN, "activation": {"given": 40001, "serving": 0}, "listener": "shared"})
    assert scene.listeners.calls == ["group of a"]
    assert scene.activations.calls == [("prepare", "a", str(SPAWN["boot_id"]), 40001, 0, True)]


def test_a_service_whose_daemons_will_share_its_address_has_an_open_group(scene: Scene) -> None:
    request = {"op": "listen", "service": "a", "addresses": [["127.0.0.1", 7000]]}
    scene.ask(request)
    assert scene.listeners.calls == []
    scene.ask({**request, "shared": True})
    assert scene.listeners.calls == ["group of a"]


@pytest.mark.parametrize("value", [7, {}, {"given": 0, "serving": 1}, {"given": 1, "serving": 65536}, {"given": True}])
def test_an_activation_without_its_ports_is_refused(scene: Scene, value: object) -> None:
    assert scene.ask({**SPAWN, "activation": value})["error"] == "ProtocolError"
    assert scene.activations.calls == []


def test_a_daemon_that_is_not_activated_has_nothing_held(scene: Scene) -> None:
    scene.ask(SPAWN)
    assert scene.children.held == ((), None)


def test_a_start_that_fails_is_answered_with_the_reason_and_its_listener_is_closed(scene: Scene) -> None:
    listener = scene.listeners.listener = FakeListener()
    scene.ask(SPAWN)
    scene.children.done(NotBegunError("no process to be had", hint="ulimit -u"))
    (answer,) = scene.socket.sent
    assert (answer["error"], answer["message"], answer["hint"]) == (
        "NotBegunError",
        "no process to be had",
        "ulimit -u",
    )
    assert listener.closings == 1


def test_a_boot_that_runs_or_starts_is_not_started_again(scene: Scene) -> None:
    scene.ask(SPAWN)
    assert "already runs" in scene.ask(SPAWN)["message"]
    scene.children.starting.clear()
    scene.child("b1")
    assert "already runs" in scene.ask(SPAWN)["message"]
    assert len(scene.children.calls) == 1


def test_a_stop_reaches_the_daemon_or_its_orphans_or_waits_for_the_start(scene: Scene) -> None:
    scene.children.starting.add("b1")
    assert scene.ask(STOP) == {}
    assert scene.children.calls == []
    scene.children.starting.clear()
    scene.child("b1")
    (deferred,) = scene.children.deferred
    deferred()
    assert scene.socket.sent == [{"ok": True, "gone": True, "re": 5}]
    del scene.children.running["b1"]
    assert scene.ask(STOP)["gone"]
    assert scene.children.calls == [("stop", "b1", 15, 2.0), ("end orphans", "b1", 15, 2.0)]


def test_a_router_and_a_daemon_of_another_service_are_not_stopped(scene: Scene) -> None:
    scene.child("router-1", service="")
    scene.child("b2", service="b")
    assert "is a router" in scene.ask({**STOP, "boot_id": "router-1"})["message"]
    assert "is a daemon of service b, not of a" in scene.ask({**STOP, "boot_id": "b2"})["message"]
    assert scene.children.calls == []


def test_a_request_for_another_home_is_refused(scene: Scene, tmp_path: Path) -> None:
    other = HomeIdentity.of(tmp_path)
    own = HomeIdentity.of(scene.home.root)
    assert other
    assert own
    answer = scene.ask({**LISTEN, "home": other.dumps()})
    assert (answer["error"], scene.listeners.served) == ("ConflictError", {})
    assert scene.ask({**LISTEN, "home": own.dumps()})["ok"]


def test_descriptors_of_a_request_that_takes_none_are_closed(scene: Scene) -> None:
    read, write = os.pipe()
    assert scene.ask({"op": "hello"}, (read, write))["ok"]
    for fd in (read, write):
        with pytest.raises(OSError, match="descriptor"):
            os.fstat(fd)


def test_a_router_that_attaches_takes_the_place_of_its_previous_connection(scene: Scene) -> None:
    read, write = os.pipe()
    scene.routers.before = "previous"
    scene.ask({"op": "attach", "pid": 8}, (read,), channel="router")
    os.close(write)
    assert scene.routers.calls == [("attach", "router", 5, 1)]
    assert (scene.socket.dropped, scene.listeners.calls) == (["previous"], ["watch"])


@pytest.mark.parametrize("op", ["ready", "heard", "left", "leads", "seen", "cut"])
def test_a_report_counts_from_a_router_alone(scene: Scene, op: str) -> None:
    report = {"op": op, "service": "a", "version": 1, "slot": 0, "boot_id": "b1"}
    assert "only a router" in scene.ask(report)["message"]
    assert scene.routers.calls == []
    scene.routers.channels.add("router")
    assert scene.ask(report, channel="router") == {}, "a report is not answered"
    assert len(scene.routers.calls) == 1


def test_an_error_of_the_system_ends_the_request_and_names_the_log(scene: Scene) -> None:
    scene.listeners.error = OSError(errno.EIO, "I/O error")
    answer = scene.ask(SPAWN)
    assert answer["message"] == "the keeper cannot spawn: I/O error"
    assert str(scene.home.keeper_log) in answer["hint"]


def test_a_message_that_is_no_request_is_refused(scene: Scene) -> None:
    assert scene.ask({"op": "nonsense"})["error"] == "ProtocolError"
    assert scene.ask({"op": "listen"})["error"] == "ProtocolError"


def test_a_keeper_that_goes_down_adds_nothing_and_still_stops_daemons(scene: Scene) -> None:
    scene.handler.going_down = True
    for request in (LISTEN, SPAWN, {"op": "replace_router"}):
        assert "going down" in scene.ask(request)["message"]
    assert scene.ask(STOP)["ok"]
    assert scene.ask({"op": "hello"})["ok"]
    assert scene.routers.calls == []


def test_a_keeper_that_shuts_down_answers_nothing_but_a_shutdown(scene: Scene) -> None:
    scene.handler.shutting_down = True
    for request in (LISTEN, SPAWN, STOP, {"op": "hello"}, {"op": "kill_router", "pid": 8}):
        assert "shutting down" in scene.ask(request)["message"]
    assert scene.ask({"op": "shutdown"})["ok"]
    assert scene.shut_down == 1


def test_a_daemon_whose_start_ends_during_the_shutdown_is_killed(scene: Scene) -> None:
    scene.ask(SPAWN)
    scene.handler.shutting_down = True
    scene.children.done(scene.child("b1"))
    assert ("kill", "b1") in scene.children.calls
    assert scene.socket.sent[0]["error"] == "NotRunningError"


def test_a_verb_has_the_router_replaced_and_a_silent_one_killed(scene: Scene) -> None:
    scene.ask({"op": "replace_router"})
    assert scene.ask({"op": "kill_router", "pid": 8})["ok"]
    assert [call[0] for call in scene.routers.calls] == ["replace", "kill_silent"]
    assert scene.routers.calls[1] == ("kill_silent", 8)
