"""Which build a verb is about, by the builds that are recorded and a registry in memory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from turnout.config.settings import Address, ServiceRequest, Settings
from turnout.core.model import Daemon, Deployment, Snapshot, State
from turnout.errors import ConfigError, NoSuchServiceError, UsageError
from turnout.lifecycle.build_selection import (
    UP_A_COMMAND,
    attach_again,
    build_to_deploy,
    build_to_return_to,
    has_run,
    last_good_build,
    named_build,
    start_hint,
    unnoted_switch,
    wanted_build,
)
from turnout.state.builds import Build, Rollout
from turnout.state.exec_context import ExecContext
from turnout.state.home import Home
from turnout.state.service import Service
from turnout.testing import MemoryRegistry

SETTINGS = Settings(name="t", listen=(Address("127.0.0.1", 1),))
NOTHING = ServiceRequest(settings=SETTINGS)


@pytest.fixture(autouse=True)
def _without_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _fd: None)


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return service_of(tmp_path, SETTINGS)


def service_of(directory: Path, settings: Settings, snapshot: Snapshot | None = None) -> Service:
    service = Service.open(Home(directory).service("t"), settings)
    service.home.create()
    return msgspec.structs.replace(service, registry=cast("Any", MemoryRegistry(snapshot)))


def build(version: str, cwd: str = "/") -> Build:
    return Build(("daemon",), cwd, version=version)


def names(version: str, cwd: str = "/") -> ServiceRequest:
    return ServiceRequest(settings=SETTINGS, command=("daemon",), cwd=cwd, version=version)


def ran(service: Service, *results: tuple[str, str], contexts: Mapping[str, str] | None = None) -> None:
    """Rollouts of these versions, from generation 1 on, each with its result."""
    for generation, (version, result) in enumerate(results, start=1):
        context = (contexts or {}).get(version, "")
        rollout = Rollout(generation, build(version).id, "deploy", 100.0, context=context)
        service.builds.record_rollout(rollout, build(version))
        service.builds.set_result(generation, result)


def active(version: str, *, generation: int, start_ts: float = 100.0, owned: bool = True, **block: Any) -> Snapshot:
    daemon = Daemon("a", port=5, version=version, build=build(version).id if owned else "", start_ts=start_ts)
    return Snapshot({"a": daemon}, {}, Deployment(generation=generation, active_boot_id="a", **block))


# -- what is named -----------------------------------------------------------------------------------------------------


def test_the_build_that_is_named_is_in_the_directory_that_its_name_leads_to_now(tmp_path: Path) -> None:
    (tmp_path / "v1").mkdir()
    (tmp_path / "current").symlink_to("v1")
    wanted = ServiceRequest(
        settings=SETTINGS,
        command=("daemon", "--port"),
        cwd=str(tmp_path / "current"),
        env={"A": "1"},
        version="2",
        watched="hash",
    )
    assert named_build(wanted) == Build(("daemon", "--port"), str(tmp_path / "v1"), {"A": "1"}, "2", "hash")


def test_a_build_without_a_directory_is_in_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = named_build(ServiceRequest(settings=SETTINGS, command=("daemon",)))
    assert found
    assert found.cwd == os.path.realpath(tmp_path)


def test_a_command_that_is_named_is_the_build_whatever_is_remembered(service: Service) -> None:
    service.builds.remember(build("1"))
    assert wanted_build(service, names("2"), required=True) == build("2")


def test_without_a_command_the_remembered_build_is_wanted_only_where_one_must_be(service: Service) -> None:
    service.builds.remember(build("1"))
    assert wanted_build(service, NOTHING, required=False) is None
    assert wanted_build(service, NOTHING, required=True) == build("1")


@pytest.mark.parametrize("required", [True, False])
def test_a_version_without_a_command_is_the_remembered_build_by_another_version(
    service: Service, required: bool
) -> None:
    service.builds.remember(build("1"))
    wanted = ServiceRequest(settings=SETTINGS, version="2")
    assert wanted_build(service, wanted, required=required) == build("2")


def test_where_nothing_is_named_or_remembered_the_error_says_what_to_type(tmp_path: Path) -> None:
    service = service_of(tmp_path, SETTINGS)
    assert wanted_build(service, ServiceRequest(settings=SETTINGS, version="2"), required=False) is None
    with pytest.raises(NoSuchServiceError) as refused:
        wanted_build(service, NOTHING, required=True)
    assert refused.value.hint == UP_A_COMMAND
    attached = service_of(tmp_path, SETTINGS, active("", generation=1, owned=False))
    with pytest.raises(NoSuchServiceError, match="has no command") as refused:
        wanted_build(attached, NOTHING, required=True)
    assert "turnout attach 127.0.0.1:5" in str(refused.value.hint)
    assert UP_A_COMMAND in str(refused.value.hint)


def test_a_daemon_that_turnout_started_is_not_to_be_attached_again(tmp_path: Path) -> None:
    snapshot = active("1", generation=1)
    started = replace(snapshot, daemons={"a": replace(snapshot.daemons["a"], owned=True)})
    with pytest.raises(NoSuchServiceError) as refused:
        wanted_build(service_of(tmp_path, SETTINGS, started), NOTHING, required=True)
    assert refused.value.hint == UP_A_COMMAND


def test_the_verb_alone_is_the_hint_where_a_build_is_known(tmp_path: Path) -> None:
    service = service_of(tmp_path, SETTINGS)
    assert start_hint(service, "up") == UP_A_COMMAND
    assert start_hint(service_of(tmp_path, Settings(name="t", listen=SETTINGS.listen, source="/f"))) == "turnout start"
    service.builds.remember(build("1"))
    assert start_hint(service, "up") == "turnout up"
    assert attach_again(Daemon("a", host="::1", port=5)) == "turnout attach [::1]:5"


# -- what is deployed --------------------------------------------------------------------------------------------------


def test_a_named_build_is_deployed_as_it_is_named(tmp_path: Path) -> None:
    """Its watched files were hashed when it was configured."""
    (tmp_path / "file").write_text("now")
    service = service_of(tmp_path, Settings(name="t", listen=SETTINGS.listen, watch=(str(tmp_path / "file"),)))
    assert build_to_deploy(service, names("2")) == build("2")


def test_the_remembered_build_is_deployed_with_its_files_as_they_are_now(tmp_path: Path) -> None:
    watched = tmp_path / "file"
    service = service_of(tmp_path, Settings(name="t", listen=SETTINGS.listen, watch=(str(watched),)))
    service.builds.remember(msgspec.structs.replace(build("1"), watched="before"))
    with pytest.raises(ConfigError):
        build_to_deploy(service, NOTHING)
    watched.write_text("one")
    first = build_to_deploy(service, NOTHING)
    watched.write_text("two")
    second = build_to_deploy(service, NOTHING)
    assert len({"before", first.watched, second.watched}) == 3
    unwatched = service_of(tmp_path, SETTINGS)
    assert build_to_deploy(unwatched, NOTHING).watched == "before"


def test_the_remembered_build_is_deployed_in_the_directory_that_its_name_leads_to_now(tmp_path: Path) -> None:
    service = service_of(tmp_path, SETTINGS)
    current = tmp_path / "current"
    context = ExecContext("/bin/true", {}, directory=str(current))
    ran(service, ("1", "active"), contexts={"1": service.contexts.save(context)})
    assert build_to_deploy(service, NOTHING) == build("1"), "the directory is gone"
    (tmp_path / "v2").mkdir()
    current.symlink_to("v2")
    assert build_to_deploy(service, NOTHING) == build("1", os.path.realpath(tmp_path / "v2"))
    assert build_to_deploy(service, ServiceRequest(settings=SETTINGS, version="3")) == build(
        "3", os.path.realpath(tmp_path / "v2")
    )


def test_a_deploy_needs_a_build(service: Service) -> None:
    with pytest.raises(NoSuchServiceError):
        build_to_deploy(service, NOTHING)


# -- what ran ----------------------------------------------------------------------------------------------------------


def test_a_build_has_run_once_it_was_active(service: Service) -> None:
    ran(service, ("1", "aborted"), ("2", ""))
    service.builds.remember(build("2"))
    assert not has_run(service)
    service.builds.set_result(2, "active")
    assert has_run(service)


def test_a_switch_whose_verb_was_killed_before_its_note_is_found(service: Service) -> None:
    ran(service, ("1", "active"), ("2", ""))
    found = unnoted_switch(service, active("2", generation=2))
    assert found
    assert (found.generation, found.build) == (2, build("2").id)


@pytest.mark.parametrize(
    ("snapshot", "result"),
    [
        (active("2", generation=2), "active"),  # noted
        (active("2", generation=2), "rolled_back"),
        (active("2", generation=2, state=State.STARTING), ""),  # its rollout is under way
        (active("1", generation=2), ""),  # it was switched back from
        (active("2", generation=2, start_ts=99.0), ""),  # the daemon is older: a rollout of the same build failed
        (active("2", generation=2, owned=False), ""),
        (active("2", generation=3), ""),  # no rollout is recorded
        (Snapshot(deployment=Deployment(generation=2)), ""),
    ],
)
def test_no_other_rollout_is_taken_for_an_unnoted_switch(service: Service, snapshot: Snapshot, result: str) -> None:
    ran(service, ("1", "active"), ("2", result))
    assert unnoted_switch(service, snapshot) is None


def test_of_two_rollouts_with_one_generation_the_later_is_the_one_that_switched(service: Service) -> None:
    """A registry that was restored from a copy counts from an earlier number."""
    ran(service, ("1", ""))
    service.builds.record_rollout(Rollout(1, build("2").id, "deploy", 100.0), build("2"))
    assert unnoted_switch(service, active("1", generation=1)) is None
    found = unnoted_switch(service, active("2", generation=1))
    assert found
    assert found.build == build("2").id


# -- what is started again ---------------------------------------------------------------------------------------------


def test_the_build_that_was_active_last_is_the_last_good_one(service: Service) -> None:
    ran(service, ("1", "active"), ("2", "active"), ("3", "aborted"), ("4", "rolled_back"))
    assert last_good_build(service, names("5")) == build("2")


def test_a_good_build_in_quarantine_comes_after_those_that_are_in_none(service: Service) -> None:
    ran(service, ("1", "active"), ("2", "active"), ("3", "active"))
    service.builds.quarantine(build("3").id, "it crashed", 3)
    assert last_good_build(service, names("4")) == build("2")
    for version in ("1", "2"):
        service.builds.quarantine(build(version).id, "it crashed", 3)
    assert last_good_build(service, names("4")) == build("3"), "all are: the newest"


def test_a_build_whose_switch_was_not_noted_is_good_where_the_registry_says_so(service: Service) -> None:
    ran(service, ("1", "active"), ("2", ""))
    assert last_good_build(service, NOTHING) == build("1")
    assert last_good_build(service, NOTHING, active("2", generation=2)) == build("2")
    assert last_good_build(service, NOTHING, active("1", generation=1)) == build("1")


def test_where_no_build_was_ever_active_the_wanted_one_is_started(service: Service) -> None:
    ran(service, ("1", "aborted"))
    assert last_good_build(service, names("2")) == build("2")
    with pytest.raises(NoSuchServiceError):
        last_good_build(service, NOTHING)


# -- what is gone back to ----------------------------------------------------------------------------------------------


def test_a_generation_that_is_named_is_gone_back_to(service: Service) -> None:
    ran(service, ("1", "active"), ("2", "active"), ("3", "active"))
    assert build_to_return_to(service, active("3", generation=3), 1) == build("1")
    with pytest.raises(UsageError, match="generation 9"):
        build_to_return_to(service, active("3", generation=3), 9)


def test_without_a_generation_the_build_before_the_active_one_is_gone_back_to(service: Service) -> None:
    ran(service, ("1", "active"), ("2", "active"), ("2", "active"))
    assert build_to_return_to(service, active("2", generation=3), None) == build("1")
    assert build_to_return_to(service, Snapshot(), None) == build("2")


def test_in_a_window_the_build_of_the_previous_daemon_is_gone_back_to(service: Service) -> None:
    """Also one that is no rollout's: it may have been active before the history began."""
    ran(service, ("1", "active"), ("2", "active"), ("3", "active"))
    window = active("3", generation=3, state=State.SWITCHED, old_boot_id="o")
    window = replace(window, daemons={**window.daemons, "o": Daemon("o", build=build("1").id)})
    assert build_to_return_to(service, window, None) == build("1")
    over = replace(window, deployment=replace(window.deployment, state=State.IDLE))
    assert build_to_return_to(service, over, None) == build("2")
    unknown = replace(window, daemons={**window.daemons, "o": Daemon("o", build="gone")})
    assert build_to_return_to(service, unknown, None) == build("2")


def test_without_an_earlier_build_there_is_none_to_go_back_to(service: Service) -> None:
    ran(service, ("1", "active"))
    with pytest.raises(UsageError, match="no earlier build"):
        build_to_return_to(service, active("1", generation=1), None)
