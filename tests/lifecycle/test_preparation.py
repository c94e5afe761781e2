"""What a verb prepares and takes back, with a keeper and a router that are fakes."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import msgspec
import pytest

from turnout.config.settings import Address, Settings, dump_settings, load_settings
from turnout.core.model import Daemon, Deployment, Desired, Identity, Snapshot, State
from turnout.core.outcome import apply
from turnout.errors import AddressInUseError, CandidateError, TimedOutError
from turnout.lifecycle.bootstrap import Bootstrap
from turnout.lifecycle.preparation import Preparation
from turnout.lifecycle.progress import Progress
from turnout.state.builds import Build, Rollout
from turnout.state.home import Home
from turnout.state.service import Service
from turnout.system.process import own_identity

SETTINGS = Settings(name="t", listen=(Address("127.0.0.1", 2),), observe_s=7.0, source="/srv/turnout.toml")
BEFORE = msgspec.structs.replace(SETTINGS, listen=(Address("127.0.0.1", 1),), observe_s=3.0)
DEAD = Identity(2**22 - 1, 1)
ERROR = CandidateError("it ended")


class FakeBootstrap:
    """Notes what it is asked; ``check`` and ``ensure`` raise where they are to."""

    def __init__(self, settings: Path) -> None:
        self.did: list[str] = []
        self.settings_at_ensure = b""
        self.check_error: Exception | None = None
        self.ensure_error: Exception | None = None
        self._settings = settings

    def check(self) -> None:
        self.did.append("check")
        if self.check_error:
            raise self.check_error

    def ensure(self) -> None:
        self.did.append("ensure")
        self.settings_at_ensure = self._settings.read_bytes()
        if self.ensure_error:
            raise self.ensure_error

    def undo(self) -> None:
        self.did.append("undo")


class Stage:
    """A service with settings of an earlier verb, if there was one, and a preparation of it."""

    def __init__(self, root: Path) -> None:
        self.home = Home(root)
        self.service = Service.open(self.home.service("t"), SETTINGS)
        self.service.home.create()
        self.bootstrap = FakeBootstrap(self.service.home.settings)

    def write(self, block: Deployment, *daemons: Daemon) -> None:
        snapshot = Snapshot({daemon.boot_id: daemon for daemon in daemons})
        self.service.registry.update(lambda _snap: apply(snapshot, block))

    def ran_before(self) -> None:
        self.service.home.settings.write_bytes(dump_settings(BEFORE))

    def preparation(self) -> Preparation:
        return Preparation(self.home, self.service, cast("Bootstrap", self.bootstrap), Progress())

    @property
    def block(self) -> Deployment:
        return self.service.registry.read().snapshot.deployment

    @property
    def settings(self) -> Settings:
        return load_settings(self.service.home.settings.read_bytes())


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def deploying(stage: Stage, active: str) -> None:
    """A rollout of a dead owner; its build is on record."""
    build = Build(("d",), "/")
    stage.service.builds.record_rollout(Rollout(3, build.id, "deploy", 1.0), build)
    block = Deployment(generation=3, state=State.STARTING, active_boot_id=active, candidate_boot_id="c", owner=DEAD)
    daemons = [Daemon("c", owned=True, identity=DEAD)]
    stage.write(block, *daemons, *([Daemon("a", owned=True, identity=own_identity())] if active else []))


def test_a_taken_address_is_found_before_anything_is_written(stage: Stage) -> None:
    stage.bootstrap.check_error = AddressInUseError("it is taken")
    with pytest.raises(AddressInUseError):
        stage.preparation().run(listen=True, rolls=True)
    assert not stage.service.home.settings.exists()
    assert stage.bootstrap.did == ["check"]


def test_the_router_starts_with_the_settings_of_the_verb(stage: Stage) -> None:
    stage.ran_before()
    preparation = stage.preparation()
    preparation.run(listen=True, rolls=True)
    assert load_settings(stage.bootstrap.settings_at_ensure) == stage.settings == SETTINGS
    assert preparation.has_settings


def test_settings_that_cannot_be_put_in_force_are_taken_back(stage: Stage) -> None:
    stage.ran_before()
    stage.bootstrap.ensure_error = TimedOutError("no router")
    with pytest.raises(TimedOutError):
        stage.preparation().run(listen=True, rolls=True)
    assert stage.settings == BEFORE


def test_down_needs_no_keeper_that_listens(stage: Stage) -> None:
    stage.preparation().run(listen=False, rolls=False)
    assert stage.bootstrap.did == []
    assert stage.settings == SETTINGS


def test_the_rollout_of_a_dead_owner_is_aborted_and_noted(stage: Stage) -> None:
    deploying(stage, "a")
    preparation = stage.preparation()
    snapshot = preparation.run(listen=True, rolls=True)
    assert snapshot.deployment.state is State.IDLE
    assert stage.service.builds.rollouts()[-1].result == "aborted"
    assert '"abort"' in stage.service.home.journal.read_text()
    assert not preparation.takes_over


@pytest.mark.parametrize("rolls", [True, False])
def test_where_clients_are_held_the_next_rollout_takes_over_instead(stage: Stage, *, rolls: bool) -> None:
    deploying(stage, "")
    preparation = stage.preparation()
    snapshot = preparation.run(listen=True, rolls=rolls)
    assert preparation.takes_over is rolls
    assert snapshot.deployment.in_flight is rolls
    assert stage.service.builds.rollouts()[-1].result == "aborted"


def test_a_first_up_that_failed_leaves_a_stopped_service_that_no_file_defines(stage: Stage) -> None:
    preparation = stage.preparation()
    preparation.run(listen=True, rolls=True)
    preparation.undo(ERROR)
    assert stage.bootstrap.did == ["check", "ensure", "undo"]
    assert (stage.block.desired, stage.block.rollback_reason) == (Desired.STOPPED, "it ended")
    assert stage.settings.source == ""


def test_a_service_that_should_run_is_still_missed_after_a_failed_verb(stage: Stage) -> None:
    stage.write(Deployment(generation=2, switch_ts=1.0, desired=Desired.RUNNING))
    preparation = stage.preparation()
    preparation.run(listen=True, rolls=True)
    preparation.undo(ERROR)
    assert stage.block.desired is Desired.RUNNING
    assert stage.settings.source == SETTINGS.source


def test_a_service_whose_daemon_runs_is_left_as_it_is(stage: Stage) -> None:
    stage.write(Deployment(generation=1), Daemon("a", owned=True, identity=own_identity()))
    preparation = stage.preparation()
    preparation.run(listen=True, rolls=True)
    preparation.undo(ERROR)
    assert "undo" not in stage.bootstrap.did


@pytest.mark.parametrize("switched", [True, False])
def test_a_failed_rollout_gives_the_settings_back_but_for_the_addresses(stage: Stage, *, switched: bool) -> None:
    stage.ran_before()
    preparation = stage.preparation()
    preparation.run(listen=True, rolls=True)
    preparation.undo_rollout(switched=switched)
    kept = SETTINGS if switched else msgspec.structs.replace(BEFORE, listen=SETTINGS.listen)
    assert stage.settings == kept
