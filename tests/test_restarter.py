"""The restarter against a world that is all fake."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise

from fake_time import SkippingLoop
from turnout.core.model import Daemon, Deployment, Desired, Snapshot
from turnout.core.policy import RESTART_DELAYS_S, STEADY_AFTER_S
from turnout.restarter import Restarter, Started

MOST = len(RESTART_DELAYS_S)


def serving(boot: str, *, desired: Desired = Desired.RUNNING, owned: bool = True) -> Snapshot:
    daemon = Daemon(boot, port=1000, owned=owned)
    return Snapshot({boot: daemon}, {}, Deployment(generation=1, active_boot_id=boot, desired=desired))


@dataclass
class World:
    """Starts as it is told; a daemon that was started lives for ``lives_s`` seconds (None: for ever)."""

    answers: list[Started] = field(default_factory=lambda: [Started.YES])
    lives_s: float | None = None
    restarter: Restarter | None = None
    starts: list[float] = field(default_factory=list)
    given_up: list[str] = field(default_factory=list)
    hung: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    snapshot: Snapshot = field(default_factory=lambda: serving("v0"))

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def start(self, hung: str) -> Started:
        self.hung.append(hung)
        await asyncio.sleep(0.2)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer is not Started.BUSY:
            self.starts.append(self.now())
        if answer is Started.YES:
            self.see(serving(f"v{len(self.starts)}"))
            if self.lives_s is not None:
                asyncio.get_running_loop().call_later(self.lives_s, self.dies)
        elif (
            answer is Started.NO and not hung
        ):  # the verb cleared the dead one away and its candidate never became healthy
            self.see(replace(self.snapshot, deployment=replace(self.snapshot.deployment, active_boot_id="")))
        return answer

    def see(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        assert self.restarter
        self.restarter.observe(snapshot)

    def dies(self) -> None:
        assert self.restarter
        assert self.snapshot.active
        self.restarter.died(self.snapshot.active, "it has ended")

    async def give_up(self, boot_id: str, reason: str) -> None:
        self.given_up.append(reason)

    def restart_changed(self) -> None:
        pass

    def say(self, event: str, boot_id: str, **evidence: object) -> None:
        self.events.append(event)


def play(world: World, *, for_s: float, then: Callable[[World], None] = World.dies) -> World:
    async def run() -> None:
        world.restarter = Restarter(world)
        world.see(world.snapshot)
        task = asyncio.ensure_future(world.restarter.run())
        then(world)
        await asyncio.sleep(for_s)
        task.cancel()

    with asyncio.Runner(loop_factory=SkippingLoop) as runner:
        runner.run(run())
    return world


def test_an_active_daemon_that_dies_long_after_its_window_is_started_again_at_once() -> None:
    world = play(World(), for_s=100)
    assert len(world.starts) == 1
    assert world.events == ["died"]
    assert world.restarter
    assert world.restarter.due is None


def test_a_crash_loop_is_restarted_with_back_off_and_ends() -> None:
    world = play(World(lives_s=0.5), for_s=10_000)
    assert len(world.starts) == MOST
    pauses = [round(later - earlier) for earlier, later in pairwise(world.starts)]
    assert pauses == sorted(pauses)
    assert pauses[-1] >= 60
    assert len(world.given_up) == 1
    assert f"{MOST} restarts" in world.given_up[0]


def test_one_that_cannot_even_be_started_ends_too() -> None:
    world = play(World(answers=[Started.NO]), for_s=10_000)
    assert len(world.starts) == MOST
    assert len(world.given_up) == 1


def test_one_that_lived_for_a_while_begins_anew_and_is_never_given_up() -> None:
    world = play(World(lives_s=STEADY_AFTER_S + 1), for_s=3600)
    assert len(world.starts) > 2 * MOST
    assert world.given_up == []


def test_a_verb_at_work_is_waited_for_and_is_no_attempt() -> None:
    world = play(World(answers=[Started.BUSY] * 50 + [Started.YES]), for_s=200)
    assert len(world.starts) == 1
    assert world.given_up == []


def test_what_somebody_else_started_meanwhile_is_left_alone() -> None:
    def dies_and_is_replaced(world: World) -> None:
        world.dies()
        world.see(serving("another"))

    world = play(World(), for_s=100, then=dies_and_is_replaced)
    assert world.starts == []


def test_a_service_that_is_to_be_stopped_is_not_started() -> None:
    def dies_and_is_stopped(world: World) -> None:
        world.dies()
        world.see(serving("v0", desired=Desired.STOPPED))

    assert play(World(), for_s=100, then=dies_and_is_stopped).starts == []
    assert play(World(snapshot=serving("v0", desired=Desired.STOPPED)), for_s=100).starts == []


def test_a_daemon_that_turnout_did_not_start_is_not_started_by_it() -> None:
    assert play(World(snapshot=serving("theirs", owned=False)), for_s=100).starts == []


def hangs(world: World) -> None:
    assert world.restarter
    assert world.snapshot.active
    world.restarter.hung(world.snapshot.active, "it does not answer")


def test_one_that_hangs_is_replaced_and_is_named_to_the_verb() -> None:
    world = play(World(), for_s=100, then=hangs)
    assert world.hung == ["v0"]
    assert world.events == ["replacing"]


def test_one_that_recovers_while_its_replacement_waits_is_kept() -> None:
    def hangs_and_recovers(world: World) -> None:
        hangs(world)
        assert world.restarter
        assert world.snapshot.active
        world.restarter.recovered(world.snapshot.active)

    assert play(World(), for_s=100, then=hangs_and_recovers).starts == []


def test_one_that_hangs_and_dies_before_it_is_replaced_is_started_as_a_dead_one_is() -> None:
    def hangs_and_dies(world: World) -> None:
        hangs(world)
        world.dies()

    world = play(World(), for_s=100, then=hangs_and_dies)
    assert world.hung == [""]
    assert world.events == ["replacing", "died"]


def test_one_that_cannot_be_replaced_is_kept_and_said_and_still_started_when_it_dies() -> None:
    def fails_to_be_replaced(world: World) -> None:
        hangs(world)
        asyncio.get_running_loop().call_later(1000, world.dies)

    answers = [Started.BUSY, *[Started.NO] * MOST, Started.YES]
    world = play(World(answers=answers), for_s=1100, then=fails_to_be_replaced)
    assert world.given_up == [], "it is not taken out of service"
    assert world.events == ["replacing", "crash_loop", "died"]
    assert len(world.starts) == MOST + 1
