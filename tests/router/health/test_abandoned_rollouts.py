"""Rollouts without an owner, with a registry, a restarter and files that are fakes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fake_time import AtOnce, SkippingLoop
from turnout.core.model import Cause, Daemon, Deployment, Identity, Snapshot, State
from turnout.core.outcome import Outcome
from turnout.router.health.abandoned_rollouts import OWNER_LOOK_S, AbandonedRollouts
from turnout.system.process import own_identity
from turnout.testing import MemoryRegistry

DEAD = Identity(2**22 - 1, 1)
DEPLOYING = Deployment(
    generation=3, state=State.STARTING, active_boot_id="a", candidate_boot_id="c", owner=DEAD, revision=9
)
DAEMONS = {"a": Daemon("a", owned=True), "c": Daemon("c", owned=True)}


@dataclass
class FakeService:
    """A followed service, and what was done to it. ``on_disk``: the registry, where it is not the one that was read."""

    block: Deployment
    on_disk: Deployment | None = None
    restarts: list[tuple[str, str]] = field(default_factory=list)
    events: list[tuple[str, Any]] = field(default_factory=list)
    results: list[tuple[int, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.snapshot = Snapshot(DAEMONS, {}, self.block)
        self.file = MemoryRegistry(Snapshot(DAEMONS, {}, self.on_disk or self.block))
        self.registry = self
        self.files = SimpleNamespace(writing=AtOnce())
        builds = SimpleNamespace(set_result=lambda *result: self.results.append(result))
        self.live = SimpleNamespace(service=SimpleNamespace(home=SimpleNamespace(root=None), builds=builds))

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    async def update(self, change: Callable[[Snapshot], Outcome]) -> Outcome:
        return self.file.update(change)

    async def write_file(self, write: Callable[[], None]) -> None:
        write()

    def deployment_event(self, event: str, _outcome: Outcome, **evidence: Any) -> None:
        self.events.append((event, evidence["reason"]))

    def on_exit(self, daemon: Daemon, reason: str) -> None:
        self.restarts.append((daemon.boot_id, reason))


def watched(service: FakeService) -> FakeService:
    """The service after one look at the owner."""

    async def look() -> None:
        followed = SimpleNamespace(
            live=service.live,
            registry=service,
            files=service.files,
            loop=service.loop,
            write_file=service.write_file,
            events=service,
        )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(OWNER_LOOK_S * 1.5):
                await AbandonedRollouts(cast("Any", followed), cast("Any", service)).run()

    with asyncio.Runner(loop_factory=SkippingLoop) as runner:
        runner.run(look())
    return service


def untouched(service: FakeService) -> bool:
    return not (service.file.outcomes or service.restarts or service.events or service.results)


def test_a_rollout_whose_owner_died_is_aborted_and_noted() -> None:
    service = watched(FakeService(DEPLOYING))
    block = service.file.read().snapshot.deployment
    assert (block.state, block.active_boot_id, block.rollback_reason) == (State.IDLE, "a", "its owner died")
    assert (service.events, service.results) == ([("abort", "its owner died")], [(3, "aborted")])
    assert service.restarts == []


def test_a_rollback_whose_owner_died_is_said_to_have_failed() -> None:
    service = watched(FakeService(replace(DEPLOYING, state=State.ROLLING_BACK, cause=Cause.ROLLBACK)))
    assert service.events == [("abort", "a rollback failed: its owner died")]


@pytest.mark.parametrize(
    "block", [replace(DEPLOYING, owner=own_identity()), Deployment(generation=3, active_boot_id="a", owner=DEAD)]
)
def test_a_rollout_with_an_owner_and_a_service_without_a_rollout_are_left_alone(block: Deployment) -> None:
    assert untouched(watched(FakeService(block)))


def test_where_the_active_daemon_was_retired_a_daemon_is_started_instead_of_an_abort() -> None:
    retired = replace(DEPLOYING, active_boot_id="", old_boot_id="a")
    service = watched(FakeService(retired))
    assert service.restarts == [("a", "the rollout of generation 3 lost its owner")]
    assert service.file.outcomes == []


def test_a_daemon_that_was_retired_a_moment_before_the_death_is_not_aborted_over() -> None:
    """The look saw an active daemon, the file has none any more: clients are held, and the next look restarts."""
    retired = replace(DEPLOYING, active_boot_id="", old_boot_id="a", revision=10)
    service = watched(FakeService(DEPLOYING, on_disk=retired))
    assert [outcome.applied for outcome in service.file.outcomes] == [False]
    assert (service.events, service.results, service.restarts) == ([], [], [])


def test_a_rollout_that_went_on_while_its_owner_was_looked_at_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    service = FakeService(DEPLOYING)

    def died(_block: Deployment, _home: object) -> bool:
        service.snapshot = replace(service.snapshot, deployment=replace(DEPLOYING, revision=11))
        return True

    monkeypatch.setattr("turnout.router.health.abandoned_rollouts.is_abandoned", died)
    assert untouched(watched(service))
