"""A rollout that is given up where nothing can be written, without any daemon."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from turnout.config.settings import Address, Settings
from turnout.control.router_client import RouterClient
from turnout.core.model import Cause, Daemon, Deployment, Desired, Snapshot, State
from turnout.errors import CandidateError, ConflictError, StateUnwritableError
from turnout.lifecycle.actions import StartBuild
from turnout.lifecycle.bootstrap import Bootstrap
from turnout.lifecycle.launch_context import Launch
from turnout.lifecycle.progress import Progress
from turnout.lifecycle.rollout import RolloutRun
from turnout.state.builds import Build
from turnout.state.exec_context import ExecContext
from turnout.state.home import Home
from turnout.state.service import Service
from turnout.testing import MemoryRegistry

SETTINGS = Settings(name="t", listen=(Address("127.0.0.1", 1),))


class FullRegistry(MemoryRegistry):
    """One on a full disk: it can be read."""

    def update(self, change: Any) -> Any:
        raise StateUnwritableError("No space left on device")


class Stopped:
    """A candidate that notes that it was told to stop."""

    def __init__(self) -> None:
        self.stops = 0

    def stop(self) -> None:
        self.stops += 1


def test_a_candidate_is_stopped_also_where_its_end_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path)
    service = Service.open(home.service("t"), SETTINGS)
    run = RolloutRun(service, Bootstrap(home, SETTINGS), RouterClient(home), Progress())
    candidate = Stopped()
    monkeypatch.setattr(run, "_registry", FullRegistry(Snapshot()))
    monkeypatch.setattr(run, "_candidate", lambda _boot_id: candidate)
    with pytest.raises(StateUnwritableError):
        run._give_up("b1", "build", CandidateError("it cannot be registered"))
    assert candidate.stops == 1


def _refuse(*_: object, **__: object) -> None:
    raise StateUnwritableError("cannot write builds.json")


def test_a_rollout_whose_record_cannot_be_written_is_aborted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it is under way until its owner ends, and every other verb is refused meanwhile."""
    home = Home(tmp_path)
    service = Service.open(home.service("t"), SETTINGS)
    service.home.create()
    run = RolloutRun(service, Bootstrap(home, SETTINGS), RouterClient(home), Progress())
    registry = MemoryRegistry()
    monkeypatch.setattr(run, "_registry", registry)
    monkeypatch.setattr(run, "_candidate", lambda _boot_id: Stopped())
    monkeypatch.setattr(service.builds, "record_rollout", _refuse)
    launch = Launch(ExecContext("/bin/true", {}), "context")
    with pytest.raises(StateUnwritableError, match=r"builds\.json"):
        run.run(StartBuild(Build(("true",), "/"), Cause.DEPLOY, launch))
    block = registry.read().snapshot.deployment
    assert (block.generation, block.state, block.candidate_boot_id) == (1, State.IDLE, "")
    assert block.rollback_reason == "cannot write builds.json"


def test_a_candidate_is_stopped_also_where_the_end_of_its_rollout_cannot_be_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path)
    service = Service.open(home.service("t"), SETTINGS)
    service.home.create()
    run = RolloutRun(service, Bootstrap(home, SETTINGS), RouterClient(home), Progress())
    candidate = Stopped()
    monkeypatch.setattr(run, "_registry", MemoryRegistry(Snapshot({"b1": Daemon("b1")})))
    monkeypatch.setattr(run, "_candidate", lambda _boot_id: candidate)
    monkeypatch.setattr(service.builds, "set_result", _refuse)
    with pytest.raises(StateUnwritableError):
        run._give_up("b1", "build", CandidateError("it did not become healthy"))
    assert candidate.stops == 1


@pytest.mark.parametrize(
    ("desired", "then"),
    [(Desired.STOPPED, Desired.RUNNING), (Desired.PAUSED, Desired.PAUSED), (Desired.RUNNING, Desired.RUNNING)],
)
def test_a_rollout_begins_in_one_write_which_starts_a_stopped_service_and_leaves_a_paused_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, desired: Desired, then: Desired
) -> None:
    home = Home(tmp_path)
    service = Service.open(home.service("t"), SETTINGS)
    service.home.create()
    run = RolloutRun(service, Bootstrap(home, SETTINGS), RouterClient(home), Progress())
    registry = MemoryRegistry(Snapshot(deployment=Deployment(generation=1, desired=desired)))
    monkeypatch.setattr(run, "_registry", registry)
    begun = run._begin("c", Cause.START).deployment
    assert len(registry.outcomes) == 1
    assert (begun.generation, begun.candidate_boot_id, begun.desired) == (2, "c", then)


def test_a_rollout_that_may_not_begin_starts_no_stopped_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path)
    run = RolloutRun(
        Service.open(home.service("t"), SETTINGS), Bootstrap(home, SETTINGS), RouterClient(home), Progress()
    )
    registry = MemoryRegistry(Snapshot(deployment=Deployment(generation=1, desired=Desired.STOPPED)))
    monkeypatch.setattr(run, "_registry", registry)
    with pytest.raises(ConflictError):
        run._begin("c", Cause.START, expected_generation=7)
    assert registry.read().snapshot.deployment.desired is Desired.STOPPED
