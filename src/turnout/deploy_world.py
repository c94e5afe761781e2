"""What the deployer needs of the router: looks at files, the version command and the verb, none of them on the loop."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor

from turnout.automatic import run_verb
from turnout.build_stamp import told_version, trace
from turnout.core.model import Desired
from turnout.deployer import Asked
from turnout.errors import ConflictError, NotRunningError, TimedOutError
from turnout.following import Following
from turnout.live_settings import LiveSettings
from turnout.system.home import Home
from turnout.telling import Telling


class DeployWorld:
    """The world of one service's deployer. Owns nothing.

    Args:
        loop: the router's.
        executor: where files are looked at.
        home: the state directory.
        live: the service and its settings.
        following: the registry.
        telling: log and journal.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        executor: Executor,
        home: Home,
        live: LiveSettings,
        following: Following,
        telling: Telling,
    ) -> None:
        self._loop = loop
        self._executor = executor
        self._home = home
        self._live = live
        self._following = following
        self._telling = telling

    def now(self) -> float:
        return self._loop.time()

    async def trace(self) -> str | None:
        if self._following.snapshot.deployment.desired is Desired.STOPPED:
            return None  # it is looked at when it runs again
        settings = self._live.settings
        return await self._loop.run_in_executor(self._executor, lambda: trace(settings))

    async def version(self) -> str:
        settings = self._live.settings
        return await self._loop.run_in_executor(self._executor, lambda: told_version(settings))

    async def deploy(self) -> Asked:
        settings = self._live.settings
        within_s = settings.hold_timeout_s + settings.stop_grace_s + 2 * settings.start_timeout_s
        code = await run_verb(self._home, "up", settings.name, "--from-router", within_s=within_s)
        if code in {ConflictError.exit_code, NotRunningError.exit_code, TimedOutError.exit_code}:
            return Asked.BUSY
        return Asked.FAILED if code else Asked.DONE

    def say(self, event: str, boot_id: str, **evidence: object) -> None:
        self._telling.say(event, boot_id, **evidence)
