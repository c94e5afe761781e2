"""The cold rollback against fakes alone: when it is tried, how often, and when it is over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from fake_time import SkippingLoop
from turnout.core.backoff import RESTART_DELAYS_S
from turnout.core.model import Daemon, Deployment, Snapshot, State
from turnout.router.health.cold_rollback import ColdRollback
from turnout.router.health.restarter import Started

V1 = Daemon("v1", port=1, owned=True, build="one")
V2 = Daemon("v2", port=2, owned=True, build="two")


def window(streak: int = 3) -> Snapshot:
    block = Deployment(2, State.SWITCHED, "v2", old_boot_id="v1", health_fail_streak=streak)
    return Snapshot({"v1": V1, "v2": V2}, deployment=block)


def rolled_back() -> Snapshot:
    v3 = Daemon("v3", port=3, owned=True, build="one")
    return Snapshot({"v3": v3}, deployment=Deployment(3, State.IDLE, "v3"))


@dataclass
class Scenario:
    """The verb answers as told; where it succeeds the registry moves on."""

    answers: list[Started]
    tries: list[float] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    cold: ColdRollback | None = None

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def roll_back(self) -> Started:
        await asyncio.sleep(0.2)
        self.tries.append(self.now())
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer is Started.YES:
            assert self.cold
            self.cold.on_snapshot(rolled_back())
        return answer

    def daemon_event(self, event: str, boot_id: str, **evidence: object) -> None:
        self.events.append(event)


def play(scenario: Scenario, *, for_s: float, then: Callable[[ColdRollback], None] | None = None) -> Scenario:
    """The failures are complete; the check says so once a second, as the monitor does."""

    async def run() -> None:
        cold = scenario.cold = ColdRollback(scenario.now, scenario, scenario.roll_back)
        cold.on_snapshot(window())
        task = asyncio.ensure_future(cold.run())
        for second in range(int(for_s)):
            if second == 1 and then:
                then(cold)
            if second == 0 or (not then and scenario.answers != [Started.YES]):
                cold.needed(window(), V2, "it has ended; v1 too")
            await asyncio.sleep(1)
        task.cancel()

    with asyncio.Runner(loop_factory=SkippingLoop) as runner:
        runner.run(run())
    return scenario


def test_it_is_begun_at_once_and_once() -> None:
    scenario = play(Scenario([Started.YES]), for_s=100)
    assert len(scenario.tries) == 1
    assert scenario.events == ["cold_rollback"]
    assert scenario.cold
    assert scenario.cold.pending is None


def test_a_verb_at_work_is_waited_for() -> None:
    scenario = play(Scenario([Started.BUSY, Started.BUSY, Started.YES]), for_s=3)
    assert len(scenario.tries) == 3


def test_one_that_cannot_even_be_begun_is_given_up_and_never_flaps() -> None:
    scenario = play(Scenario([Started.NO]), for_s=3000)
    assert len(scenario.tries) == len(RESTART_DELAYS_S)
    assert scenario.events.count("rollback_given_up") == 1


def test_a_success_or_another_rollout_meanwhile_ends_the_tries() -> None:
    healthy_again = play(Scenario([Started.NO]), for_s=1000, then=lambda cold: cold.on_snapshot(window(streak=0)))
    assert len(healthy_again.tries) <= 2
    superseded = play(Scenario([Started.NO]), for_s=1000, then=lambda cold: cold.on_snapshot(rolled_back()))
    assert len(superseded.tries) <= 2
