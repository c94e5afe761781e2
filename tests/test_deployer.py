"""The deployer against a world that is all fake."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from fake_time import SkippingLoop
from turnout.config import Address, Settings
from turnout.deployer import VERSION_EVERY_S, Asked, Deployer
from turnout.errors import ConfigError

WATCHED = Settings(name="t", listen=(Address("127.0.0.1", 1),), auto_deploy=True, source="/etc/turnout.toml")


@dataclass
class World:
    """Files that look as the test says, and a verb that answers as it says."""

    looks: str | None = "first"
    told: str | None = "1.0"
    answers: list[Asked] = field(default_factory=lambda: [Asked.DONE])
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

    async def deploy(self) -> Asked:
        self.asked.append(self.now())
        await asyncio.sleep(0.5)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    def say(self, event: str, boot_id: str, **evidence: object) -> None:
        self.events.append(evidence["answer"])


def play(
    world: World,
    *,
    for_s: float = 60,
    settings: Settings = WATCHED,
    at: dict[float, Callable[[World], None]] | None = None,
) -> World:
    async def run() -> None:
        task = asyncio.ensure_future(Deployer(world, lambda: settings).run())
        for when, what in (at or {}).items():
            asyncio.get_running_loop().call_later(when, what, world)
        await asyncio.sleep(for_s)
        task.cancel()

    with asyncio.Runner(loop_factory=SkippingLoop) as runner:
        runner.run(run())
    return world


def looking(looks: str | None) -> Callable[[World], None]:
    def change(world: World) -> None:
        world.looks = looks

    return change


def test_a_router_asks_once_when_it_begins_for_things_may_have_changed_before() -> None:
    assert len(play(World()).asked) == 1


def test_each_change_is_asked_for_once() -> None:
    world = play(World(), at={20: looking("second"), 40: looking("third")})
    assert len(world.asked) == 3
    assert world.events == ["done"] * 3


def test_a_file_that_is_still_being_written_is_waited_for() -> None:
    growing = {float(second): looking(f"{second} bytes") for second in range(10, 30)}
    world = play(World(), at=growing)
    assert len(world.asked) == 2
    assert world.asked[-1] - world.asked[0] > 28, "only when it was at rest"


def test_a_file_that_is_missing_for_a_moment_is_no_change() -> None:
    world = play(World(), at={20: looking(None), 25: looking("first")})
    assert len(world.asked) == 1


def test_another_verb_at_work_is_asked_again_later_and_a_failure_is_not() -> None:
    world = play(World(answers=[Asked.BUSY, Asked.BUSY, Asked.FAILED]))
    assert len(world.asked) == 3
    assert world.events == ["failed"]
    assert world.asked[2] - world.asked[1] > 4, "not in a tight loop"


def test_without_auto_deploy_or_a_file_nothing_is_asked() -> None:
    for settings in (
        msgspec.structs.replace(WATCHED, auto_deploy=False),
        msgspec.structs.replace(WATCHED, source=""),
    ):
        assert play(World(), settings=settings).asked == []


def test_a_version_that_is_told_anew_is_a_change_and_is_not_asked_for_too_often() -> None:
    def upgraded(world: World) -> None:
        world.told = "1.1"

    settings = msgspec.structs.replace(WATCHED, version_command=("app", "--version"))
    world = play(World(), settings=settings, at={35: upgraded})
    assert len(world.asked) == 2
    assert world.versions <= 60 / VERSION_EVERY_S + 1


def test_a_version_command_that_fails_for_a_moment_is_no_change() -> None:
    def breaks(world: World) -> None:
        world.told = None

    def mended(world: World) -> None:
        world.told = "1.0"

    settings = msgspec.structs.replace(WATCHED, version_command=("app", "--version"))
    assert len(play(World(), settings=settings, at={15: breaks, 35: mended}).asked) == 1
