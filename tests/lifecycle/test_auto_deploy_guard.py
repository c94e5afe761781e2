"""What `turnout up --automatic` may do, on a registry in memory: whose build is started, and whose settings count."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from turnout.config.settings import Address, Health, ServiceRequest, Settings, dump_settings
from turnout.core.model import Daemon, Deployment, Desired, Identity, Snapshot
from turnout.errors import (
    CandidateError,
    ConflictError,
    NotBegunError,
    NotRunningError,
    SpawnError,
    StateUnwritableError,
    UsageError,
)
from turnout.lifecycle.auto_deploy_guard import AutoDeployGuard
from turnout.lifecycle.build_selection import named_build
from turnout.state.builds import Build, Rollout
from turnout.state.home import Home
from turnout.state.service import Service
from turnout.system.process import own_identity

FILE = "/etc/turnout.toml"
KNOWN = Settings(
    name="t",
    listen=(Address("127.0.0.1", 1),),
    plane="relay",
    registry="/run/t.json",
    health=Health(failures=3),
    hold_max=10,
    source=FILE,
)
# a person has since changed all of it
CHANGED = Settings(
    name="t",
    listen=(Address("127.0.0.1", 2),),
    plane="stream",
    registry="/run/other.json",
    health=Health(failures=7),
    hold_max=20,
    source=FILE,
)
DEAD = Identity(2**22 - 1, 1)


@pytest.fixture(autouse=True)
def _without_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _fd: None)


@pytest.fixture
def service(tmp_path: Path) -> Service:
    """A service whose settings are ``KNOWN``."""
    service = Service.open(Home(tmp_path).service("t"), KNOWN)
    service.home.create()
    service.home.settings.write_bytes(dump_settings(KNOWN))
    return service


def asks(version: str, settings: Settings = CHANGED) -> ServiceRequest:
    """The build that a configuration names, or a client with settings of another source."""
    return ServiceRequest(settings=settings, command=("daemon",), cwd="/", version=version)


def client(version: str) -> ServiceRequest:
    return asks(version, Settings(name="t", listen=KNOWN.listen, hold_max=99))


def build(version: str) -> Build:
    found = named_build(asks(version))
    assert found is not None
    return found


def ran(service: Service, *versions: str) -> None:
    for generation, version in enumerate(versions, start=1):
        service.builds.record_rollout(Rollout(generation, build(version).id, "deploy", 1.0, "active"), build(version))


def serves(version: str, *, identity: Identity | None = None, owned: bool = True) -> Snapshot:
    build_id = build(version).id if owned else ""
    daemon = Daemon("a", identity=identity or own_identity(), version=version, build=build_id, owned=owned)
    return Snapshot({"a": daemon}, {}, Deployment(generation=1, active_boot_id="a", switch_ts=1.0))


def guard(service: Service, wanted: ServiceRequest, *, automatic: bool = True) -> AutoDeployGuard:
    return AutoDeployGuard(service, wanted, automatic=automatic)


# -- a service that was stopped ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "block",
    [
        Deployment(desired=Desired.STOPPED, switch_ts=1.0),
        Deployment(desired=Desired.STOPPED, rollback_reason="stopped"),
        Deployment(desired=Desired.STOPPED, rollback_reason="down"),
    ],
)
def test_a_service_that_a_person_stopped_stays_stopped(service: Service, block: Deployment) -> None:
    with pytest.raises(NotRunningError):
        guard(service, asks("1")).decide(Snapshot(deployment=block))


def test_a_service_whose_first_up_failed_may_be_tried_again(service: Service) -> None:
    block = Deployment(generation=1, desired=Desired.STOPPED, rollback_reason="it ended")
    wanted, why = guard(service, asks("1")).decide(Snapshot(deployment=block))
    assert (wanted.version, why) == ("1", "")


# -- where nothing runs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("snapshot", [Snapshot(), serves("1", identity=DEAD)])
def test_the_configured_build_is_started_where_nothing_runs(service: Service, snapshot: Snapshot) -> None:
    ran(service, "1")
    wanted, why = guard(service, asks("2")).decide(snapshot)
    assert (wanted.command, wanted.version, why) == (("daemon",), "2", "")


def test_where_nothing_has_run_a_clients_build_is_started(service: Service) -> None:
    wanted, why = guard(service, client("1")).decide(Snapshot())
    assert (wanted.version, why) == ("1", "")


def test_the_build_that_ran_last_is_started_again_by_whoever_asks_for_it(service: Service) -> None:
    ran(service, "1")
    assert guard(service, client("1")).decide(Snapshot())[1] == ""


def test_a_client_whose_build_is_not_newer_has_the_last_one_started_again_in_place_of_a_dead_daemon(
    service: Service,
) -> None:
    ran(service, "1")
    wanted, _ = guard(service, client("word")).decide(serves("1", identity=DEAD))
    assert (wanted.command, wanted.version) == (("daemon",), "1")
    assert wanted.settings == KNOWN, "nor do its settings count"


@pytest.mark.parametrize(
    ("asked", "last", "considered", "starts"),
    [
        (asks("1"), "2", False, "2"),  # nothing goes back by itself
        (asks("word"), "2", False, "word"),  # a person changed the configuration to it
        (asks("word"), "2", True, "2"),  # and what runs was chosen later
        (asks("3"), "2", True, "3"),
        (client("word"), "2", False, "2"),  # of which nobody can say that it is newer
        (client("3"), "2", False, "3"),
    ],
)
def test_where_nothing_runs_the_build_that_ran_last_is_started_unless_the_wanted_one_is_better(
    service: Service, asked: ServiceRequest, last: str, considered: bool, starts: str
) -> None:
    ran(service, last)
    if considered:
        service.builds.consider(build(asked.version).id)
    wanted, why = guard(service, asked).decide(Snapshot())
    assert (wanted.command, wanted.version) == (("daemon",), starts)
    assert why == ("" if starts == asked.version else f"{last} ran last, and is not older")


def test_the_build_that_is_started_instead_has_its_own_directory_environment_and_files(service: Service) -> None:
    last = Build(("older", "--port", "{port}"), "/srv", {"A": "1"}, "2", "hash")
    service.builds.record_rollout(Rollout(1, last.id, "deploy", 1.0, "active"), last)
    wanted, _ = guard(service, asks("1")).decide(Snapshot())
    assert named_build(wanted) == msgspec.structs.replace(last, cwd="/srv")


# -- where a daemon runs -----------------------------------------------------------------------------------------------


def test_a_changed_configuration_is_deployed_and_the_same_one_no_second_time(service: Service) -> None:
    wanted, why = guard(service, asks("word")).decide(serves("1"))
    assert (wanted.command, wanted.version, why) == (("daemon",), "word", "")
    service.builds.consider(build("word").id)
    wanted, why = guard(service, asks("word")).decide(serves("1"))
    assert (wanted.command, wanted.version) == ((), ""), "the daemon that runs is left"
    assert "not changed" in why


def test_a_build_in_quarantine_is_not_deployed(service: Service) -> None:
    service.builds.record_rollout(Rollout(1, build("2").id, "deploy", 1.0, "rolled_back"), build("2"))
    service.builds.quarantine(build("2").id, "it crashed", 1)
    wanted, why = guard(service, asks("2")).decide(serves("1"))
    assert wanted.command == ()
    assert "it crashed" in why


def test_the_daemon_of_the_configured_build_gets_the_changed_settings(service: Service) -> None:
    wanted, why = guard(service, asks("1")).decide(serves("1"))
    assert (wanted.command, why) == (("daemon",), "")
    assert (wanted.settings.hold_max, wanted.settings.health) == (20, CHANGED.health)


def test_a_client_that_wants_what_runs_changes_no_setting(service: Service) -> None:
    wanted, why = guard(service, client("1")).decide(serves("1"))
    assert (wanted.command, wanted.settings, why) == ((), KNOWN, "")


def test_a_clients_newer_build_is_deployed_with_its_settings_and_no_other_is(service: Service) -> None:
    wanted, why = guard(service, client("2")).decide(serves("1"))
    assert (wanted.version, wanted.settings.hold_max, why) == ("2", 99, "")
    wanted, why = guard(service, client("word")).decide(serves("1"))
    assert (wanted.command, wanted.settings) == ((), KNOWN)
    assert why


def test_an_attached_daemon_is_left_alone(service: Service) -> None:
    wanted, why = guard(service, asks("2")).decide(serves("1", owned=False))
    assert (wanted.command, why) == ((), "what is active was attached")


def test_a_request_without_a_build_deploys_none(service: Service) -> None:
    ran(service, "1")
    wanted, why = guard(service, ServiceRequest(settings=CHANGED)).decide(serves("1"))
    assert (wanted.command, wanted.settings.hold_max, why) == ((), 20, "")
    assert wanted.settings.listen == KNOWN.listen


# -- whose settings count ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1", "2"])
def test_address_registry_and_plane_change_by_no_automatic_up(service: Service, version: str) -> None:
    for snapshot in (serves("1"), Snapshot()):
        settings = guard(service, asks(version)).decide(snapshot)[0].settings
        assert (settings.listen, settings.registry, settings.plane) == (KNOWN.listen, KNOWN.registry, KNOWN.plane)


def test_the_daemon_that_is_left_is_not_judged_by_the_checks_of_another(service: Service) -> None:
    service.builds.consider(build("2").id)
    settings = guard(service, asks("2")).decide(serves("1"))[0].settings
    assert (settings.hold_max, settings.health) == (CHANGED.hold_max, KNOWN.health)


def test_without_settings_in_force_those_that_are_asked_for_count(service: Service) -> None:
    service.home.settings.unlink()
    assert guard(service, asks("1")).decide(Snapshot())[0].settings == CHANGED
    assert guard(service, asks("2")).decide(serves("1", owned=False))[0].settings == CHANGED


def test_settings_of_another_version_are_none_in_force(service: Service) -> None:
    service.home.settings.write_text('{"format": 99}')
    assert guard(service, asks("1")).decide(Snapshot())[0].settings == CHANGED


@pytest.mark.parametrize(
    ("source", "known", "automatic", "configured"),
    [
        (FILE, FILE, True, True),
        ("", FILE, True, False),
        ("", "", True, False),
        ("/home/me/turnout.toml", FILE, True, False),  # that of some client
        ("/home/me/turnout.toml", FILE, False, True),  # a person's, from now on
        (FILE, None, True, True),  # the first
    ],
)
def test_the_file_that_the_service_runs_on_is_its_configuration_and_any_other_a_clients(
    service: Service, source: str, known: str | None, automatic: bool, configured: bool
) -> None:
    if known is None:
        service.home.settings.unlink()
    else:
        service.home.settings.write_bytes(dump_settings(Settings(name="t", listen=KNOWN.listen, source=known)))
    wanted = asks("1", Settings(name="t", listen=KNOWN.listen, source=source))
    assert guard(service, wanted, automatic=automatic).configured is configured


# -- the note at the end -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "noted"),
    [
        (None, True),
        (CandidateError("it ended"), True),
        (SpawnError("no such command"), True),
        (UsageError("it makes no sense"), True),
        (NotBegunError("no process is to be had"), False),
        (ConflictError("another verb is at work"), False),
        (StateUnwritableError("a full disk"), False),
        (KeyboardInterrupt(), False),
    ],
)
@pytest.mark.parametrize("automatic", [True, False])
def test_the_configured_build_is_noted_as_considered_where_something_was_decided(
    service: Service, error: BaseException | None, noted: bool, automatic: bool
) -> None:
    def decide() -> None:
        with guard(service, asks("1"), automatic=automatic):
            if error:
                raise error

    if error:
        with pytest.raises(type(error)):
            decide()
    else:
        decide()
    assert service.builds.considered() == (build("1").id if noted else "")


def test_what_a_client_asked_for_is_not_noted(service: Service) -> None:
    with guard(service, client("1")):
        pass
    assert service.builds.considered() == ""


def test_a_note_that_cannot_be_written_fails_no_verb(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_build: str) -> None:
        raise StateUnwritableError("no space left on device")

    monkeypatch.setattr(service.builds, "consider", refuse)
    with guard(service, asks("1")):
        pass
