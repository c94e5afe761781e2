"""Which environment, limits and umask a start gets: those of the shell that asks, or those that were recorded."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from turnout.config.settings import Address, ServiceRequest, Settings
from turnout.core.model import Cause, Daemon, Deployment, Snapshot, State
from turnout.errors import NoSuchServiceError, SpawnError
from turnout.lifecycle.build_selection import build_to_deploy, last_good_build, named_build, wanted_build
from turnout.lifecycle.launch_context import Launch, Launches
from turnout.lifecycle.preparation import note_switch
from turnout.state.builds import NO_CONTEXT, Build, Rollout
from turnout.state.home import Home
from turnout.state.service import Service


class Stage:
    """A service with a daemon ``d`` on the PATH of the shell, and a history."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.settings = Settings(name="t", listen=(Address("127.0.0.1", 1),), watch=(str(directory / "asset"),))
        self.service = Service.open(Home(directory / "home").service("t"), self.settings)
        self.service.home.create()
        self.generation = 0
        self.program = directory / "bin" / "d"
        self.program.parent.mkdir()
        self.program.write_text("#!/bin/sh\n")
        self.program.chmod(0o755)
        (directory / "asset").write_text("one")
        self.build = Build(("d",), str(directory), version="1")

    def wanted(self, *command: str, version: str = "") -> ServiceRequest:
        return ServiceRequest(settings=self.settings, command=command, version=version)

    def record(self, build: Build, launch: Launch, result: str = "active") -> None:
        self.generation += 1
        context_id = launch.context_id or self.service.contexts.save(launch.context)
        rollout = Rollout(self.generation, build.id, "deploy", 1.0, context=context_id)
        self.service.builds.record_rollout(rollout, build)
        self.service.builds.set_result(self.generation, result)

    def typed(self, build: Build, cause: Cause = Cause.DEPLOY) -> Launch:
        return Launches(self.service).choose(build, cause)

    def by_router(self, build: Build, cause: Cause = Cause.START) -> Launch:
        return Launches(self.service, automatic=True, from_router=True).choose(build, cause)

    def deploy(self, build: Build) -> None:
        self.record(build, self.typed(build))


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    stage = Stage(tmp_path)
    monkeypatch.setenv("PATH", f"{stage.program.parent}:/usr/bin:/bin")
    monkeypatch.setenv("TOKEN", "of the deploy")
    return stage


def another_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "of another shell")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")


# -- the record --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cause", [Cause.START, Cause.ROLLBACK, Cause.REFRESH])
def test_what_turnout_starts_by_itself_is_what_was_deployed(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, cause: Cause
) -> None:
    stage.deploy(stage.build)
    another_shell(monkeypatch)
    launch = stage.by_router(stage.build, cause)
    assert launch.context.env["TOKEN"] == "of the deploy"
    assert launch.context.program == str(stage.program)
    assert launch.context_id == stage.service.builds.rollouts()[-1].context, "and nothing new is recorded"
    assert (launch.note, launch.warnings) == ("", ())


@pytest.mark.parametrize("result", ["aborted", "rolled_back", ""])
def test_a_rollout_that_did_not_stay_changes_no_later_start(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, result: str
) -> None:
    stage.deploy(stage.build)
    monkeypatch.setenv("TOKEN", "of a failed deploy")
    stage.record(stage.build, stage.typed(stage.build), result)
    assert stage.by_router(stage.build).context.env["TOKEN"] == "of the deploy"


def test_a_new_build_that_the_router_deploys_gets_the_environment_of_the_last_deploy(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.deploy(stage.build)
    another_shell(monkeypatch)
    launch = stage.by_router(msgspec.structs.replace(stage.build, version="2"), Cause.DEPLOY)
    assert (launch.context.env["TOKEN"], launch.context.program) == ("of the deploy", str(stage.program))
    assert launch.context_id == ""


def test_a_program_that_asks_for_a_build_of_its_own_gives_it_its_environment(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.deploy(stage.build)
    monkeypatch.setenv("TOKEN", "of an editor")
    asks = Launches(stage.service, automatic=True)
    assert (
        asks.choose(msgspec.structs.replace(stage.build, version="2"), Cause.DEPLOY).context.env["TOKEN"]
        == "of an editor"
    )
    assert asks.choose(stage.build, Cause.START).context.env["TOKEN"] == "of the deploy"


def test_a_rollback_uses_the_record_also_where_a_person_types_it(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.deploy(stage.build)
    monkeypatch.setenv("TOKEN", "of generation 2")
    stage.deploy(stage.build)
    another_shell(monkeypatch)
    back = Launches(stage.service)
    assert back.choose(stage.build, Cause.ROLLBACK).context.env["TOKEN"] == "of generation 2"
    assert back.choose(stage.build, Cause.ROLLBACK, 1).context.env["TOKEN"] == "of the deploy"


def test_recorded_is_for_hooks_and_takes_the_files_as_they_are(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.deploy(stage.build)
    another_shell(monkeypatch)
    (stage.directory / "asset").write_text("two")
    hook = Launches(stage.service, recorded=True)
    assert hook.environ()["TOKEN"] == "of the deploy"
    launch = hook.choose(stage.build, Cause.REFRESH)
    assert (launch.context.env["TOKEN"], launch.warnings) == ("of the deploy", ())
    stage.record(stage.build, launch)
    assert stage.by_router(stage.build).warnings == (), "from here on these are its files"


def test_a_first_start_with_recorded_takes_this_shell(stage: Stage) -> None:
    launch = Launches(stage.service, recorded=True).choose(stage.build, Cause.START)
    assert launch.context.env["TOKEN"] == "of the deploy"


def test_a_rollout_whose_verb_died_after_its_switch_is_what_is_started_again(stage: Stage) -> None:
    stage.deploy(stage.build)
    second = msgspec.structs.replace(stage.build, version="2")
    stage.record(second, stage.typed(second), "")
    began = stage.service.builds.rollouts()[-1].ts
    daemon = Daemon("b2", start_ts=began + 1, build=second.id, owned=True)
    block = Deployment(generation=2, state=State.SWITCHED, active_boot_id="b2")
    for daemons, deployment in [
        ({"b2": replace(daemon, start_ts=began - 1)}, block),  # an earlier daemon of the same build
        ({"b2": replace(daemon, build=stage.build.id)}, block),
        ({"b2": daemon}, replace(block, state=State.READY)),
    ]:
        note_switch(stage.service, Snapshot(daemons=daemons, deployment=deployment))
        assert last_good_build(stage.service, stage.wanted()) == stage.build
    note_switch(stage.service, Snapshot(daemons={"b2": daemon}, deployment=block))
    assert last_good_build(stage.service, stage.wanted()) == second
    assert stage.service.builds.latest() == second


# -- this shell --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cause", [Cause.DEPLOY, Cause.START, Cause.REFRESH])
def test_what_a_person_types_records_anew_and_says_what_differs(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, cause: Cause
) -> None:
    stage.deploy(stage.build)
    monkeypatch.setenv("TOKEN", "of another shell")
    monkeypatch.setenv("NEW", "x")
    launch = stage.typed(stage.build, cause)
    assert launch.context.env["TOKEN"] == "of another shell"
    assert launch.note == "differs from generation 1: environment: TOKEN changed, NEW new"


def test_a_first_start_has_nothing_to_say(stage: Stage) -> None:
    assert stage.typed(stage.build).note == ""


def test_the_same_build_starts_from_a_shell_that_does_not_find_its_program(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.deploy(stage.build)
    another_shell(monkeypatch)
    launch = stage.typed(stage.build, Cause.REFRESH)
    assert launch.context.program == str(stage.program)
    (warning,) = launch.warnings
    assert "no such command: d" in warning
    assert str(stage.program) in warning
    with pytest.raises(SpawnError, match="no such command: d"):
        stage.typed(stage.build, Cause.DEPLOY)


# -- files that are not what they were ---------------------------------------------------------------------------------


def test_files_that_were_replaced_in_place_are_named_and_the_build_starts_all_the_same(stage: Stage) -> None:
    stage.deploy(stage.build)
    (stage.directory / "new").write_text("two")
    (stage.directory / "new").replace(stage.directory / "asset")
    for launch in (stage.by_router(stage.build), Launches(stage.service).choose(stage.build, Cause.ROLLBACK)):
        (warning,) = launch.warnings
        assert f"changed since it was deployed: {stage.directory / 'asset'}" in warning
        assert "(version 1)" in warning
    assert "files changed" in stage.typed(stage.build, Cause.REFRESH).note


def test_a_program_that_is_gone_is_looked_up_on_the_recorded_path(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = tmp_path / "other" / "d"
    other.parent.mkdir()
    monkeypatch.setenv("PATH", f"{stage.program.parent}:{other.parent}")
    stage.deploy(stage.build)
    stage.program.rename(other)
    another_shell(monkeypatch)
    launch = stage.by_router(stage.build)
    assert launch.context.program == str(other)
    assert launch.warnings[0] == f"{stage.program} is gone: {other} is started in its place"


# -- a home of an earlier version --------------------------------------------------------------------------------------


def earlier(stage: Stage) -> None:
    stage.service.builds.record_rollout(Rollout(1, stage.build.id, "start", 1.0, "active"), stage.build)
    stage.generation = 1


def test_a_build_without_a_record_starts_as_it_did_and_that_is_said_once(stage: Stage) -> None:
    earlier(stage)
    launch = stage.by_router(stage.build)
    assert launch.context.env == os.environ
    assert (launch.context.umask, launch.context.limits, launch.context_id) == (None, {}, NO_CONTEXT)
    assert "turnout refresh" in launch.warnings[0]
    stage.record(stage.build, launch)
    again = stage.by_router(stage.build)
    assert (again.context_id, again.warnings) == (NO_CONTEXT, ())
    stage.record(stage.build, stage.typed(stage.build, Cause.REFRESH))
    assert stage.by_router(stage.build).context.umask is not None


def test_a_rollback_to_a_build_without_a_record_says_so(stage: Stage) -> None:
    stage.build = msgspec.structs.replace(stage.build, watched="0123456789abcdef")
    earlier(stage)
    launch = Launches(stage.service).choose(stage.build, Cause.ROLLBACK)
    assert launch.context.env["TOKEN"] == "of the deploy"
    changed, no_record = launch.warnings
    assert "watched files" in changed
    assert "has no record" in no_record


def test_the_program_of_a_check_has_the_environment_of_a_rollout_without_a_result_too(stage: Stage) -> None:
    assert stage.service.environ_of(stage.build.id) is None
    stage.record(stage.build, stage.typed(stage.build), "")
    environ = stage.service.environ_of(stage.build.id)
    assert environ
    assert environ["TOKEN"] == "of the deploy"
    assert stage.service.environ_of() is None, "nothing was deployed"


# -- which build -------------------------------------------------------------------------------------------------------


def test_a_version_without_a_command_is_the_known_build_by_that_version(stage: Stage) -> None:
    stage.deploy(stage.build)
    second = msgspec.structs.replace(
        stage.build, version="2", watched=build_to_deploy(stage.service, stage.wanted()).watched
    )
    assert build_to_deploy(stage.service, stage.wanted(version="2")) == second
    assert wanted_build(stage.service, stage.wanted(version="2"), required=False) == msgspec.structs.replace(
        stage.build, version="2"
    )
    assert wanted_build(stage.service, stage.wanted(), required=False) is None


def test_a_version_of_nothing_is_refused_where_something_must_run(stage: Stage) -> None:
    assert wanted_build(stage.service, stage.wanted(version="2"), required=False) is None
    with pytest.raises(NoSuchServiceError):
        build_to_deploy(stage.service, stage.wanted(version="2"))


def test_a_plain_deploy_is_about_the_files_as_they_are(stage: Stage) -> None:
    stage.deploy(msgspec.structs.replace(stage.build, watched="of yesterday"))
    watched = build_to_deploy(stage.service, stage.wanted()).watched
    assert watched not in {"", "of yesterday"}
    (stage.directory / "asset").write_text("two")
    assert build_to_deploy(stage.service, stage.wanted()).watched != watched


def test_a_plain_deploy_follows_the_link_that_it_was_deployed_from_and_nothing_else_does(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    releases = [stage.directory / "releases" / number for number in "12"]
    for release in releases:
        release.mkdir(parents=True)
    link = stage.directory / "current"
    link.symlink_to(releases[0])
    monkeypatch.chdir(link)
    monkeypatch.setenv("PWD", str(link))
    build = named_build(stage.wanted("d"))
    assert build
    assert build.cwd == str(releases[0])
    stage.deploy(build)
    link.unlink()
    link.symlink_to(releases[1])
    assert build_to_deploy(stage.service, stage.wanted()).cwd == str(releases[1])
    assert last_good_build(stage.service, stage.wanted()).cwd == str(releases[0])
    (warning,) = stage.typed(build).warnings
    assert f"is in {releases[0]}" in warning
    assert f"leads to {releases[1]} now" in warning
    link.unlink()
    assert build_to_deploy(stage.service, stage.wanted()).cwd == str(releases[0]), "the link is gone"


def test_the_directory_of_a_file_that_leads_through_a_link_is_that_of_the_release(stage: Stage) -> None:
    (stage.directory / "release").mkdir()
    (stage.directory / "current").symlink_to("release")
    wanted = ServiceRequest(settings=stage.settings, command=("d",), cwd=str(stage.directory / "current"))
    build = named_build(wanted)
    assert build
    assert build.cwd == str(stage.directory / "release")


def test_a_generation_without_a_record_is_gone_back_to_with_the_record_of_its_build(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier version deployed it, the router restarted it, and a person refreshed it since."""
    stage.generation += 1
    stage.service.builds.record_rollout(
        Rollout(stage.generation, stage.build.id, "start", 1.0, "active", NO_CONTEXT), stage.build
    )
    stage.deploy(stage.build)
    another_shell(monkeypatch)
    launch = Launches(stage.service).choose(stage.build, Cause.ROLLBACK, 1)
    assert launch.context.env["TOKEN"] == "of the deploy"


def test_of_a_build_whose_newest_record_is_damaged_an_older_one_counts(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.deploy(stage.build)
    monkeypatch.setenv("TOKEN", "of its second deploy")
    stage.deploy(stage.build)
    second = stage.service.builds.rollouts()[-1].context
    monkeypatch.setenv("TOKEN", "of another build")
    stage.deploy(msgspec.structs.replace(stage.build, version="2"))
    launch = stage.by_router(stage.build, Cause.ROLLBACK)
    assert (launch.context.env["TOKEN"], launch.warnings) == ("of its second deploy", ())
    (stage.service.home.contexts / f"{second}.json").write_text("{")
    for launch in (
        stage.by_router(stage.build, Cause.ROLLBACK),
        Launches(stage.service).choose(stage.build, Cause.ROLLBACK, 2),
    ):
        assert launch.context.env["TOKEN"] == "of the deploy"
        assert "record of generation 2 cannot be read" in launch.warnings[0]
        assert "gets that of generation 1" in launch.warnings[0]
    environ = stage.service.environ_of(stage.build.id)
    assert environ
    assert environ["TOKEN"] == "of the deploy"


def test_a_known_build_without_a_readable_record_is_not_called_new(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.deploy(stage.build)
    (stage.service.home.contexts / f"{stage.service.builds.rollouts()[-1].context}.json").write_text("{")
    monkeypatch.setenv("TOKEN", "of another build")
    stage.deploy(msgspec.structs.replace(stage.build, version="2"))
    launch = stage.by_router(stage.build, Cause.ROLLBACK)
    assert launch.note == ""
    assert "has no readable record" in launch.warnings[0]


def test_a_damaged_record_is_not_said_to_be_that_of_an_earlier_version(stage: Stage) -> None:
    stage.deploy(stage.build)
    for path in stage.service.home.contexts.iterdir():
        path.write_bytes(b"")
    (warning,) = stage.by_router(stage.build).warnings
    assert "has a damaged record" in warning
    assert "earlier version" not in warning
