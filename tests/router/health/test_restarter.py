"""The restarter against fakes alone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise

from fake_time import SkippingLoop
from turnout.core.backoff import NOT_BEGUN_DELAYS_S, RESTART_DELAYS_S, STEADY_AFTER_S, same_cause
from turnout.core.model import Daemon, Deployment, Desired, Snapshot
from turnout.errors import StateUnwritableError
from turnout.router.health.restarter import NotBegun, Restarter, Started

MOST = len(RESTART_DELAYS_S)


def serving(boot: str, *, desired: Desired = Desired.RUNNING, owned: bool = True) -> Snapshot:
    daemon = Daemon(boot, port=1000, owned=owned)
    return Snapshot({boot: daemon}, {}, Deployment(generation=1, active_boot_id=boot, desired=desired))


@dataclass
class Scenario:
    """Starts as it is told; a daemon that was started lives for ``lives_s`` seconds (None: for ever)."""

    answers: list[Started | NotBegun] = field(default_factory=lambda: [Started.YES])
    lives_s: float | None = None
    restarter: Restarter | None = None
    starts: list[float] = field(default_factory=list)
    given_up: list[str] = field(default_factory=list)
    hung: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    told: list[dict[str, object]] = field(default_factory=list)
    snapshot: Snapshot = field(default_factory=lambda: serving("v0"))
    unwritable: int = 0
    """So many writes to the registry fail."""

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def start(self, hung: str) -> Started | NotBegun:
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
        self.restarter.on_snapshot(snapshot)

    def dies(self) -> None:
        assert self.restarter
        assert self.snapshot.active
        self.restarter.on_exit(self.snapshot.active, "it has ended")

    async def give_up(self, boot_id: str, reason: str) -> None:
        if self.unwritable:
            self.unwritable -= 1
            raise StateUnwritableError("no space left on device")
        self.given_up.append(reason)

    def daemon_event(self, event: str, boot_id: str, **evidence: object) -> None:
        self.events.append(event)
        self.told.append(evidence)


async def _keep_running(restarter: Restarter) -> None:
    """As :class:`turnout.router.service_runtime.ServiceRuntime` does."""
    while True:
        with contextlib.suppress(StateUnwritableError):
            await restarter.run()
        await asyncio.sleep(1.0)


def play(scenario: Scenario, *, for_s: float, then: Callable[[Scenario], None] = Scenario.dies) -> Scenario:
    async def run() -> None:
        scenario.restarter = Restarter(scenario.now, scenario, scenario.start, scenario.give_up, lambda: None)
        scenario.see(scenario.snapshot)
        task = asyncio.ensure_future(_keep_running(scenario.restarter))
        then(scenario)
        await asyncio.sleep(for_s)
        task.cancel()

    with asyncio.Runner(loop_factory=SkippingLoop) as runner:
        runner.run(run())
    return scenario


def test_an_active_daemon_that_dies_long_after_its_window_is_started_again_at_once() -> None:
    scenario = play(Scenario(), for_s=100)
    assert len(scenario.starts) == 1
    assert scenario.events == ["died"]
    assert scenario.restarter
    assert scenario.restarter.pending is None


def test_a_crash_loop_is_restarted_with_back_off_and_ends() -> None:
    scenario = play(Scenario(lives_s=0.5), for_s=10_000)
    assert len(scenario.starts) == MOST
    pauses = [round(later - earlier) for earlier, later in pairwise(scenario.starts)]
    assert pauses == sorted(pauses)
    assert pauses[-1] >= 60
    assert len(scenario.given_up) == 1
    assert f"{MOST} restarts" in scenario.given_up[0]


def test_one_whose_candidates_never_become_healthy_ends_too() -> None:
    scenario = play(Scenario(answers=[Started.NO]), for_s=10_000)
    assert len(scenario.starts) == MOST
    assert len(scenario.given_up) == 1


FULL = NotBegun("cannot write /home/log-20261130T201508-1a2b: No space left on device")


def test_what_cannot_begin_is_no_crash_and_is_tried_for_as_long_as_that_lasts() -> None:
    scenario = play(Scenario(answers=[FULL]), for_s=7200)
    assert scenario.given_up == []
    pauses = [later - earlier for earlier, later in pairwise(scenario.starts)]
    assert len(scenario.starts) > 200
    assert [round(pause) for pause in pauses[: len(NOT_BEGUN_DELAYS_S)]] == [round(s) for s in NOT_BEGUN_DELAYS_S]
    assert max(pauses) <= NOT_BEGUN_DELAYS_S[-1] + 1
    assert scenario.restarter
    assert scenario.restarter.pending
    assert scenario.restarter.pending.attempt == 1, "it counts for nothing"
    assert scenario.restarter.pending.blocked
    assert scenario.restarter.pending.blocked.reason == FULL.reason
    assert scenario.events == ["died", "blocked"], "said once, not at each attempt"


def test_the_daemon_is_back_once_it_can_begin_and_the_history_has_for_how_long_it_could_not() -> None:
    scenario = play(Scenario(answers=[*[FULL] * 20, Started.YES]), for_s=3600)
    assert scenario.restarter
    assert scenario.restarter.pending is None
    assert scenario.events == ["died", "blocked", "unblocked"]
    assert scenario.told[-1]["evidence"] == FULL.reason
    assert 300 < float(str(scenario.told[-1]["after_s"])) < 600


def test_another_reason_why_it_cannot_begin_is_said_anew_and_another_name_in_it_is_not() -> None:
    same = NotBegun(FULL.reason.replace("201508-1a2b", "201609-ffff"))
    other = NotBegun("no such command: server")
    scenario = play(Scenario(answers=[FULL, same, other, other, FULL]), for_s=60)
    assert scenario.events == ["died", "blocked", "blocked", "blocked"]
    assert [told["evidence"] for told in scenario.told[1:]] == [FULL.reason, other.reason, FULL.reason]


def test_what_could_not_begin_in_between_takes_no_attempt_from_a_crash_loop() -> None:
    answers: list[Started | NotBegun] = [answer for _ in range(MOST) for answer in (FULL, Started.NO)]
    scenario = play(Scenario(answers=[*answers, Started.NO]), for_s=10_000)
    assert len(scenario.given_up) == 1
    assert len(scenario.starts) == 2 * MOST


def test_one_that_hangs_and_cannot_be_replaced_for_now_is_replaced_later() -> None:
    scenario = play(Scenario(answers=[FULL, FULL, Started.YES]), for_s=100, then=hangs)
    assert scenario.hung == ["v0"] * 3
    assert scenario.events == ["replacing", "blocked", "unblocked"]


def test_two_reasons_are_one_if_only_numbers_and_names_with_numbers_differ() -> None:
    assert same_cause("pid 12 has the lock for 3.5 s", "pid 9913 has the lock for 8 s")
    assert not same_cause("no such command: redis-server", "no such command: valkey-server")
    assert not same_cause("cannot write /a: No space left on device", "cannot write /a: Read-only file system")


def test_one_that_lived_for_a_while_begins_anew_and_is_never_given_up() -> None:
    scenario = play(Scenario(lives_s=STEADY_AFTER_S + 1), for_s=3600)
    assert len(scenario.starts) > 2 * MOST
    assert scenario.given_up == []


def test_a_verb_at_work_is_waited_for_and_is_no_attempt() -> None:
    scenario = play(Scenario(answers=[*[Started.BUSY] * 50, Started.YES]), for_s=200)
    assert len(scenario.starts) == 1
    assert scenario.given_up == []


def test_what_somebody_else_started_meanwhile_is_left_alone() -> None:
    def dies_and_is_replaced(scenario: Scenario) -> None:
        scenario.dies()
        scenario.see(serving("another"))

    scenario = play(Scenario(), for_s=100, then=dies_and_is_replaced)
    assert scenario.starts == []


def test_a_service_that_is_to_be_stopped_is_not_started() -> None:
    def dies_and_is_stopped(scenario: Scenario) -> None:
        scenario.dies()
        scenario.see(serving("v0", desired=Desired.STOPPED))

    assert play(Scenario(), for_s=100, then=dies_and_is_stopped).starts == []
    assert play(Scenario(snapshot=serving("v0", desired=Desired.STOPPED)), for_s=100).starts == []


def test_a_daemon_that_turnout_did_not_start_is_not_started_by_it() -> None:
    assert play(Scenario(snapshot=serving("theirs", owned=False)), for_s=100).starts == []


def hangs(scenario: Scenario) -> None:
    assert scenario.restarter
    assert scenario.snapshot.active
    scenario.restarter.on_hang(scenario.snapshot.active, "it does not answer")


def test_one_that_hangs_is_replaced_and_is_named_to_the_verb() -> None:
    scenario = play(Scenario(), for_s=100, then=hangs)
    assert scenario.hung == ["v0"]
    assert scenario.events == ["replacing"]


def test_one_that_recovers_while_its_replacement_waits_is_kept() -> None:
    def hangs_and_recovers(scenario: Scenario) -> None:
        hangs(scenario)
        assert scenario.restarter
        assert scenario.snapshot.active
        scenario.restarter.on_recovery(scenario.snapshot.active)

    assert play(Scenario(), for_s=100, then=hangs_and_recovers).starts == []


def test_one_that_hangs_and_dies_before_it_is_replaced_is_started_as_a_dead_one_is() -> None:
    def hangs_and_dies(scenario: Scenario) -> None:
        hangs(scenario)
        scenario.dies()

    scenario = play(Scenario(), for_s=100, then=hangs_and_dies)
    assert scenario.hung == [""]
    assert scenario.events == ["replacing", "died"]


def test_one_that_cannot_be_replaced_is_kept_and_said_and_still_started_when_it_dies() -> None:
    def fails_to_be_replaced(scenario: Scenario) -> None:
        hangs(scenario)
        asyncio.get_running_loop().call_later(1000, scenario.dies)

    answers: list[Started | NotBegun] = [Started.BUSY, *[Started.NO] * MOST, Started.YES]
    scenario = play(Scenario(answers=answers), for_s=1100, then=fails_to_be_replaced)
    assert scenario.given_up == [], "it is not taken out of service"
    assert scenario.events == ["replacing", "crash_loop", "died"]
    assert len(scenario.starts) == MOST + 1


def test_giving_up_that_cannot_be_written_now_is_written_later() -> None:
    """Else the dead daemon stays active, its clients are held, and no restart is due any more."""
    scenario = Scenario([Started.NO], unwritable=2)
    play(scenario, for_s=sum(RESTART_DELAYS_S) + 60)
    assert len(scenario.starts) == MOST
    assert len(scenario.given_up) == 1
    assert scenario.restarter
    assert scenario.restarter.pending is None


@dataclass
class FailsOnce(Scenario):
    """Its first attempt meets an error that it was not made for: no thread is to be had for a write."""

    failed: bool = False

    async def start(self, hung: str) -> Started | NotBegun:
        if not self.failed:
            self.failed = True
            raise StateUnwritableError("no thread can be started")
        return await super().start(hung)


def test_an_attempt_that_ends_in_an_error_is_made_again() -> None:
    scenario = play(FailsOnce(), for_s=10)
    assert len(scenario.starts) == 1
    assert scenario.restarter
    assert scenario.restarter.pending is None
