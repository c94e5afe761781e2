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

import msgspec

from turnout.config.build_stamp import told_version, trace
from turnout.config.settings import Settings
from turnout.core.model import Desired
from turnout.errors import TurnoutError
from turnout.router.event_log import DaemonEvents
from turnout.router.followed_service import FollowedService
from turnout.router.verb_runner import VerbRunner

LOOK_S: Final = 1.0
VERSION_EVERY_S: Final = 10.0
BUSY_AGAIN_S: Final = 5.0


class DeployAnswer(Enum):
    """How the verb answered."""

    DONE = auto()  # deployed, or there was no need
    FAILED = auto()  # the candidate, or the configuration: not tried again until something changes
    BUSY = auto()  # another verb is at work, a rollout is under way or observed, or the machine lacks room


class _Actions(Protocol):
    """:class:`DeployActions`, as far as the deployer calls them."""

    async def trace(self) -> str | None: ...
    async def version(self) -> str: ...
    async def deploy(self) -> DeployAnswer: ...


class AutoDeployer:
    """Watches for one service. Its one task belongs to the caller of :meth:`run`."""

    def __init__(
        self, clock: Callable[[], float], settings: Callable[[], Settings], events: DaemonEvents, actions: _Actions
    ) -> None:
        self._clock = clock
        self._events = events
        self._actions = actions
        self._settings = settings
        self._seen: tuple[str, str] | None = None
        self._asked: tuple[str, str] | None = None
        self._version = ""
        self._version_at = -VERSION_EVERY_S

    async def run(self) -> None:
        """Look once a second, until cancelled."""
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
        answer = await self._actions.deploy()
        if answer is DeployAnswer.BUSY:
            return True
        self._asked = seen
        self._events.daemon_event("auto_deploy", "", answer=answer.name.lower())
        return False

    async def _see(self) -> tuple[str, str] | None:
        trace = await self._actions.trace()
        if trace is None:
            return None
        if self._settings().version_command and self._clock() - self._version_at >= VERSION_EVERY_S:
            self._version_at = self._clock()
            try:
                self._version = await self._actions.version()
            except TurnoutError:  # a package that is being installed has none for a moment
                return None
        return trace, self._version


class DeployActions(msgspec.Struct, frozen=True):
    """Looks at the files and the version of one service, and runs ``turnout up``. Owns nothing."""

    service: FollowedService
    verbs: VerbRunner

    async def trace(self) -> str | None:
        """The state of the files; None while one is missing, and where the service is stopped."""
        if self.service.registry.snapshot.deployment.desired is Desired.STOPPED:
            return None
        settings = self.service.live.settings
        return await self.service.loop.run_in_executor(self.service.files.configuration, lambda: trace(settings))

    async def version(self) -> str:
        """The output of version_command. Raises TurnoutError."""
        service = self.service.live.service
        return await self.service.loop.run_in_executor(
            self.service.files.configuration, lambda: told_version(service.settings, service.environ_of())
        )

    async def deploy(self) -> DeployAnswer:
        result = await self.verbs.run("up", "--from-router")
        if result.busy or result.blames_machine:
            return DeployAnswer.BUSY
        return DeployAnswer.FAILED if result.code else DeployAnswer.DONE
