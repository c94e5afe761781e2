"""Notices that there may be a new build, and has it deployed: ``auto_deploy = true``.

Runs in the router. It watches the configuration file that the service was brought up from (settings.json names it),
the watched files, and what version_command tells. Whether a build is deployed is decided by ``turnout up --automatic``,
in a process of its own, under the lifecycle lock; here it is only found out when that is worth asking.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import Enum, auto
from typing import Final, Protocol

from turnout.config import Settings
from turnout.errors import TurnoutError

LOOK_S: Final = 1.0
VERSION_EVERY_S: Final = 10.0
BUSY_AGAIN_S: Final = 5.0


class Asked(Enum):
    """How the verb answered."""

    DONE = auto()  # deployed, or there was no need
    FAILED = auto()  # the candidate, or the configuration: not tried again until something changes
    BUSY = auto()  # another verb is at work, or a rollout is under way or observed


class World(Protocol):
    """What the deployer needs of the router, and what a test gives it instead."""

    def now(self) -> float: ...
    async def trace(self) -> str | None:
        """What the files look like; None while one is missing."""
        ...

    async def version(self) -> str:
        """What version_command tells. Raises TurnoutError."""
        ...

    async def deploy(self) -> Asked: ...
    def say(self, event: str, boot_id: str, **evidence: object) -> None: ...


class Deployer:
    """Watches for one service. Its one task belongs to whoever runs :meth:`run`."""

    def __init__(self, world: World, settings: Callable[[], Settings]) -> None:
        self._world = world
        self._settings = settings
        self._seen: tuple[str, str] | None = None
        self._asked: tuple[str, str] | None = None
        self._version = ""
        self._version_at = -VERSION_EVERY_S

    async def run(self) -> None:
        """Look once a second, for ever."""
        while True:
            settings = self._settings()
            busy = settings.auto_deploy and bool(settings.source) and await self._look()
            await asyncio.sleep(BUSY_AGAIN_S if busy else LOOK_S)

    async def _look(self) -> bool:
        """Ask where something has changed and is at rest again; True: it is to be asked again a little later."""
        seen = await self._see()
        # seen twice: a file that grows between two looks is still being written
        before, self._seen = self._seen, seen
        if seen is None or seen != before or seen == self._asked:
            return False
        answer = await self._world.deploy()
        if answer is Asked.BUSY:
            return True
        self._asked = seen
        self._world.say("auto_deploy", "", answer=answer.name.lower())
        return False

    async def _see(self) -> tuple[str, str] | None:
        trace = await self._world.trace()
        if trace is None:
            return None
        if self._settings().version_command and self._world.now() - self._version_at >= VERSION_EVERY_S:
            self._version_at = self._world.now()
            try:
                self._version = await self._world.version()
            except TurnoutError:  # a package that is being installed has none for a moment
                return None
        return trace, self._version
