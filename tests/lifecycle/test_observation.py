"""How a rollout ended, by what the registry says: no router and no daemon."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from turnout.config.settings import Address, Settings
from turnout.core.model import Cause, Daemon, Deployment, Identity, Snapshot, State
from turnout.core.outcome import apply
from turnout.errors import CandidateError, ConflictError, RolledBackError, TimedOutError, TurnoutError
from turnout.lifecycle.observation import await_verdict, serving
from turnout.lifecycle.rollout import Switched
from turnout.state.builds import Build, Rollout
from turnout.state.home import Home
from turnout.state.service import Service
from turnout.system.process import own_identity

SETTINGS = Settings(name="t", listen=(Address("127.0.0.1", 1),))
OLD = Daemon("a", owned=True, identity=own_identity(), version="v1", build="b1")
NEW = Daemon("b", owned=True, identity=own_identity(), version="v2", build="b2")
SWITCHED = Switched(NEW, 3, observed=True)
WINDOW = Deployment(generation=3, state=State.SWITCHED, active_boot_id="b", old_boot_id="a", revision=9, switch_ts=1.0)
IDLE = replace(WINDOW, state=State.IDLE, old_boot_id="")
BACK = replace(IDLE, generation=4, active_boot_id="a", cause=Cause.ROLLBACK)


@pytest.fixture
def service(tmp_path: Path) -> Service:
    service = Service.open(Home(tmp_path).service("t"), SETTINGS)
    service.home.create()
    return service


def write(service: Service, block: Deployment, *daemons: Daemon) -> None:
    snapshot = Snapshot({daemon.boot_id: daemon for daemon in daemons or (OLD, NEW)})
    service.registry.update(lambda _snap: apply(snapshot, block))


def verdict(service: Service, block: Deployment) -> None:
    write(service, block)
    await_verdict(service, SWITCHED, timeout_s=0.0)


def test_a_window_that_was_passed_is_no_error(service: Service) -> None:
    verdict(service, IDLE)


@pytest.mark.parametrize(
    ("block", "kind", "message"),
    [
        (WINDOW, TimedOutError, "generation 3 is still observed after 0 s"),
        (replace(IDLE, active_boot_id="a", rollback_reason="no answer"), RolledBackError,
         r"was rolled back \(no answer\): a \(v1, .* serves again"),
        (replace(IDLE, rollback_reason="no answer"), CandidateError, "nothing could be restored"),
        (replace(IDLE, active_boot_id=""), ConflictError, "was stopped meanwhile"),
        (replace(IDLE, active_boot_id="", rollback_reason="stopped"), ConflictError, "was stopped meanwhile"),
        (replace(IDLE, generation=4, cause=Cause.DEPLOY), ConflictError, "superseded by generation 4"),
        (BACK, RolledBackError, r"was rolled back \(by hand\)"),
        (replace(BACK, state=State.ROLLING_BACK, candidate_boot_id="c"), TimedOutError, "still observed"),
        (replace(BACK, rollback_reason="a rollback failed: it ended"), CandidateError, "and so did its rollback"),
        (replace(BACK, generation=5), CandidateError, "and so did its rollback"),
    ],
)  # fmt: skip
def test_every_other_end_is_an_error_that_says_which(
    service: Service, block: Deployment, kind: type[TurnoutError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        verdict(service, block)


def test_a_cold_rollback_says_why_the_build_is_in_quarantine(service: Service) -> None:
    build = Build(("d",), "/", {}, "v2")
    service.builds.record_rollout(Rollout(3, build.id, "deploy", 1.0), build)
    service.builds.quarantine(build.id, "no answer", 3)
    write(service, BACK)
    with pytest.raises(RolledBackError, match="no answer"):
        await_verdict(service, msgspec.structs.replace(SWITCHED, daemon=replace(NEW, build=build.id)), timeout_s=0.0)


def test_a_message_names_the_generation_that_serves_or_the_daemon_or_nothing(service: Service) -> None:
    assert serving(service) == "nothing is serving"
    build = Build(("d",), "/", {}, "v2")
    active = replace(NEW, build=build.id)
    write(service, IDLE, active)
    assert serving(service).startswith("still serving b (v2, pid")
    service.builds.record_rollout(Rollout(3, build.id, "deploy", 1.0), build)
    service.builds.set_result(3, "active")
    assert serving(service) == "still serving generation 3 (v2)"
    write(service, IDLE, replace(active, identity=Identity(2**22 - 1, 1)))
    assert serving(service) == "nothing is serving"
