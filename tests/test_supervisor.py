"""The supervisor against a world that is all fake: its own clock, a registry in memory, probes that answer as told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest

from fake_time import SkippingLoop
from turnout.config import Address, Health, Settings
from turnout.core.deployment import begin_deploy, finish_deploy, mark_candidate_healthy, rollback_active, switch_active
from turnout.core.membership import register_daemon
from turnout.core.model import Daemon, Identity, Snapshot, State, Workspace
from turnout.core.outcome import Outcome
from turnout.supervisor import Supervisor
from turnout.system.probe import ProbeResult

OK = ProbeResult(ok=True, reason="well")
BAD = ProbeResult(ok=False, reason="it did not answer in time")
GONE = ProbeResult(ok=False, reason="it has ended", gone=True)
INTERVAL_S = 1.0
OBSERVE_S = 30.0


def must(outcome: Outcome) -> Snapshot:
    assert outcome.applied, outcome
    return outcome.snapshot


def in_window() -> Snapshot:
    """v1 was active, v2 has just been switched to, one workspace moved with it."""
    snap = Snapshot()
    for generation, boot in ((1, "v1"), (2, "v2")):
        snap = must(begin_deploy(snap, boot, owner=Identity(1)))
        snap = must(register_daemon(snap, Daemon(boot, port=1000 + generation)))
        if generation == 2:
            snap = Snapshot(snap.daemons, {"/w": Workspace("/w", "v1")}, snap.deployment)
        snap = must(mark_candidate_healthy(snap, generation, boot))
        snap = must(switch_active(snap, generation, boot, now=0.0))
    assert snap.deployment.state is State.SWITCHED
    return snap


@dataclass
class World:
    """Time passes only when the supervisor sleeps; ``script`` gives what each check of a boot says."""

    script: dict[str, list[ProbeResult]]
    snapshot: Snapshot = field(default_factory=in_window)
    events: list[str] = field(default_factory=list)
    rollbacks: list[str] = field(default_factory=list)
    checks: list[tuple[float, str]] = field(default_factory=list)
    slow_s: float = 0.0
    supervisor: Supervisor | None = None

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def probe(self, daemon: Daemon) -> ProbeResult:
        self.checks.append((self.now(), daemon.boot_id))
        began = self.now()
        if self.slow_s:
            await asyncio.sleep(self.slow_s)
        answers = self.script.get(daemon.boot_id, [])
        answer = answers.pop(0) if len(answers) > 1 else answers[0] if answers else OK
        return replace(answer, took_s=self.now() - began)

    async def update(self, change: Callable[[Snapshot], Outcome]) -> Outcome:
        outcome = change(self.snapshot)
        self.snapshot = outcome.snapshot
        assert self.supervisor is not None
        self.supervisor.observe(self.snapshot)
        return outcome

    def journal(self, event: str, outcome: Outcome, **evidence: object) -> None:
        self.events.append(event)

    def died(self, daemon: Daemon, reason: str) -> None:
        self.events.append(f"died {daemon.boot_id}")

    def unwell(self, daemon: Daemon, reason: str) -> None:
        self.events.append(f"unwell {daemon.boot_id}")

    def well_again(self, daemon: Daemon) -> None:
        self.events.append(f"well again {daemon.boot_id}")

    async def nothing_to_restore(self, failed: Daemon, reason: str) -> None:
        self.events.append(f"nothing to restore for {failed.boot_id}")

    async def rolled_back(self, outcome: Outcome, failed: Daemon, build: str, reason: str) -> None:
        self.rollbacks.append(f"{failed.boot_id}: {reason}")


def watch(world: World, *, for_s: float, failures: int = 3, then: Callable[[World], None] | None = None) -> World:
    """Let the supervisor watch for so many seconds of the fake clock."""
    settings = Settings(
        name="t",
        listen=(Address("127.0.0.1", 1),),
        observe_s=OBSERVE_S,
        health=Health(interval_s=INTERVAL_S, timeout_s=0.5, failures=failures),
    )

    async def run() -> None:
        supervisor = Supervisor(world, lambda: settings)
        world.supervisor = supervisor
        supervisor.observe(world.snapshot)
        if then:
            then(world)
        task = asyncio.ensure_future(supervisor.run())
        await asyncio.sleep(for_s)
        task.cancel()

    with asyncio.Runner(loop_factory=SkippingLoop) as runner:
        runner.run(run())
    return world


def test_three_consecutive_failures_roll_back_and_the_workspace_returns() -> None:
    world = watch(World({"v2": [OK, BAD, BAD, BAD], "v1": [OK]}), for_s=10)
    assert world.snapshot.deployment.state is State.IDLE
    assert world.snapshot.deployment.active_boot_id == "v1"
    assert world.snapshot.workspaces["/w"].boot_id == "v1"
    assert world.rollbacks == ["v2: it did not answer in time"]


def test_two_failures_and_a_success_over_and_over_never_roll_back() -> None:
    world = watch(World({"v2": [BAD, BAD, OK] * 20 + [OK], "v1": [OK]}), for_s=OBSERVE_S * 3)
    assert world.rollbacks == []
    assert world.snapshot.deployment.active_boot_id == "v2"
    assert world.snapshot.deployment.state is State.IDLE, "the window was finished"


def test_a_window_without_failures_is_finished_when_its_time_is_over_and_not_before() -> None:
    before = watch(World({}), for_s=OBSERVE_S - 1)
    assert before.snapshot.deployment.state is State.SWITCHED
    after = watch(World({}), for_s=OBSERVE_S + 1)
    assert after.snapshot.deployment.state is State.IDLE
    assert after.snapshot.daemons["v1"].draining


def test_a_window_does_not_end_while_failures_are_being_counted() -> None:
    """The last checks of the window fail: it is not over until they are a rollback, or a success."""
    almost = [OK] * int(OBSERVE_S - 1) + [BAD]
    world = watch(World({"v2": almost, "v1": [OK]}), for_s=OBSERVE_S + 5)
    assert world.snapshot.deployment.active_boot_id == "v1"


def test_a_crash_is_confirmed_within_a_moment_rather_than_three_intervals() -> None:
    world = watch(World({"v2": [OK, GONE], "v1": [OK]}), for_s=INTERVAL_S + 0.5)
    assert world.rollbacks == ["v2: it has ended"]


def test_nothing_is_rolled_back_to_a_daemon_that_does_not_pass_a_probe_now() -> None:
    world = watch(World({"v2": [BAD], "v1": [GONE]}), for_s=8)
    assert world.rollbacks == []
    assert world.snapshot.deployment.active_boot_id == "v2"
    assert world.snapshot.deployment.health_fail_streak == 3
    assert "rollback_refused" in world.events
    assert "nothing to restore for v2" in world.events
    assert world.snapshot.deployment.state is State.SWITCHED


def test_a_stored_streak_at_the_threshold_with_nobody_to_go_back_to_is_handed_on_by_a_restarted_router_too() -> None:
    world = World({"v2": [BAD], "v1": [GONE]})
    block = world.snapshot.deployment
    world.snapshot = replace(world.snapshot, deployment=replace(block, health_fail_streak=3))
    watch(world, for_s=0.2)
    assert "nothing to restore for v2" in world.events


def test_it_is_rolled_back_as_soon_as_the_previous_daemon_is_well_again() -> None:
    world = watch(World({"v2": [BAD], "v1": [BAD, BAD, OK]}), for_s=20)
    assert world.snapshot.deployment.active_boot_id == "v1"


def test_a_streak_that_an_earlier_router_stored_at_the_threshold_rolls_back_at_the_first_failure() -> None:
    world = World({"v2": [BAD], "v1": [OK]})
    block = world.snapshot.deployment
    world.snapshot = replace(world.snapshot, deployment=replace(block, health_fail_streak=3))
    watch(world, for_s=0.2)
    assert world.snapshot.deployment.active_boot_id == "v1"


def test_the_machine_sleeping_is_not_three_failures() -> None:
    """After a stall the next check comes late; even if it fails it is only repeated, and there is one, not thirty."""
    world = World({"v2": [OK, BAD, OK], "v1": [OK]})

    def stall(world: World) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SkippingLoop)

        def sleep_through() -> None:
            loop._skipped_s += 25.0

        loop.call_later(0.5, sleep_through)

    watch(world, for_s=28, failures=1, then=stall)
    assert world.snapshot.deployment.health_fail_streak == 0
    assert world.rollbacks == []
    late = [at for at, _ in world.checks]
    assert all(b - a > INTERVAL_S * 0.9 for a, b in pairwise(late)), "no burst after the stall"


def test_a_machine_that_stalls_during_a_check_is_no_failure() -> None:
    """The check began in time, and its deadline passed while the machine slept: the answer may lie there, unread."""
    world = World({"v2": [OK, BAD, OK], "v1": [OK]}, slow_s=0.2)

    def stall(world: World) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SkippingLoop)

        def sleep_through() -> None:
            loop._skipped_s += 25.0

        loop.call_later(1.3, sleep_through)  # the second check is under way

    watch(world, for_s=28, failures=1, then=stall)
    assert world.rollbacks == []
    assert world.snapshot.deployment.health_fail_streak == 0


def after_the_window() -> Snapshot:
    return must(finish_deploy(in_window(), 2))


def test_a_daemon_that_hangs_after_its_window_is_said_once_and_so_is_its_recovery() -> None:
    world = watch(World({"v2": [OK, BAD, BAD, BAD, BAD, BAD, OK]}, after_the_window()), for_s=20)
    assert world.events == ["unwell v2", "well again v2"]
    assert world.snapshot.deployment.active_boot_id == "v2"


def test_two_failures_and_a_success_after_the_window_are_not_said() -> None:
    world = watch(World({"v2": [BAD, BAD, OK] * 5 + [OK]}, after_the_window()), for_s=20)
    assert world.events == []


def test_a_daemon_that_hangs_and_then_dies_is_said_to_have_died() -> None:
    world = watch(World({"v2": [BAD] * 5 + [GONE]}, after_the_window()), for_s=7)
    assert world.events[:2] == ["unwell v2", "died v2"]


def test_what_failed_in_the_window_is_not_counted_after_it() -> None:
    world = World({"v2": [BAD, BAD, BAD, OK]}, after_the_window())

    def before(world: World) -> None:
        assert world.supervisor
        world.supervisor.observe(in_window())  # it ends with the registry's next word
        world.supervisor.observe(world.snapshot)

    watch(world, for_s=2.5, then=before)
    assert world.supervisor
    assert world.supervisor.unwell
    assert world.supervisor.unwell.failures == 3


def test_a_verdict_on_a_daemon_that_is_no_longer_active_changes_nothing() -> None:
    """The check is under way while a verb rolls back by hand: its failure belongs to nobody."""
    world = World({"v2": [BAD], "v1": [OK]}, slow_s=0.3)

    def by_hand(world: World) -> None:
        def roll() -> None:
            world.snapshot = must(rollback_active(world.snapshot, 2, "v1", reason="by hand"))
            assert world.supervisor is not None
            world.supervisor.observe(world.snapshot)

        asyncio.get_running_loop().call_later(0.1, roll)

    watch(world, for_s=5, then=by_hand)
    assert world.snapshot.deployment.active_boot_id == "v1"
    assert world.snapshot.deployment.rollback_reason == "by hand"
    assert world.snapshot.deployment.health_fail_streak == 0


@pytest.mark.parametrize("failures", [1, 2, 5])
def test_the_threshold_is_the_configured_one(failures: int) -> None:
    exactly = watch(World({"v2": [BAD] * failures + [OK], "v1": [OK]}), for_s=12, failures=failures)
    assert exactly.snapshot.deployment.active_boot_id == "v1"
    if failures > 1:
        fewer = watch(World({"v2": [BAD] * (failures - 1) + [OK], "v1": [OK]}), for_s=12, failures=failures)
        assert fewer.snapshot.deployment.active_boot_id == "v2"


@pytest.mark.parametrize("switch_ts", [-1e12, 0.0, 1e12])
def test_a_clock_that_jumped_changes_no_window_for_windows_run_on_the_routers_own(switch_ts: float) -> None:
    world = World({})
    world.snapshot = replace(world.snapshot, deployment=replace(world.snapshot.deployment, switch_ts=switch_ts))
    watch(world, for_s=OBSERVE_S - 1)
    assert world.snapshot.deployment.old_boot_id == "v1"
    watch(world, for_s=OBSERVE_S + 2 * INTERVAL_S)
    assert world.snapshot.deployment.old_boot_id == ""
    assert world.snapshot.deployment.active_boot_id == "v2"
