"""The monitor against fakes alone: its own clock, a registry in memory, probes that answer as told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise

import msgspec
import pytest

from fake_time import SkippingLoop
from turnout.config.settings import Address, Health, Settings
from turnout.core.deployment import begin_deploy, finish_deploy, mark_candidate_healthy, rollback_active, switch_active
from turnout.core.membership import register_daemon
from turnout.core.model import Daemon, Identity, Snapshot, State, Workspace
from turnout.core.outcome import Outcome
from turnout.router.health.monitor import WINDOW_OVERTIME_S, HealthMonitor
from turnout.system.probes.probe import ProbeResult

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
class Scenario:
    """Time passes only when the monitor sleeps; ``script`` gives what each check of a boot says."""

    script: dict[str, list[ProbeResult]]
    snapshot: Snapshot = field(default_factory=in_window)
    events: list[str] = field(default_factory=list)
    rollbacks: list[str] = field(default_factory=list)
    checks: list[tuple[float, str]] = field(default_factory=list)
    slow_s: float = 0.0
    cold_rollback: bool = True
    """Whether the previous build can be started where the previous daemon cannot serve."""
    monitor: HealthMonitor | None = None

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def probe(self, daemon: Daemon) -> ProbeResult:
        self.checks.append((self.now(), daemon.boot_id))
        began = self.now()
        if self.slow_s:
            await asyncio.sleep(self.slow_s)
        answers = self.script.get(daemon.boot_id, [])
        answer = answers.pop(0) if len(answers) > 1 else answers[0] if answers else OK
        return msgspec.structs.replace(answer, took_s=self.now() - began)

    async def update(self, change: Callable[[Snapshot], Outcome]) -> Outcome:
        outcome = change(self.snapshot)
        self.snapshot = outcome.snapshot
        assert self.monitor is not None
        self.monitor.on_snapshot(self.snapshot)
        return outcome

    def deployment_event(self, event: str, outcome: Outcome, **evidence: object) -> None:
        self.events.append(event)

    def on_exit(self, daemon: Daemon, reason: str) -> None:
        self.events.append(f"died {daemon.boot_id}")

    def on_hang(self, daemon: Daemon, reason: str) -> None:
        self.events.append(f"unwell {daemon.boot_id}")

    def on_recovery(self, daemon: Daemon) -> None:
        self.events.append(f"well again {daemon.boot_id}")

    async def on_nothing_to_restore(self, failed: Daemon, reason: str) -> bool:
        self.events.append(f"nothing to restore for {failed.boot_id}")
        return self.cold_rollback

    async def on_rollback(self, outcome: Outcome, failed: Daemon, build: str, reason: str) -> None:
        self.rollbacks.append(f"{failed.boot_id}: {reason}")


def watch(
    scenario: Scenario,
    *,
    for_s: float,
    failures: int = 3,
    then: Callable[[Scenario], None] | None = None,
    interval_s: float = INTERVAL_S,
    observe_s: float = OBSERVE_S,
) -> Scenario:
    """Let the monitor watch for so many seconds of the fake clock."""
    settings = Settings(
        name="t",
        listen=(Address("127.0.0.1", 1),),
        observe_s=observe_s,
        health=Health(interval_s=interval_s, timeout_s=0.5, failures=failures),
    )

    async def run() -> None:
        monitor = HealthMonitor(scenario.now, lambda: settings, scenario.probe, scenario, scenario, scenario)
        scenario.monitor = monitor
        monitor.on_snapshot(scenario.snapshot)
        if then:
            then(scenario)
        task = asyncio.ensure_future(monitor.run())
        await asyncio.sleep(for_s)
        task.cancel()

    with asyncio.Runner(loop_factory=SkippingLoop) as runner:
        runner.run(run())
    return scenario


def test_three_consecutive_failures_roll_back_and_the_workspace_returns() -> None:
    scenario = watch(Scenario({"v2": [OK, BAD, BAD, BAD], "v1": [OK]}), for_s=10)
    assert scenario.snapshot.deployment.state is State.IDLE
    assert scenario.snapshot.deployment.active_boot_id == "v1"
    assert scenario.snapshot.workspaces["/w"].boot_id == "v1"
    assert scenario.rollbacks == ["v2: it did not answer in time"]


def test_two_failures_and_a_success_over_and_over_never_roll_back() -> None:
    scenario = watch(Scenario({"v2": [BAD, BAD, OK] * 20 + [OK], "v1": [OK]}), for_s=OBSERVE_S * 3)
    assert scenario.rollbacks == []
    assert scenario.snapshot.deployment.active_boot_id == "v2"
    assert scenario.snapshot.deployment.state is State.IDLE, "the window was finished"


def test_a_window_without_failures_is_finished_when_its_time_is_over_and_not_before() -> None:
    before = watch(Scenario({}), for_s=OBSERVE_S - 1)
    assert before.snapshot.deployment.state is State.SWITCHED
    after = watch(Scenario({}), for_s=OBSERVE_S + 1)
    assert after.snapshot.deployment.state is State.IDLE
    assert after.snapshot.daemons["v1"].draining


def test_a_window_does_not_end_while_failures_are_being_counted() -> None:
    """The last checks of the window fail: it is not over until they are a rollback, or a success."""
    almost = [OK] * int(OBSERVE_S - 1) + [BAD]
    scenario = watch(Scenario({"v2": almost, "v1": [OK]}), for_s=OBSERVE_S + 5)
    assert scenario.snapshot.deployment.active_boot_id == "v1"


def test_a_crash_is_confirmed_within_a_moment_rather_than_three_intervals() -> None:
    scenario = watch(Scenario({"v2": [OK, GONE], "v1": [OK]}), for_s=INTERVAL_S + 0.5)
    assert scenario.rollbacks == ["v2: it has ended"]


def test_nothing_is_rolled_back_to_a_daemon_that_does_not_pass_a_probe_now() -> None:
    scenario = watch(Scenario({"v2": [BAD], "v1": [GONE]}), for_s=8)
    assert scenario.rollbacks == []
    assert scenario.snapshot.deployment.active_boot_id == "v2"
    assert scenario.snapshot.deployment.health_fail_streak == 3
    assert "rollback_refused" in scenario.events
    assert "nothing to restore for v2" in scenario.events
    assert scenario.snapshot.deployment.state is State.SWITCHED


def test_a_stored_streak_at_the_threshold_with_nobody_to_go_back_to_is_handed_on_by_a_restarted_router_too() -> None:
    scenario = Scenario({"v2": [BAD], "v1": [GONE]})
    block = scenario.snapshot.deployment
    scenario.snapshot = replace(scenario.snapshot, deployment=replace(block, health_fail_streak=3))
    watch(scenario, for_s=0.2)
    assert "nothing to restore for v2" in scenario.events


def test_it_is_rolled_back_as_soon_as_the_previous_daemon_is_well_again() -> None:
    scenario = watch(Scenario({"v2": [BAD], "v1": [BAD, BAD, OK]}), for_s=20)
    assert scenario.snapshot.deployment.active_boot_id == "v1"


def test_a_streak_that_an_earlier_router_stored_at_the_threshold_rolls_back_at_the_first_failure() -> None:
    scenario = Scenario({"v2": [BAD], "v1": [OK]})
    block = scenario.snapshot.deployment
    scenario.snapshot = replace(scenario.snapshot, deployment=replace(block, health_fail_streak=3))
    watch(scenario, for_s=0.2)
    assert scenario.snapshot.deployment.active_boot_id == "v1"


def test_the_machine_sleeping_is_not_three_failures() -> None:
    """After a stall the next check comes late; even if it fails it is only repeated, and there is one, not thirty."""
    scenario = Scenario({"v2": [OK, BAD, OK], "v1": [OK]})

    def stall(scenario: Scenario) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SkippingLoop)

        def sleep_through() -> None:
            loop.now += 25.0

        loop.call_later(0.5, sleep_through)

    watch(scenario, for_s=28, failures=1, then=stall)
    assert scenario.snapshot.deployment.health_fail_streak == 0
    assert scenario.rollbacks == []
    late = [at for at, _ in scenario.checks]
    assert all(b - a > INTERVAL_S * 0.9 for a, b in pairwise(late)), "no burst after the stall"


def test_a_machine_that_stalls_during_a_check_is_no_failure() -> None:
    """The check began in time, and its deadline passed while the machine slept: the answer may lie there, unread."""
    scenario = Scenario({"v2": [OK, BAD, OK], "v1": [OK]}, slow_s=0.2)

    def stall(scenario: Scenario) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SkippingLoop)

        def sleep_through() -> None:
            loop.now += 25.0

        loop.call_later(1.3, sleep_through)  # the second check is under way

    watch(scenario, for_s=28, failures=1, then=stall)
    assert scenario.rollbacks == []
    assert scenario.snapshot.deployment.health_fail_streak == 0


def after_the_window() -> Snapshot:
    return must(finish_deploy(in_window(), 2))


def test_a_daemon_that_hangs_after_its_window_is_said_once_and_so_is_its_recovery() -> None:
    scenario = watch(Scenario({"v2": [OK, BAD, BAD, BAD, BAD, BAD, OK]}, after_the_window()), for_s=20)
    assert scenario.events == ["unwell v2", "well again v2"]
    assert scenario.snapshot.deployment.active_boot_id == "v2"


def test_two_failures_and_a_success_after_the_window_are_not_said() -> None:
    scenario = watch(Scenario({"v2": [BAD, BAD, OK] * 5 + [OK]}, after_the_window()), for_s=20)
    assert scenario.events == []


def test_a_daemon_that_hangs_and_then_dies_is_said_to_have_died() -> None:
    scenario = watch(Scenario({"v2": [BAD] * 5 + [GONE]}, after_the_window()), for_s=7)
    assert scenario.events[:2] == ["unwell v2", "died v2"]


def test_what_failed_in_the_window_is_not_counted_after_it() -> None:
    scenario = Scenario({"v2": [BAD, BAD, BAD, OK]}, after_the_window())

    def before(scenario: Scenario) -> None:
        assert scenario.monitor
        scenario.monitor.on_snapshot(in_window())  # it ends with the registry's next word
        scenario.monitor.on_snapshot(scenario.snapshot)

    watch(scenario, for_s=2.5, then=before)
    assert scenario.monitor
    assert scenario.monitor.unwell
    assert scenario.monitor.unwell.failures == 3


def test_a_verdict_on_a_daemon_that_is_no_longer_active_changes_nothing() -> None:
    """The check is under way while a verb rolls back by hand: its failure belongs to nobody."""
    scenario = Scenario({"v2": [BAD], "v1": [OK]}, slow_s=0.3)

    def by_hand(scenario: Scenario) -> None:
        def roll() -> None:
            scenario.snapshot = must(rollback_active(scenario.snapshot, 2, "v1", reason="by hand"))
            assert scenario.monitor is not None
            scenario.monitor.on_snapshot(scenario.snapshot)

        asyncio.get_running_loop().call_later(0.1, roll)

    watch(scenario, for_s=5, then=by_hand)
    assert scenario.snapshot.deployment.active_boot_id == "v1"
    assert scenario.snapshot.deployment.rollback_reason == "by hand"
    assert scenario.snapshot.deployment.health_fail_streak == 0


@pytest.mark.parametrize("failures", [1, 2, 5])
def test_the_threshold_is_the_configured_one(failures: int) -> None:
    exactly = watch(Scenario({"v2": [BAD] * failures + [OK], "v1": [OK]}), for_s=12, failures=failures)
    assert exactly.snapshot.deployment.active_boot_id == "v1"
    if failures > 1:
        fewer = watch(Scenario({"v2": [BAD] * (failures - 1) + [OK], "v1": [OK]}), for_s=12, failures=failures)
        assert fewer.snapshot.deployment.active_boot_id == "v2"


@pytest.mark.parametrize("switch_ts", [-1e12, 0.0, 1e12])
def test_a_clock_that_jumped_changes_no_window_for_windows_run_on_the_routers_own(switch_ts: float) -> None:
    scenario = Scenario({})
    block = replace(scenario.snapshot.deployment, switch_ts=switch_ts)
    scenario.snapshot = replace(scenario.snapshot, deployment=block)
    watch(scenario, for_s=OBSERVE_S - 1)
    assert scenario.snapshot.deployment.old_boot_id == "v1"
    watch(scenario, for_s=OBSERVE_S + 2 * INTERVAL_S)
    assert scenario.snapshot.deployment.old_boot_id == ""
    assert scenario.snapshot.deployment.active_boot_id == "v2"


# -- a window is passed by checks that succeeded, the last of them at its end ------------------------------------------


def stalls(at_s: float, for_s: float) -> Callable[[Scenario], None]:
    """The router, or the machine, stands still for so long."""

    def begin(_: Scenario) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SkippingLoop)

        def skip() -> None:
            loop.now += for_s

        loop.call_later(at_s, skip)

    return begin


def test_a_window_over_whose_end_the_router_stalled_is_not_passed_by_a_daemon_that_hangs() -> None:
    """Three checks after the stall can still fail, and the previous daemon serves again."""
    scenario = watch(Scenario({"v2": [OK, BAD], "v1": [OK]}), for_s=OBSERVE_S + 20, then=stalls(0.5, OBSERVE_S + 5))
    assert scenario.snapshot.deployment.active_boot_id == "v1"
    assert scenario.rollbacks == ["v2: it did not answer in time"]
    assert "finish" not in scenario.events


def test_a_window_over_whose_end_the_router_stalled_is_passed_by_a_check_after_the_stall() -> None:
    scenario = watch(Scenario({}), for_s=OBSERVE_S + 10, then=stalls(0.5, OBSERVE_S + 5))
    assert scenario.snapshot.deployment.state is State.IDLE
    assert scenario.events == ["finish"]
    assert scenario.checks[-1][0] - scenario.checks[0][0] >= OBSERVE_S


def test_a_window_shorter_than_the_interval_has_a_check_at_its_end() -> None:
    before = watch(Scenario({}), for_s=3.9, interval_s=30.0, observe_s=4.0)
    assert before.snapshot.deployment.state is State.SWITCHED
    scenario = watch(Scenario({}), for_s=4.5, interval_s=30.0, observe_s=4.0)
    assert scenario.snapshot.deployment.state is State.IDLE
    first, last = (at for at, _ in scenario.checks)
    assert last - first == pytest.approx(4.0, abs=0.5)


def test_a_daemon_that_hangs_in_a_window_shorter_than_the_interval_is_rolled_back() -> None:
    scenario = watch(Scenario({"v2": [OK, BAD], "v1": [OK]}), for_s=70, interval_s=30.0, observe_s=4.0)
    assert scenario.snapshot.deployment.active_boot_id == "v1"


def test_a_window_is_not_passed_by_a_check_that_began_before_its_end() -> None:
    """The answer was read after a stall: it says how the daemon was before that."""
    scenario = Scenario({"v2": [OK, OK, BAD], "v1": [OK]}, slow_s=0.4)
    watch(scenario, for_s=OBSERVE_S + 20, then=stalls(1.6, OBSERVE_S))
    assert scenario.snapshot.deployment.active_boot_id == "v1"
    assert "finish" not in scenario.events


@pytest.mark.parametrize("observe_s", [0.0, 0.01])
def test_a_window_of_no_length_is_passed_by_a_check_too(observe_s: float) -> None:
    scenario = watch(Scenario({"v2": [BAD], "v1": [OK]}), for_s=5, observe_s=observe_s)
    assert scenario.snapshot.deployment.active_boot_id == "v1"
    well = watch(Scenario({}), for_s=0.5, observe_s=observe_s)
    assert well.snapshot.deployment.state is State.IDLE


def test_late_failures_after_the_windows_end_come_an_interval_apart() -> None:
    """A machine that is always slow excuses one late failure, not every one, and nothing is checked in a hurry."""
    scenario = watch(Scenario({"v2": [OK, BAD], "v1": [OK]}, slow_s=4.0), for_s=OBSERVE_S + 60)
    assert scenario.snapshot.deployment.active_boot_id == "v1", "a window on a slow machine ends, too"
    of_v2 = [at for at, boot_id in scenario.checks if boot_id == "v2"]
    assert all(b - a > INTERVAL_S * 0.9 for a, b in pairwise(of_v2))


# -- a window ends always ---------------------------------------------------------------------------------------------


def test_a_window_in_which_both_daemons_are_gone_ends_and_says_that_it_failed() -> None:
    scenario = watch(Scenario({"v2": [OK, GONE], "v1": [GONE]}, cold_rollback=False), for_s=5)
    block = scenario.snapshot.deployment
    assert (block.state, block.active_boot_id) == (State.IDLE, "v2")
    assert "it has ended" in block.rollback_reason
    assert "the previous daemon cannot serve" in block.rollback_reason
    assert scenario.events.count("window_failed") == 1
    assert "finish" not in scenario.events


def test_a_window_whose_previous_daemon_was_pruned_is_failed_and_not_passed() -> None:
    scenario = Scenario({"v2": [BAD]}, cold_rollback=False)
    block = replace(scenario.snapshot.deployment, old_boot_id="")
    scenario.snapshot = Snapshot({"v2": scenario.snapshot.daemons["v2"]}, {}, block)
    watch(scenario, for_s=OBSERVE_S + 5)
    assert scenario.snapshot.deployment.state is State.IDLE
    assert scenario.snapshot.deployment.rollback_reason
    assert "finish" not in scenario.events


def test_a_window_in_which_both_daemons_hang_ends_a_while_after_its_time() -> None:
    script = {"v2": [BAD], "v1": [BAD]}
    before = watch(Scenario(dict(script), cold_rollback=False), for_s=OBSERVE_S + WINDOW_OVERTIME_S - 2)
    assert before.snapshot.deployment.state is State.SWITCHED, "the previous daemon may recover"
    after = watch(Scenario(dict(script), cold_rollback=False), for_s=OBSERVE_S + WINDOW_OVERTIME_S + 2)
    assert after.snapshot.deployment.state is State.IDLE
    assert after.snapshot.deployment.rollback_reason


def test_a_window_goes_on_while_the_previous_build_is_being_started() -> None:
    scenario = watch(Scenario({"v2": [GONE], "v1": [GONE]}), for_s=OBSERVE_S + WINDOW_OVERTIME_S + 20)
    assert scenario.snapshot.deployment.state is State.SWITCHED


def test_failures_that_change_nothing_are_not_journaled() -> None:
    """At the threshold, with nothing to restore, the journal gets no line for each check."""
    scenario = watch(Scenario({"v2": [GONE], "v1": [BAD]}), for_s=20)
    journaled = [event for event in scenario.events if not event.startswith("nothing to restore")]
    assert journaled == ["health_failure"] * 3 + ["rollback_refused"]


def test_a_process_that_has_ended_is_checked_in_a_hurry_only_while_that_can_roll_back() -> None:
    at_threshold = watch(Scenario({"v2": [GONE], "v1": [BAD]}), for_s=20)
    assert len([1 for _, boot_id in at_threshold.checks if boot_id == "v2"]) < 30
    outside = watch(Scenario({"v2": [GONE]}, after_the_window()), for_s=20)
    assert len(outside.checks) < 30


def test_news_of_an_end_that_comes_during_a_check_is_followed_by_another_check_at_once() -> None:
    """The check in flight may have passed a moment before the end, and clients wait for the restart."""
    scenario = Scenario({"v2": [OK, GONE]}, snapshot=must(finish_deploy(in_window(), 2)), slow_s=0.4)

    def ends_soon(at: Scenario) -> None:
        assert at.monitor
        asyncio.get_running_loop().call_later(0.2, at.monitor.check_now)

    watch(scenario, for_s=0.9, then=ends_soon)
    (first, _), (second, _) = scenario.checks
    assert round(second - first, 3) == 0.4
    assert scenario.events == ["died v2"]
