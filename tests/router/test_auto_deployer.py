"""The auto_deployer against fakes alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from fake_time import SkippingLoop
from turnout.config.settings import Address, Settings
from turnout.errors import ConfigError
from turnout.router.auto_deployer import VERSION_EVERY_S, AutoDeployer, DeployAnswer

WATCHED = Settings(name="t", listen=(Address("127.0.0.1", 1),), auto_deploy=True, source="/etc/turnout.toml")


@dataclass
class Scenario:
    """Files that look as the test says, and a verb that answers as it says."""

    looks: str | None = "first"
    told: str | None = "1.0"
    answers: list[DeployAnswer] = field(default_factory=lambda: [DeployAnswer.DONE])
    asked: list[float] = field(default_factory=list)
    versions: int = 0
    events: list[object] = field(default_factory=list)

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def trace(self) -> str | None:
        return self.looks

    async def version(self) -> str:
        self.versions += 1
        if self.told is None:
            raise ConfigError("version_command: it is being installed")
        return self.told

    async def deploy(self) -> DeployAnswer:
        self.asked.append(self.now())
        await asyncio.sleep(0.5)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    def daemon_event(self, event: str, boot_id: str, **evidence: object) -> None:
        self.events.append(evidence["answer"])


def play(
    scenario: Scenario,
    *,
    for_s: float = 60,
    settings: Settings = WATCHED,
    at: dict[float, Callable[[Scenario], None]] | None = None,
) -> Scenario:
    async def run() -> None:
        task = asyncio.ensure_future(AutoDeployer(scenario.now, lambda: settings, scenario, scenario).run())
        for when, what in (at or {}).items():
            asyncio.get_running_loop().call_later(when, what, scenario)
        await asyncio.sleep(for_s)
        task.cancel()

    with asyncio.Runner(loop_factory=SkippingLoop) as runner:
        runner.run(run())
    return scenario


def looking(looks: str | None) -> Callable[[Scenario], None]:
    def change(scenario: Scenario) -> None:
        scenario.looks = looks

    return change


def test_a_router_asks_once_when_it_begins_for_things_may_have_changed_before() -> None:
    assert len(play(Scenario()).asked) == 1


def test_each_change_is_asked_for_once() -> None:
    scenario = play(Scenario(), at={20: looking("second"), 40: looking("third")})
    assert len(scenario.asked) == 3
    assert scenario.events == ["done"] * 3


def test_a_file_that_is_still_being_written_is_waited_for() -> None:
    growing = {float(second): looking(f"{second} bytes") for second in range(10, 30)}
    scenario = play(Scenario(), at=growing)
    assert len(scenario.asked) == 2
    assert scenario.asked[-1] - scenario.asked[0] > 28, "only when it was at rest"


def test_a_file_that_is_missing_for_a_moment_is_no_change() -> None:
    scenario = play(Scenario(), at={20: looking(None), 25: looking("first")})
    assert len(scenario.asked) == 1


def test_another_verb_at_work_is_asked_again_later_and_a_failure_is_not() -> None:
    scenario = play(Scenario(answers=[DeployAnswer.BUSY, DeployAnswer.BUSY, DeployAnswer.FAILED]))
    assert len(scenario.asked) == 3
    assert scenario.events == ["failed"]
    assert scenario.asked[2] - scenario.asked[1] > 4, "not in a tight loop"


def test_without_auto_deploy_or_a_file_nothing_is_asked() -> None:
    for settings in (
        msgspec.structs.replace(WATCHED, auto_deploy=False),
        msgspec.structs.replace(WATCHED, source=""),
    ):
        assert play(Scenario(), settings=settings).asked == []


def test_a_version_that_is_told_anew_is_a_change_and_is_not_asked_for_too_often() -> None:
    def upgraded(scenario: Scenario) -> None:
        scenario.told = "1.1"

    settings = msgspec.structs.replace(WATCHED, version_command=("app", "--version"))
    scenario = play(Scenario(), settings=settings, at={35: upgraded})
    assert len(scenario.asked) == 2
    assert scenario.versions <= 60 / VERSION_EVERY_S + 1


def test_a_version_command_that_fails_for_a_moment_is_no_change() -> None:
    def breaks(scenario: Scenario) -> None:
        scenario.told = None

    def mended(scenario: Scenario) -> None:
        scenario.told = "1.0"

    settings = msgspec.structs.replace(WATCHED, version_command=("app", "--version"))
    assert len(play(Scenario(), settings=settings, at={15: breaks, 35: mended}).asked) == 1
