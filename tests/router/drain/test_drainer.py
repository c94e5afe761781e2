"""The drainer against fakes alone: what is stopped, when, and what never is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest

from fake_time import SkippingLoop
from turnout.config.settings import Address, Settings
from turnout.core.model import Daemon, Deployment, DrainCause, Snapshot, State
from turnout.core.outcome import Outcome
from turnout.errors import StateUnwritableError
from turnout.planes.plane import ConnectionInfo
from turnout.router.drain.drainer import FORGET_AGAIN_S, Drainer
from turnout.system.probes.probe import ProbeResult


@dataclass
class Scenario:
    counts: dict[str, int] = field(default_factory=dict)
    healthy: bool = True
    quiet: bool = False
    cuts: list[tuple[float, int]] = field(default_factory=list)
    keeper: bool = True
    orphans: list[str] = field(default_factory=list)
    events: list[tuple[str, str]] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    said: list[tuple[str, str]] = field(default_factory=list)
    unwritable: int = 0
    """So many writes to the registry fail."""
    snapshot: Snapshot = field(default_factory=Snapshot)
    forgets: list[float] = field(default_factory=list)

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def carried(self, boot_id: str) -> list[ConnectionInfo] | None:
        """All of them wait for an answer, unless ``quiet``."""
        return [
            ConnectionInfo(number, "", 1.0, 5, 5, answered=self.quiet, half_sent=False)
            for number in range(self.counts.get(boot_id, 0))
        ]

    def cut(self, boot_id: str, ids: Collection[int] | None = None) -> int:
        self.events.append(("cut", boot_id))
        cut = self.counts.get(boot_id, 0) if ids is None else len(ids)
        self.counts[boot_id] = self.counts.get(boot_id, 0) - cut
        self.cuts.append((self.now(), cut))
        return cut

    async def probe(self, daemon: Daemon) -> ProbeResult:
        return ProbeResult(ok=self.healthy, reason="as the test says")

    async def stop(self, boot_id: str) -> bool:
        if not self.keeper:
            await asyncio.sleep(1)
            return False
        self.events.append(("stop", boot_id))
        if boot_id in self.orphans:
            self.orphans.remove(boot_id)
        return True

    async def update(self, change: Callable[[Snapshot], Outcome]) -> Outcome:
        self.forgets.append(self.now())
        if len(self.forgets) <= self.unwritable:
            raise StateUnwritableError("no space left on device")
        outcome = change(self.snapshot)
        self.gone += self.snapshot.daemons.keys() - outcome.snapshot.daemons.keys()
        self.snapshot = outcome.snapshot
        return outcome

    async def strays(self) -> list[str]:
        return list(self.orphans)

    def daemon_event(self, event: str, boot_id: str, **evidence: object) -> None:
        self.said.append((event, boot_id))

    def stopped(self) -> list[str]:
        return [boot_id for event, boot_id in self.events if event == "stop"]


def draining(cause: DrainCause, *, owned: bool = True) -> Snapshot:
    old = Daemon("old", port=1, draining=True, drain_cause=cause, owned=owned)
    return Snapshot(
        {"old": old, "new": Daemon("new", port=2, owned=True)}, deployment=Deployment(1, active_boot_id="new")
    )


def run(
    scenario: Scenario,
    snapshot: Snapshot,
    *,
    for_s: float,
    deadline_s: float | None = 600.0,
    at: dict[float, Callable[[Drainer], None]] | None = None,
) -> Scenario:
    settings = Settings(name="t", listen=(Address("127.0.0.1", 1),), drain_deadline_s=deadline_s)

    async def go() -> None:
        drainer = Drainer(scenario.now, lambda: settings, scenario.probe, scenario, scenario, scenario)
        scenario.snapshot = snapshot
        drainer.on_snapshot(snapshot)
        for when, act in (at or {}).items():
            asyncio.get_running_loop().call_later(when, act, drainer)
        task = asyncio.ensure_future(drainer.run())
        await asyncio.sleep(for_s)
        task.cancel()

    with asyncio.Runner(loop_factory=SkippingLoop) as runner:
        runner.run(go())
    return scenario


def test_an_old_daemon_is_stopped_when_its_last_connection_is_gone_and_not_before() -> None:
    scenario = Scenario({"old": 3})

    def close_them(_: Drainer) -> None:
        assert scenario.stopped() == []
        scenario.counts["old"] = 0

    run(scenario, draining(DrainCause.REPLACED), for_s=500, at={400: close_them})
    assert scenario.stopped() == ["old"]
    assert scenario.gone == ["old"]


def test_without_a_deadline_nothing_is_ever_cut() -> None:
    scenario = run(Scenario({"old": 1}), draining(DrainCause.REPLACED), for_s=3000, deadline_s=None)
    assert scenario.events == []


def test_at_the_deadline_what_is_left_is_cut_and_then_it_is_stopped() -> None:
    scenario = run(Scenario({"old": 1}), draining(DrainCause.REPLACED), for_s=601, deadline_s=600)
    assert scenario.events[:2] == [("cut", "old"), ("stop", "old")]


def test_a_rolled_back_daemon_that_is_sick_is_cut_at_once_and_a_well_one_gets_seconds() -> None:
    sick = run(Scenario({"old": 1}, healthy=False), draining(DrainCause.FAILED), for_s=0.5)
    assert sick.events[0] == ("cut", "old")
    well = run(Scenario({"old": 1}), draining(DrainCause.FAILED), for_s=9)
    assert well.events == []
    assert run(well, draining(DrainCause.FAILED), for_s=11).stopped() == ["old"]


def test_what_the_operator_stopped_is_not_drained() -> None:
    assert run(Scenario({"old": 5}), draining(DrainCause.STOPPED), for_s=0.5).events[0] == ("stop", "old")


def test_a_daemon_that_turnout_did_not_start_is_never_stopped() -> None:
    scenario = run(Scenario(), draining(DrainCause.REPLACED, owned=False), for_s=5)
    assert scenario.stopped() == []
    assert scenario.gone == ["old"]


def test_a_stray_is_stopped_and_what_the_registry_names_is_not() -> None:
    scenario = run(Scenario(orphans=["stray"]), draining(DrainCause.NONE), for_s=3)
    assert "stray" in scenario.stopped()
    assert "new" not in scenario.stopped()


def test_the_active_daemon_is_not_drained_whatever_its_entry_says() -> None:
    snapshot = draining(DrainCause.REPLACED)
    daemons = {
        **snapshot.daemons,
        "new": replace(snapshot.daemons["new"], draining=True, drain_cause=DrainCause.STOPPED),
    }
    assert "new" not in run(Scenario(), replace(snapshot, daemons=daemons), for_s=5).stopped()


def test_without_a_keeper_stopping_waits_until_there_is_one() -> None:
    scenario = Scenario(keeper=False)

    def start_keeper(_: Drainer) -> None:
        assert scenario.gone == []
        scenario.keeper = True

    run(scenario, draining(DrainCause.REPLACED), for_s=70, at={60: start_keeper})
    assert scenario.gone == ["old"]


def test_quiet_connections_are_cut_after_the_grace_spread_over_time_and_then_it_is_stopped() -> None:
    scenario = run(Scenario({"old": 100}, quiet=True), draining(DrainCause.REPLACED), for_s=200)
    assert scenario.cuts[0][0] - scenario.cuts[-1][0] < -50, "all were cut in one instant"
    assert max(count for _, count in scenario.cuts) <= 5
    assert sum(count for _, count in scenario.cuts) == 100
    assert scenario.stopped() == ["old"]


def test_with_more_old_daemons_than_may_drain_at_once_the_oldest_is_hastened() -> None:
    old = {
        f"old{n}": Daemon(f"old{n}", port=n, draining=True, drain_cause=DrainCause.REPLACED, owned=True)
        for n in range(1, 6)
    }
    block = Deployment(1, active_boot_id="new")
    first = Snapshot({"old1": old["old1"]}, deployment=block)
    scenario = Scenario(dict.fromkeys(old, 3), quiet=True)

    def more(drainer: Drainer) -> None:
        drainer.on_snapshot(Snapshot(old, deployment=block))

    run(scenario, first, for_s=20, at={1: more})
    assert scenario.stopped() == ["old1", "old2"], "three may drain, so two of five are hastened, the oldest first"


def test_one_that_is_hastened_by_hand_loses_its_quiet_connections_at_once() -> None:
    scenario = run(Scenario({"old": 50}, quiet=True), draining(DrainCause.HASTENED), for_s=3)
    assert scenario.stopped() == ["old"]
    busy = run(Scenario({"old": 50}), draining(DrainCause.HASTENED), for_s=3)
    assert busy.events == []


def retiring(cause: DrainCause = DrainCause.RETIRED) -> Snapshot:
    """A rollout is under way, and the old daemon makes room for its successor."""
    old = Daemon("old", port=1, draining=True, drain_cause=cause, owned=True)
    block = Deployment(2, state=State.STARTING, candidate_boot_id="new", old_boot_id="old")
    return Snapshot({"old": old}, deployment=block)


def test_of_a_retired_daemon_only_the_connections_are_ended_for_its_verb_stops_it() -> None:
    assert run(Scenario({"old": 3}), retiring(), for_s=4.5).events == [], "they wait for an answer"
    scenario = run(Scenario({"old": 3}), retiring(), for_s=30)
    assert [event for event, _ in scenario.events] == ["cut"], "once, at the bound"
    assert scenario.gone == []


def test_a_retired_daemon_is_drained_once_its_connections_have_ended_or_had_their_time() -> None:
    """Its verb asks that, and not for a number of connections: some may be on their way that no count has."""
    found: dict[float, list[str]] = {}

    def look(at: float) -> Callable[[Drainer], None]:
        return lambda drainer: found.__setitem__(at, list(drainer.drained()))

    def close_them(_: Drainer) -> None:
        scenario.counts["old"] = 0

    scenario = Scenario({"old": 3})
    run(scenario, retiring(), for_s=9, at={0: look(0), 1: look(1), 2: close_them, 3: look(3)})
    assert found == {0: [], 1: [], 3: ["old"]}
    run(Scenario({"old": 3}), retiring(), for_s=9, at={4: look(4), 8: look(8)})
    assert (found[4], found[8]) == ([], ["old"])


def test_quiet_connections_of_a_retired_daemon_are_ended_without_grace_or_spread() -> None:
    scenario = run(Scenario({"old": 40}, quiet=True), retiring(), for_s=2)
    assert scenario.counts["old"] == 0
    assert scenario.stopped() == []


def test_a_retired_daemon_that_no_rollout_names_any_more_is_stopped_and_forgotten() -> None:
    def abandoned(drainer: Drainer) -> None:
        scenario.snapshot = replace(retiring(), deployment=Deployment(2))
        drainer.on_snapshot(scenario.snapshot)

    scenario = Scenario({"old": 0})
    run(scenario, retiring(), for_s=30, at={10: abandoned})
    assert scenario.stopped() == ["old"]
    assert scenario.gone == ["old"]


# -- entries that another program removed ------------------------------------------------------------------------------


def pruned(snapshot: Snapshot) -> Snapshot:
    return replace(snapshot, daemons={"new": snapshot.daemons["new"]})


@pytest.mark.parametrize("before", ["it drained", "it was active"])
def test_a_daemon_whose_entry_was_removed_keeps_its_connections_for_the_drains_grace_and_deadline(before: str) -> None:
    snapshot = draining(DrainCause.REPLACED)
    if before == "it was active":
        daemons = {**snapshot.daemons, "old": replace(snapshot.daemons["old"], draining=False)}
        snapshot = Snapshot(daemons, deployment=replace(snapshot.deployment, active_boot_id="old"))
    scenario = Scenario({"old": 3})

    def prune(drainer: Drainer) -> None:
        scenario.orphans = ["old"]
        drainer.on_snapshot(pruned(draining(DrainCause.REPLACED)))

    run(scenario, snapshot, for_s=550, deadline_s=600, at={5: prune})
    assert scenario.events == []
    scenario = Scenario({"old": 3})
    run(scenario, snapshot, for_s=620, deadline_s=600, at={5: prune})
    assert scenario.events[:2] == [("cut", "old"), ("stop", "old")]


def test_a_daemon_whose_entry_was_removed_is_stopped_when_its_last_connection_is_gone() -> None:
    scenario = Scenario({"old": 3})

    def prune(drainer: Drainer) -> None:
        scenario.orphans = ["old"]
        drainer.on_snapshot(pruned(draining(DrainCause.REPLACED)))

    def close_them(_: Drainer) -> None:
        assert scenario.stopped() == []
        scenario.counts["old"] = 0

    run(scenario, draining(DrainCause.REPLACED), for_s=100, at={5: prune, 60: close_them})
    assert scenario.stopped() == ["old"]


def test_a_drain_goes_on_when_the_entry_comes_back() -> None:
    scenario = Scenario({"old": 3})

    def prune(drainer: Drainer) -> None:
        scenario.orphans = ["old"]
        drainer.on_snapshot(pruned(draining(DrainCause.REPLACED)))

    def put_back(drainer: Drainer) -> None:
        scenario.orphans = []
        drainer.on_snapshot(draining(DrainCause.STOPPED))

    run(scenario, draining(DrainCause.REPLACED), for_s=50, at={5: prune, 10: put_back})
    assert scenario.stopped() == ["old"], "what the registry says counts again"


def test_a_stop_that_waits_for_a_keeper_is_journaled_once() -> None:
    scenario = run(Scenario(keeper=False), draining(DrainCause.REPLACED), for_s=30)
    assert scenario.said == [("stopping", "old")]


def test_an_entry_that_cannot_be_removed_now_is_removed_later() -> None:
    """The disk is full, or another writer has the lock: nothing else of the registry need change for a second try."""
    scenario = run(Scenario(unwritable=3), draining(DrainCause.REPLACED), for_s=30)
    assert scenario.gone == ["old"]
    assert scenario.said == [("stopping", "old"), ("gone", "old")]
    assert len(scenario.forgets) == 4
    assert all(after - before >= FORGET_AGAIN_S for before, after in pairwise(scenario.forgets))
