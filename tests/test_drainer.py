"""The drainer against a fake world: what is stopped, when, and what never is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace

from fake_time import SkippingLoop
from turnout.config import Address, Settings
from turnout.core.model import Daemon, Deployment, DrainCause, Snapshot, State
from turnout.drainer import Drainer
from turnout.planes.plane import Carried


@dataclass
class World:
    counts: dict[str, int] = field(default_factory=dict)
    healthy: bool = True
    quiet: bool = False
    cuts: list[tuple[float, int]] = field(default_factory=list)
    keeper: bool = True
    orphans: list[str] = field(default_factory=list)
    events: list[tuple[str, str]] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def carried(self, boot_id: str) -> list[Carried] | None:
        """All of them wait for an answer, unless ``quiet``."""
        return [
            Carried(number, "", 1.0, 5, 5, answered=self.quiet, half_sent=False)
            for number in range(self.counts.get(boot_id, 0))
        ]

    def cut(self, boot_id: str, ids: Collection[int] | None = None) -> int:
        self.events.append(("cut", boot_id))
        cut = self.counts.get(boot_id, 0) if ids is None else len(ids)
        self.counts[boot_id] = self.counts.get(boot_id, 0) - cut
        self.cuts.append((self.now(), cut))
        return cut

    async def is_healthy(self, daemon: Daemon) -> bool:
        return self.healthy

    async def stop(self, boot_id: str) -> bool:
        if not self.keeper:
            await asyncio.sleep(1)
            return False
        self.events.append(("stop", boot_id))
        if boot_id in self.orphans:
            self.orphans.remove(boot_id)
        return True

    async def forget(self, boot_id: str) -> None:
        self.gone.append(boot_id)

    async def strays(self) -> list[str]:
        return list(self.orphans)

    def say(self, event: str, boot_id: str, **evidence: object) -> None:
        pass

    def stopped(self) -> list[str]:
        return [boot_id for event, boot_id in self.events if event == "stop"]


def draining(cause: DrainCause, *, owned: bool = True) -> Snapshot:
    old = Daemon("old", port=1, draining=True, drain_cause=cause, owned=owned)
    return Snapshot(
        {"old": old, "new": Daemon("new", port=2, owned=True)}, deployment=Deployment(1, active_boot_id="new")
    )


def run(
    world: World,
    snapshot: Snapshot,
    *,
    for_s: float,
    deadline_s: float | None = 600.0,
    at: dict[float, Callable[[Drainer], None]] | None = None,
) -> World:
    settings = Settings(name="t", listen=(Address("127.0.0.1", 1),), drain_deadline_s=deadline_s)

    async def go() -> None:
        drainer = Drainer(world, lambda: settings)
        drainer.observe(snapshot)
        for when, act in (at or {}).items():
            asyncio.get_running_loop().call_later(when, act, drainer)
        task = asyncio.ensure_future(drainer.run())
        await asyncio.sleep(for_s)
        task.cancel()

    with asyncio.Runner(loop_factory=SkippingLoop) as runner:
        runner.run(go())
    return world


def test_an_old_daemon_is_stopped_when_its_last_connection_is_gone_and_not_before() -> None:
    world = World({"old": 3})

    def close_them(_: Drainer) -> None:
        assert world.stopped() == []
        world.counts["old"] = 0

    run(world, draining(DrainCause.REPLACED), for_s=500, at={400: close_them})
    assert world.stopped() == ["old"]
    assert world.gone == ["old"]


def test_without_a_deadline_nothing_is_ever_cut() -> None:
    world = run(World({"old": 1}), draining(DrainCause.REPLACED), for_s=3000, deadline_s=None)
    assert world.events == []


def test_at_the_deadline_what_is_left_is_cut_and_then_it_is_stopped() -> None:
    world = run(World({"old": 1}), draining(DrainCause.REPLACED), for_s=601, deadline_s=600)
    assert world.events[:2] == [("cut", "old"), ("stop", "old")]


def test_a_rolled_back_daemon_that_is_sick_is_cut_at_once_and_a_well_one_gets_seconds() -> None:
    sick = run(World({"old": 1}, healthy=False), draining(DrainCause.FAILED), for_s=0.5)
    assert sick.events[0] == ("cut", "old")
    well = run(World({"old": 1}), draining(DrainCause.FAILED), for_s=9)
    assert well.events == []
    assert run(well, draining(DrainCause.FAILED), for_s=11).stopped() == ["old"]


def test_what_the_operator_stopped_is_not_drained() -> None:
    assert run(World({"old": 5}), draining(DrainCause.STOPPED), for_s=0.5).events[0] == ("stop", "old")


def test_a_daemon_that_turnout_did_not_start_is_never_stopped() -> None:
    world = run(World(), draining(DrainCause.REPLACED, owned=False), for_s=5)
    assert world.stopped() == []
    assert world.gone == ["old"]


def test_a_stray_is_stopped_and_what_the_registry_names_is_not() -> None:
    world = run(World(orphans=["stray"]), draining(DrainCause.NONE), for_s=3)
    assert "stray" in world.stopped()
    assert "new" not in world.stopped()


def test_the_active_daemon_is_not_drained_whatever_its_entry_says() -> None:
    snapshot = draining(DrainCause.REPLACED)
    daemons = {
        **snapshot.daemons,
        "new": replace(snapshot.daemons["new"], draining=True, drain_cause=DrainCause.STOPPED),
    }
    assert "new" not in run(World(), replace(snapshot, daemons=daemons), for_s=5).stopped()


def test_without_a_keeper_stopping_waits_until_there_is_one() -> None:
    world = World(keeper=False)

    def start_keeper(_: Drainer) -> None:
        assert world.gone == []
        world.keeper = True

    run(world, draining(DrainCause.REPLACED), for_s=70, at={60: start_keeper})
    assert world.gone == ["old"]


def test_quiet_connections_are_cut_after_the_grace_spread_over_time_and_then_it_is_stopped() -> None:
    world = run(World({"old": 100}, quiet=True), draining(DrainCause.REPLACED), for_s=200)
    assert world.cuts[0][0] - world.cuts[-1][0] < -50, "all were cut in one instant"
    assert max(count for _, count in world.cuts) <= 5
    assert sum(count for _, count in world.cuts) == 100
    assert world.stopped() == ["old"]


def test_with_more_old_daemons_than_may_drain_at_once_the_oldest_is_hastened() -> None:
    old = {
        f"old{n}": Daemon(f"old{n}", port=n, draining=True, drain_cause=DrainCause.REPLACED, owned=True)
        for n in range(1, 6)
    }
    block = Deployment(1, active_boot_id="new")
    first = Snapshot({"old1": old["old1"]}, deployment=block)
    world = World(dict.fromkeys(old, 3), quiet=True)

    def more(drainer: Drainer) -> None:
        drainer.observe(Snapshot(old, deployment=block))

    run(world, first, for_s=20, at={1: more})
    assert world.stopped() == ["old1", "old2"], "three may drain, so two of five are hastened, the oldest first"


def test_one_that_is_hastened_by_hand_loses_its_quiet_connections_at_once() -> None:
    world = run(World({"old": 50}, quiet=True), draining(DrainCause.HASTENED), for_s=3)
    assert world.stopped() == ["old"]
    busy = run(World({"old": 50}), draining(DrainCause.HASTENED), for_s=3)
    assert busy.events == []


def retiring(cause: DrainCause = DrainCause.RETIRED) -> Snapshot:
    """A rollout is under way, and the old daemon makes room for its successor."""
    old = Daemon("old", port=1, draining=True, drain_cause=cause, owned=True)
    block = Deployment(2, state=State.STARTING, candidate_boot_id="new", old_boot_id="old")
    return Snapshot({"old": old}, deployment=block)


def test_of_a_retired_daemon_only_the_connections_are_ended_for_its_verb_stops_it() -> None:
    assert run(World({"old": 3}), retiring(), for_s=4.5).events == [], "they wait for an answer"
    world = run(World({"old": 3}), retiring(), for_s=30)
    assert [event for event, _ in world.events] == ["cut"], "once, at the bound"
    assert world.gone == []


def test_quiet_connections_of_a_retired_daemon_are_ended_without_grace_or_spread() -> None:
    world = run(World({"old": 40}, quiet=True), retiring(), for_s=2)
    assert world.counts["old"] == 0
    assert world.stopped() == []


def test_a_retired_daemon_that_no_rollout_names_any_more_is_stopped_and_forgotten() -> None:
    def abandoned(drainer: Drainer) -> None:
        snapshot = retiring()
        drainer.observe(replace(snapshot, deployment=Deployment(2)))

    world = run(World({"old": 0}), retiring(), for_s=30, at={10: abandoned})
    assert world.stopped() == ["old"]
    assert world.gone == ["old"]
