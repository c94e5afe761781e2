"""One boot of a daemon up to the switch, with a keeper and probes that are fakes: no process is started."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from turnout.config.settings import Address, Settings
from turnout.control.keeper_client import BoundPorts
from turnout.core.deployment import begin_deploy
from turnout.core.membership import register_daemon
from turnout.core.model import Daemon, Identity
from turnout.core.outcome import must_hold
from turnout.core.slots import source_of
from turnout.errors import CandidateError, NotRunningError, TimedOutError
from turnout.lifecycle.bootstrap import Bootstrap
from turnout.lifecycle.candidate import SPAWN_TRIES, Candidate
from turnout.lifecycle.progress import Progress
from turnout.state.builds import Build
from turnout.state.exec_context import ExecContext
from turnout.state.home import Home
from turnout.state.service import Service
from turnout.system.probes.connect import Door, no_door
from turnout.system.probes.probe import ProbeResult
from turnout.system.process import own_identity
from turnout.system.spawn_record import SpawnRecord, record_end, write_record

SETTINGS = Settings(name="t", listen=(Address("127.0.0.1", 1),), start_timeout_s=0.2, stop_grace_s=60.0)
BUILD = Build(("d", "--port", "{port}"), "/", {}, "v1")
CONTEXT = ExecContext("/bin/d", {})
WELL = ProbeResult(ok=True, reason="it listens")
ENDED = ProbeResult(ok=False, reason="it has ended", gone=True)
SILENT = ProbeResult(ok=False, reason="nothing listens")
OURSELVES = own_identity()
DEAD = Identity(2**22 - 1, 1)


class FakeKeeper:
    """A bootstrap and its keeper: answers each start with the next of ``answers``, and notes what it is asked."""

    def __init__(self, *answers: Identity | Exception) -> None:
        self.answers = list(answers) or [OURSELVES]
        self.did: list[str] = []
        self.ports: list[str] = []
        self.on_spawn: Callable[[], object] = lambda: None
        self.stop_error: Exception | None = None
        self.activations: list[tuple[int, int] | None] = []
        self.listeners: list[object] = []
        self.bound = BoundPorts(0, (), "")
        self.binds_errors: list[Exception] = []
        self.grace_s = 0.0

    @property
    def keeper(self) -> FakeKeeper:
        return self

    def reconnect(self) -> None:
        self.did.append("reconnect")

    def binds(self, _service: str, _boot_id: str) -> BoundPorts:
        if self.binds_errors:
            raise self.binds_errors.pop()
        return self.bound

    def spawn(self, _service: str, _boot_id: str, argv: tuple[str, ...], **more: Any) -> Identity:
        self.did.append("spawn")
        self.activations.append(more["activation"])
        self.listeners.append(more["listener"])
        self.ports.append(argv[2])
        self.on_spawn()
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def stop(self, _service: str, _boot_id: str, *, grace_s: float, **_: Any) -> None:
        self.did.append("stop")
        self.grace_s = grace_s
        if self.stop_error:
            raise self.stop_error


@pytest.fixture
def service(tmp_path: Path) -> Service:
    service = Service.open(Home(tmp_path).service("t"), SETTINGS)
    service.home.create()
    service.registry.update(lambda snap: begin_deploy(snap, "c", owner=OURSELVES))
    return service


class FakeRouter:
    """A router whose plane is this one."""

    def __init__(self, plane: str) -> None:
        self.plane = plane

    def status(self, *, timeout_s: float) -> dict[str, Any]:
        assert timeout_s
        return {"services": {"t": {"plane": self.plane}}}

    def door(self, service: str) -> Door:
        assert service == "t"
        return no_door


def candidate(service: Service, keeper: FakeKeeper, plane: str = "relay") -> Candidate:
    router = cast("Any", FakeRouter(plane))
    return Candidate(service, cast("Bootstrap", keeper), router, "c", generation=1, progress=Progress())


def found(monkeypatch: pytest.MonkeyPatch, *results: ProbeResult) -> None:
    """Each wait for health has the next of these results; the last one stays."""
    left = list(results)

    def wait(*_: Any, **__: Any) -> ProbeResult:
        return left.pop(0) if len(left) > 1 else left[0]

    monkeypatch.setattr("turnout.lifecycle.candidate.wait_healthy", wait)
    monkeypatch.setattr("turnout.lifecycle.candidate.probe", wait)
    monkeypatch.setattr("turnout.lifecycle.failure_report.END_RECORD_TIMEOUT_S", 0.0)


def write_log(service: Service, text: str) -> None:
    service.home.log("c").write_text(text)


def test_a_healthy_candidate_is_in_the_registry_with_its_port_and_its_build(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    found(monkeypatch, WELL)
    keeper = FakeKeeper()
    daemon = candidate(service, keeper).start(BUILD, CONTEXT)
    assert (daemon.owned, daemon.build, daemon.identity) == (True, BUILD.id, OURSELVES)
    assert keeper.ports == [str(daemon.port)]
    assert service.registry.read().snapshot.daemons["c"].port == daemon.port


def test_an_answer_that_was_lost_with_the_keeper_starts_no_second_daemon(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    found(monkeypatch, WELL)
    keeper = FakeKeeper(NotRunningError("the keeper died"), DEAD)
    keeper.on_spawn = lambda: write_record(service.home.record("c"), SpawnRecord("c", "t", OURSELVES, "", 0.0))
    daemon = candidate(service, keeper).start(BUILD, CONTEXT)
    assert keeper.did == ["spawn", "reconnect"]
    assert daemon.identity == OURSELVES


def test_a_daemon_that_ended_with_its_keeper_is_cleared_away_and_started_once_more(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    found(monkeypatch, WELL)
    keeper = FakeKeeper(NotRunningError("the keeper died"), OURSELVES)

    def ends() -> None:
        write_record(service.home.record("c"), SpawnRecord("c", "t", DEAD, "", 0.0))
        record_end(service.home.record("c"), 0)

    keeper.on_spawn = ends
    candidate(service, keeper).start(BUILD, CONTEXT)
    assert keeper.did == ["spawn", "reconnect", "stop", "spawn"]


def test_a_port_that_another_program_took_is_replaced_by_another_one(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    found(monkeypatch, ENDED, WELL)
    keeper = FakeKeeper()
    keeper.on_spawn = lambda: write_log(service, "bind: Address already in use")
    candidate(service, keeper).start(BUILD, CONTEXT)
    assert keeper.did == ["spawn", "stop", "spawn"]


def test_a_port_that_is_always_taken_is_given_up_after_three_tries(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    found(monkeypatch, ENDED)
    keeper = FakeKeeper()
    keeper.on_spawn = lambda: write_log(service, "bind: Address already in use")
    with pytest.raises(CandidateError, match="it has ended"):
        candidate(service, keeper).start(BUILD, CONTEXT)
    assert keeper.did.count("spawn") == SPAWN_TRIES


@pytest.mark.parametrize(("result", "log"), [(ENDED, "no such file"), (SILENT, "Address already in use")])
def test_another_failure_is_tried_once(
    service: Service, monkeypatch: pytest.MonkeyPatch, result: ProbeResult, log: str
) -> None:
    """It ended for another reason, or it runs and listens nowhere."""
    found(monkeypatch, result)
    keeper = FakeKeeper()
    keeper.on_spawn = lambda: write_log(service, log)
    with pytest.raises(CandidateError, match="did not become healthy") as caught:
        candidate(service, keeper).start(BUILD, CONTEXT)
    assert keeper.did == ["spawn"]
    assert caught.value.detail == log


def test_a_daemon_that_refuses_its_clients_is_waited_for_until_the_deadline(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    found(monkeypatch, WELL)
    monkeypatch.setattr("turnout.lifecycle.candidate.says_not_ready", lambda *_, **__: "it loads its data")
    redis = Build(("redis-server", "--port", "{port}"), "/")
    with pytest.raises(CandidateError, match=r"not healthy within 0\.2 s: it loads its data"):
        candidate(service, FakeKeeper()).start(redis, CONTEXT)


def test_a_last_look_that_fails_is_an_error_and_in_the_journal(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    found(monkeypatch, SILENT)
    with pytest.raises(CandidateError, match="nothing listens"):
        candidate(service, FakeKeeper()).check_once_more(Daemon("c", port=5, identity=OURSELVES))
    entry = json.loads(service.home.journal.read_text())
    assert (entry["event"], entry["step"], entry["ok"]) == ("probe", "re-probe", False)


@pytest.mark.parametrize("error", [None, NotRunningError("no keeper"), TimedOutError("not gone yet")])
def test_a_candidate_that_is_given_up_has_ten_seconds_at_most_and_its_stop_never_fails(
    service: Service, error: Exception | None
) -> None:
    keeper = FakeKeeper()
    keeper.stop_error = error
    candidate(service, keeper).stop()
    assert (keeper.did, keeper.grace_s) == (["stop"], 10.0)


OWN_PORT = Build(("d", "--serve", "it", "3000"), "/", {}, "v1")  # the fake keeper takes the third word for the port


def activated(service: Service, **settings: Any) -> Service:
    changed = msgspec.structs.replace(service.settings, activation="on", **settings)
    return Service.open(service.home, changed)


@pytest.mark.parametrize(
    ("build", "named", "serving"),
    [
        pytest.param(OWN_PORT, 0, 0, id="the first that it binds"),
        pytest.param(OWN_PORT, 3000, 3000, id="the one that is named"),
        pytest.param(BUILD, 0, None, id="the one that it is told"),
    ],
)
def test_a_daemon_is_activated_for_the_port_of_its_clients(
    service: Service, monkeypatch: pytest.MonkeyPatch, build: Build, named: int, serving: int | None
) -> None:
    found(monkeypatch, WELL)
    keeper = FakeKeeper()
    daemon = candidate(activated(service, port=named), keeper).start(build, CONTEXT)
    assert keeper.activations == [(daemon.port, daemon.port if serving is None else serving)]
    assert daemon.own_port == service.registry.read().snapshot.daemons["c"].own_port == 0


def test_the_port_that_the_daemon_bound_itself_is_in_the_registry(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    found(monkeypatch, WELL)
    keeper = FakeKeeper()
    keeper.bound = BoundPorts(3000, (), "")
    daemon = candidate(activated(service), keeper).start(OWN_PORT, CONTEXT)
    assert service.registry.read().snapshot.daemons["c"] == daemon
    assert daemon.own_port == 3000


def test_a_daemon_that_listens_at_the_fixed_address_itself_is_reached_there_by_its_index(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    found(monkeypatch, WELL)
    keeper = FakeKeeper()
    answers = [BoundPorts(0, (), ""), BoundPorts(3000, (), ""), BoundPorts(3000, (), "", (2, 4))]
    monkeypatch.setattr(keeper, "binds", lambda *_: answers.pop(0) if len(answers) > 1 else answers[0])
    daemon = candidate(activated(service), keeper, "reuseport").start(OWN_PORT, CONTEXT)
    ((given, serving),) = [activation for activation in keeper.activations if activation]
    fixed = service.settings.listen[0]
    assert (keeper.listeners, serving) == (["shared"], 0)
    assert (daemon.host, daemon.port, daemon.source) == (fixed.host, fixed.port, source_of(2))
    assert (daemon.own_port, given != fixed.port) == (3000, True)
    assert service.registry.read().snapshot.daemons["c"] == daemon


def test_a_daemon_that_is_told_its_port_listens_at_the_fixed_address_as_well(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    found(monkeypatch, WELL)
    keeper = FakeKeeper()
    monkeypatch.setattr(keeper, "binds", lambda *_: BoundPorts((keeper.activations[0] or (0, 0))[0], (), "", (0,)))
    daemon = candidate(activated(service), keeper, "reuseport").start(BUILD, CONTEXT)
    assert (daemon.port, daemon.source, daemon.own_port) == (service.settings.listen[0].port, source_of(0), 0)


@pytest.mark.parametrize("why", ["it listens there", "it ended", "trouble"])
def test_a_daemon_that_cannot_listen_at_the_fixed_address_is_behind_it(
    service: Service, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """One of IPv6, for example: the router relays to the port that it was given."""
    found(monkeypatch, WELL)
    keeper = FakeKeeper(DEAD if why == "it ended" else OURSELVES)
    keeper.bound = BoundPorts(3000, (), "it may not be looked at" if why == "trouble" else "")
    looks: list[int] = []

    def listening(_host: str, port: int) -> list[int]:
        looks.append(port)
        return looks[1:]

    monkeypatch.setattr("turnout.lifecycle.candidate.listening_at", listening)
    daemon = candidate(activated(service), keeper, "reuseport").start(OWN_PORT, CONTEXT)
    ((given, _),) = [activation for activation in keeper.activations if activation]
    assert (daemon.port, daemon.source) == (given, "")
    assert looks == ([given, given] if why == "it listens there" else [])


def test_a_daemon_that_never_listens_is_waited_for_no_longer_than_for_its_health(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    found(monkeypatch, WELL)
    daemon = candidate(activated(service, start_timeout_s=0.1), FakeKeeper(), "reuseport").start(OWN_PORT, CONTEXT)
    assert daemon.source == ""


def test_a_daemon_is_not_activated_where_nobody_asks_for_it(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    found(monkeypatch, WELL)
    keeper = FakeKeeper()
    candidate(service, keeper).start(OWN_PORT, CONTEXT)
    assert keeper.activations == [None]


def test_an_obstacle_is_said_and_the_daemon_is_started_without(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    found(monkeypatch, WELL)
    monkeypatch.setattr("turnout.lifecycle.candidate.obstacle", lambda _program: "it takes Linux 5.19")
    keeper, said = FakeKeeper(), list[str]()
    service = activated(service)
    router = cast("Any", FakeRouter("reuseport"))
    Candidate(
        service, cast("Bootstrap", keeper), router, "c", generation=1, progress=Progress(warning=said.append)
    ).start(OWN_PORT, CONTEXT)
    assert (keeper.activations, keeper.listeners) == ([None], [None])
    assert said == ["the daemon binds its port itself: it takes Linux 5.19"]


def test_a_daemon_that_binds_several_ports_is_refused_until_one_is_named(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    found(monkeypatch, WELL)
    keeper = FakeKeeper()
    keeper.bound = BoundPorts(2380, (2379,), "")
    with pytest.raises(CandidateError, match="ports 2379, 2380") as refused:
        candidate(activated(service), keeper).start(OWN_PORT, CONTEXT)
    assert "--port 2380" in str(refused.value.hint)
    candidate(activated(service, port=2379), keeper).start(OWN_PORT, CONTEXT)


def test_a_bind_that_could_not_be_answered_is_the_reason_of_a_failed_start(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    found(monkeypatch, SILENT)
    keeper = FakeKeeper()
    keeper.bound = BoundPorts(0, (), "it may not be looked at")
    with pytest.raises(CandidateError, match="it may not be looked at"):
        candidate(activated(service), keeper).start(OWN_PORT, CONTEXT)


def test_a_keeper_that_died_meanwhile_is_replaced_and_its_successor_asked(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    found(monkeypatch, WELL)
    keeper = FakeKeeper()
    keeper.binds_errors = [NotRunningError("the keeper died")]
    candidate(activated(service), keeper).start(OWN_PORT, CONTEXT)
    assert keeper.did == ["spawn", "reconnect"]


def test_one_port_at_two_addresses_is_no_question(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis with ``bind 127.0.0.1 192.0.2.7``."""
    found(monkeypatch, WELL)
    keeper = FakeKeeper()
    keeper.bound = BoundPorts(6379, (6379,), "")
    candidate(activated(service), keeper).start(OWN_PORT, CONTEXT)


def test_a_build_that_has_served_is_restarted_without_a_question(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It bound its second port after it was healthy, at first; at 3 a.m. there is nobody to answer."""
    found(monkeypatch, WELL)
    served = Daemon("b", host="127.0.0.1", port=1, build=OWN_PORT.id, identity=DEAD)
    must_hold(service.registry.update(lambda snap: register_daemon(snap, served)))
    keeper = FakeKeeper()
    keeper.bound = BoundPorts(2380, (2379,), "")
    assert candidate(activated(service), keeper).start(OWN_PORT, CONTEXT).boot_id == "c"


def test_a_daemon_with_a_port_of_its_own_may_keep_it_says_the_hint(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    found(monkeypatch, msgspec.structs.replace(SILENT, found_port=3000))
    with pytest.raises(CandidateError, match="port 3000") as refused:
        candidate(service, FakeKeeper()).start(OWN_PORT, CONTEXT)
    assert "--activation on" in str(refused.value.hint)
    with pytest.raises(CandidateError, match="port 3000") as refused:
        candidate(activated(service), FakeKeeper()).start(OWN_PORT, CONTEXT)
    assert "--activation" not in str(refused.value.hint)


def test_a_port_that_another_program_took_is_replaced_whatever_the_keeper_says_of_its_binds(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by the socket that keeps it free, where the daemon binds without SO_REUSEADDR."""
    found(monkeypatch, ENDED, WELL)
    keeper = FakeKeeper()
    keeper.bound = BoundPorts(0, (), "an earlier version of turnout started the keeper")
    keeper.on_spawn = lambda: write_log(service, "bind: Address already in use")
    candidate(activated(service), keeper).start(BUILD, CONTEXT)
    assert keeper.did == ["spawn", "stop", "spawn"]
