"""How a verb finds, starts and takes back keeper and router, which are fakes here; time passes where it sleeps."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import msgspec
import pytest

from turnout.config.settings import Address, Settings
from turnout.control.keeper_client import KeeperInfo
from turnout.control.keeper_watchdog import SILENT_AFTER_S
from turnout.core.model import Identity
from turnout.errors import (
    AddressInUseError,
    ConflictError,
    NotRunningError,
    StillRunningError,
    TimedOutError,
    TurnoutError,
)
from turnout.lifecycle import bootstrap as bootstrap_module
from turnout.lifecycle.bootstrap import ROUTER_TIMEOUT_S, Bootstrap
from turnout.state.home import Home
from turnout.system.process import own_identity
from turnout.system.spawn_record import SpawnRecord, write_record

DEAD = Identity(2**22 - 1, 1)
ROUTER_PID = 8


class FakeLine:
    """One conversation with the keeper of the scene."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.scene.open_lines -= 1

    def hello(self) -> KeeperInfo:
        scene = self.scene
        return KeeperInfo(7, "1", scene.router_pid, scene.is_attached(), scene.services, trouble=scene.trouble)

    def listen(self, settings: Settings) -> None:
        self.scene.did.append("listen")
        if self.scene.listen_error:
            raise self.scene.listen_error
        self.scene.services[settings.name] = [(address.host, address.port) for address in settings.listen]

    def unlisten(self, service: str) -> list[str]:
        self.scene.did.append(f"unlisten {service}")
        self.scene.services.pop(service, None)
        return sorted(self.scene.services)

    def shutdown(self) -> None:
        self.scene.did.append("shutdown")

    def kill_router(self, pid: int) -> None:
        self.scene.did.append(f"kill router {pid}")
        self.scene.on_replaced()

    def replace_router(self) -> int:
        self.scene.did.append("replace router")
        self.scene.on_replaced()
        return ROUTER_PID

    def stop(self, service: str, boot_id: str, *, stop_signal: str, grace_s: float, wait_s: float) -> None:
        self.scene.did.append(f"stop {service} {boot_id} {stop_signal} {grace_s:g} {wait_s:g}")
        if self.scene.stop_error:
            error, self.scene.stop_error = self.scene.stop_error, None
            raise error


class Scene:
    """A home whose keeper runs or not. ``serves_after_s``: when the router serves the service; None: never."""

    def __init__(self, root: Path, port: int) -> None:
        self.home = Home(root)
        self.settings = Settings(
            name="a", listen=(Address("127.0.0.1", port),), stop_signal="QUIT", stop_grace_s=3.0, plane="auto"
        )
        self.home.service("a").create()
        self.home.service("a").settings.touch()
        self.now = 1000.0
        self.runs = False
        self.has_socket = True
        self.router_pid = ROUTER_PID
        self.attached_after_s: float | None = 0.0
        self.serves_after_s: float | None = 0.0
        self.trouble = ""
        self.services: dict[str, Sequence[tuple[str, int]]] = {}
        self.plane = "relay"
        self.did: list[str] = []
        self.open_lines = 0
        self.listen_error: TurnoutError | None = None
        self.stop_error: TurnoutError | None = None
        self.on_replaced: Callable[[], None] = lambda: None

    # -- what the module under test is given --------------------------------------------------------------------------

    def connect(self, home: Home) -> FakeLine:
        assert home == self.home
        if not self.runs or not self.has_socket:
            raise NotRunningError("no keeper")
        self.open_lines += 1
        return FakeLine(self)

    def ensure_keeper(self, home: Home) -> FakeLine:
        if not self.runs:
            self.did.append("start keeper")
            self.runs = True
        return self.connect(home)

    def is_attached(self) -> bool:
        return self.attached_after_s is not None and self.now >= 1000.0 + self.attached_after_s

    def status(self, *, timeout_s: float) -> Mapping[str, Any]:
        assert timeout_s == 1.0
        if self.serves_after_s is None:
            raise NotRunningError("no router")
        serves = self.now >= 1000.0 + self.serves_after_s
        return {"services": {"a": {"plane": self.plane}} if serves else {}}

    def end_silent_keeper(self, _home: Home) -> int:
        self.did.append("end a silent keeper")
        return 0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def bootstrap(self, **more: Any) -> Bootstrap:
        return Bootstrap(self.home, self.settings, **more)

    def record(self, service: str, identity: Identity, *, listener_inode: int = 0) -> None:
        home = self.home.service(service)
        home.create()
        home.settings.touch()
        record = SpawnRecord("b1", service, identity, str(home.log("b1")), 0.0, listener_inode=listener_inode)
        write_record(home.record("b1"), record)


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        number: int = sock.getsockname()[1]
        return number


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, port: int) -> Scene:
    scene = Scene(tmp_path, port)

    class FakeKeeper:
        connect = scene.connect

    monkeypatch.setattr(bootstrap_module, "KeeperClient", FakeKeeper)
    monkeypatch.setattr(bootstrap_module, "ensure_keeper", scene.ensure_keeper)
    monkeypatch.setattr(bootstrap_module, "end_silent_keeper", scene.end_silent_keeper)
    monkeypatch.setattr(bootstrap_module, "keeper_runs", lambda _home: scene.runs)
    monkeypatch.setattr(bootstrap_module, "RouterClient", lambda _home: scene)
    # the address is bound by no test: that it is free is not for sure
    monkeypatch.setattr(bootstrap_module, "bind", lambda *_: socket.socket())
    monkeypatch.setattr(bootstrap_module, "held_by", lambda *_: False)
    monkeypatch.setattr(time, "monotonic", lambda: scene.now)
    monkeypatch.setattr(time, "sleep", scene.sleep)
    return scene


# -- up ----------------------------------------------------------------------------------------------------------------


def test_a_keeper_is_started_the_address_bound_and_the_router_awaited(scene: Scene) -> None:
    scene.serves_after_s = 2.0
    scene.bootstrap().ensure()
    assert scene.did == ["start keeper", "listen"]
    assert 1002.0 <= scene.now < 1002.5


def test_a_verb_that_may_not_start_a_keeper_finds_none(scene: Scene) -> None:
    with pytest.raises(NotRunningError):
        scene.bootstrap(starts_keeper=False).ensure()
    assert scene.did == []


def test_the_line_to_the_keeper_is_one_and_is_closed(scene: Scene) -> None:
    bootstrap = scene.bootstrap()
    assert bootstrap.keeper is bootstrap.keeper
    assert scene.open_lines == 1
    bootstrap.close()
    bootstrap.close()
    assert scene.open_lines == 0


def test_a_router_that_outlived_its_keeper_brings_its_listeners_before_any_is_bound(scene: Scene) -> None:
    scene.attached_after_s = 1.0
    scene.bootstrap().ensure()
    assert scene.now >= 1001.0
    assert scene.did == ["start keeper", "listen"]


def test_without_a_router_none_is_waited_for_before_the_address_is_bound(scene: Scene) -> None:
    scene.router_pid, scene.attached_after_s = 0, None
    scene.bootstrap().ensure()
    assert scene.now == 1000.0


def test_a_silent_router_is_killed_once_and_another_one_awaited(scene: Scene) -> None:
    scene.home.router_sock.touch()
    scene.serves_after_s = None
    scene.on_replaced = lambda: setattr(scene, "serves_after_s", 8.0)
    scene.bootstrap().ensure()
    assert scene.did == ["start keeper", "listen", f"kill router {ROUTER_PID}"]
    assert scene.now >= 1008.0


@pytest.mark.parametrize(("attached_after_s", "does"), [(0.0, "replace router"), (None, f"kill router {ROUTER_PID}")])
def test_a_router_whose_socket_was_removed_keeps_its_connections_if_its_keeper_hears_it(
    scene: Scene, attached_after_s: float | None, does: str
) -> None:
    scene.serves_after_s, scene.attached_after_s = None, attached_after_s
    scene.on_replaced = lambda: setattr(scene, "serves_after_s", 0.0)
    scene.bootstrap().wait_for_router()
    assert scene.did == ["start keeper", does]


def test_where_no_router_comes_up_the_verb_ends_at_its_deadline(scene: Scene) -> None:
    scene.serves_after_s = None
    with pytest.raises(TimedOutError, match="no router within 15 s") as error:
        scene.bootstrap().ensure()
    assert str(scene.home.router_log) in (error.value.hint or "")
    assert ROUTER_TIMEOUT_S <= scene.now - 1000.0 < ROUTER_TIMEOUT_S + 1.0


def test_what_keeps_the_keeper_from_starting_a_router_is_said_at_once(scene: Scene) -> None:
    scene.serves_after_s, scene.router_pid, scene.trouble = None, 0, "cannot be started: no process to be had"
    with pytest.raises(TimedOutError, match="the router cannot be started: no process to be had") as error:
        scene.bootstrap().ensure()
    assert str(scene.home.keeper_log) in (error.value.hint or "")
    assert scene.now - 1000.0 < SILENT_AFTER_S + 1.0


# -- undo --------------------------------------------------------------------------------------------------------------


def failing(scene: Scene) -> Bootstrap:
    """A verb that has checked, and whose address is taken meanwhile."""
    bootstrap = scene.bootstrap()
    bootstrap.check()
    scene.did.clear()
    scene.listen_error = AddressInUseError("taken")
    with pytest.raises(AddressInUseError):
        bootstrap.ensure()
    return bootstrap


def test_a_verb_that_fails_takes_the_keeper_back_that_it_started(scene: Scene) -> None:
    failing(scene)
    assert scene.did == ["start keeper", "listen", "unlisten a", "shutdown"]
    assert scene.open_lines == 1, "the line of the verb itself"


def test_a_keeper_that_ran_before_stays_and_loses_the_address_alone(scene: Scene) -> None:
    scene.runs, scene.services = True, {"b": [("127.0.0.1", 1)]}
    failing(scene)
    assert scene.did == ["listen", "unlisten a"]


def test_a_keeper_without_a_service_ran_before_too(scene: Scene) -> None:
    scene.runs = True
    failing(scene)
    assert scene.did == ["listen", "unlisten a"]


def test_a_service_that_the_keeper_had_before_keeps_its_address(scene: Scene) -> None:
    scene.runs = True
    scene.services = {"a": [(address.host, address.port) for address in scene.settings.listen]}
    failing(scene)
    assert scene.did == ["listen"]


def test_a_daemon_that_lost_its_keeper_keeps_the_address_of_its_service(scene: Scene) -> None:
    scene.record("a", own_identity())
    failing(scene)
    assert scene.did == ["start keeper", "listen"]


def test_a_keeper_stays_as_long_as_a_daemon_of_another_service_runs_that_it_would_stop(scene: Scene) -> None:
    scene.record("b", own_identity())
    failing(scene)
    assert scene.did == ["start keeper", "listen", "unlisten a"]


def test_a_daemon_that_has_ended_keeps_nothing(scene: Scene) -> None:
    scene.record("a", DEAD)
    failing(scene)
    assert scene.did[-1] == "shutdown"


def test_without_a_check_nothing_is_taken_back(scene: Scene) -> None:
    scene.listen_error = AddressInUseError("taken")
    with pytest.raises(AddressInUseError):
        scene.bootstrap().ensure()
    assert scene.did == ["start keeper", "listen"], "whose the keeper is was not found out"


# -- check -------------------------------------------------------------------------------------------------------------


def test_a_silent_keeper_is_ended_by_a_verb_that_may_start_one(scene: Scene) -> None:
    scene.bootstrap().check()
    assert scene.did == ["end a silent keeper"]


def test_a_verb_that_may_not_start_a_keeper_ends_none(scene: Scene) -> None:
    scene.bootstrap(starts_keeper=False).check()
    scene.bootstrap().check(keeper_answers=True)
    scene.bootstrap().check(keeper_answers=False)
    assert scene.did == []


def test_an_address_that_another_program_has_is_refused_before_anything_is_started(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def taken(*_: object) -> socket.socket:
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))

    monkeypatch.setattr(bootstrap_module, "bind", taken)
    with pytest.raises(AddressInUseError):
        scene.bootstrap().check()
    scene.bootstrap().check(keeper_answers=False)  # the address may be that keeper's own
    monkeypatch.setattr(bootstrap_module, "held_by", lambda *_: True)
    scene.bootstrap().check()
    scene.runs, scene.services = True, {"a": [("127.0.0.1", scene.settings.listen[0].port)]}
    monkeypatch.setattr(bootstrap_module, "held_by", lambda *_: False)
    scene.bootstrap().check()
    assert "start keeper" not in scene.did


def test_a_router_that_outlived_its_keeper_has_the_addresses(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(*_: object) -> socket.socket:
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))

    monkeypatch.setattr(bootstrap_module, "bind", taken)
    record = SpawnRecord("router-1", "", own_identity(), str(scene.home.router_log), 0.0)
    write_record(scene.home.router_record("router-1"), record)
    scene.bootstrap().check()


def test_an_address_that_daemons_share_is_not_given_up_while_they_run(scene: Scene) -> None:
    scene.runs, scene.services = True, {"a": [("127.0.0.1", 1)]}
    scene.record("a", own_identity(), listener_inode=5)
    with pytest.raises(ConflictError, match="it cannot be given up while they run"):
        scene.bootstrap().check()
    scene.record("a", DEAD, listener_inode=5)
    scene.bootstrap().check()


def test_daemons_that_share_an_address_which_stays_are_no_obstacle(scene: Scene) -> None:
    scene.runs, scene.services = True, {"a": [("127.0.0.1", scene.settings.listen[0].port)]}
    scene.record("a", own_identity(), listener_inode=5)
    scene.bootstrap().check()


def test_an_address_that_overlaps_with_one_in_use_is_refused(scene: Scene) -> None:
    port = scene.settings.listen[0].port
    scene.runs, scene.services = True, {"a": [("0.0.0.0", port)]}  # nothing is bound
    with pytest.raises(ConflictError, match=rf"127.0.0.1:{port} cannot be bound beside 0.0.0.0:{port}"):
        scene.bootstrap().check()


# -- while it runs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_socket", [True, False])
def test_a_keeper_whose_socket_was_removed_runs_all_the_same(scene: Scene, *, has_socket: bool) -> None:
    assert not scene.bootstrap().runs()
    scene.runs, scene.has_socket = True, has_socket
    assert scene.bootstrap().runs()
    assert scene.open_lines == 0


def test_a_daemon_is_stopped_by_its_settings_and_over_a_line_of_its_own(scene: Scene) -> None:
    scene.runs = True
    assert scene.bootstrap().stop("b1", wait_s=4.0)
    assert scene.did == ["stop a b1 QUIT 3 4"]
    assert scene.open_lines == 0


def test_a_daemon_that_is_still_there_is_not_said_to_be_gone(scene: Scene) -> None:
    scene.runs = True
    for error in (TimedOutError("late"), StillRunningError("pids 5 outlived SIGKILL")):
        scene.stop_error = error
        assert not scene.bootstrap().stop("b1", wait_s=4.0)
    assert scene.open_lines == 0


def test_a_keeper_that_is_lost_over_a_stop_is_replaced_and_the_daemon_is_not_said_to_be_gone(scene: Scene) -> None:
    bootstrap = scene.bootstrap()
    first = bootstrap.keeper
    scene.stop_error = NotRunningError("the connection broke")
    scene.did.clear()
    assert not bootstrap.stop("b1", wait_s=4.0)
    assert scene.did[1:] == ["listen"]
    assert bootstrap.keeper is not first


@pytest.mark.parametrize(
    ("wanted", "runs", "other"), [("auto", "relay", ""), ("relay", "relay", ""), ("reuseport", "relay", "relay")]
)
def test_a_plane_that_comes_with_the_next_router_only_is_named(
    scene: Scene, wanted: str, runs: str, other: str
) -> None:
    scene.plane = runs
    scene.settings = msgspec.structs.replace(scene.settings, plane=wanted)
    assert scene.bootstrap().other_plane() == other
    scene.serves_after_s = None
    assert scene.bootstrap().other_plane() == ""
