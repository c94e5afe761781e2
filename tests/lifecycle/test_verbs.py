"""Verbs that meet a router which acts between their plan and their write."""

from __future__ import annotations

from pathlib import Path

import pytest

from lifecycle_fakes import Stage, staged
from turnout.core.deployment import rollback_active
from turnout.core.model import Deployment, Desired, State
from turnout.errors import ConflictError
from turnout.lifecycle.actions import Plan
from turnout.lifecycle.verbs import Lifecycle
from turnout.testing import free_port


def observes(stage: Stage) -> None:
    """The window of generation 2: build v2 is active, and v1 is the previous one."""
    stage.run_keeper()
    for generation, version in enumerate(("v1", "v2"), start=1):
        stage.record(generation, version, "active")
    block = Deployment(generation=2, state=State.SWITCHED, active_boot_id="b", old_boot_id="a", switch_ts=1.0)
    stage.set_up(block, stage.daemon("a", "v1"), stage.daemon("b", "v2"))


def test_a_stop_that_meets_a_rollback_of_the_router_is_refused_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the previous daemon serves in a service that counts as stopped: nothing would start it again."""
    prepare = Lifecycle._prepare
    with staged(monkeypatch, tmp_path, free_port()) as stage:
        observes(stage)

        def prepared(verb: Lifecycle, plan: Plan) -> Plan:
            plan = prepare(verb, plan)
            stage.service.registry.update(lambda snap: rollback_active(snap, 2, "a", reason="it failed its checks"))
            return plan

        monkeypatch.setattr(Lifecycle, "_prepare", prepared)
        said = stage.type("stop")
        block = stage.snapshot.deployment
        assert said.code == ConflictError.exit_code
        assert (block.active_boot_id, block.desired) == ("a", Desired.RUNNING)


def test_a_stop_takes_the_daemon_out_of_service_and_says_so_in_one_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with staged(monkeypatch, tmp_path, free_port()) as stage:
        observes(stage)
        revision = stage.snapshot.deployment.revision
        assert stage.type("stop").code == 0
        block = stage.snapshot.deployment
        assert (block.active_boot_id, block.desired, block.rollback_reason) == ("", Desired.STOPPED, "stopped")
        (entry,) = (entry for entry in stage.journal() if entry["event"] == "deactivate")
        assert entry["revision"] == revision + 2, "of both events"
