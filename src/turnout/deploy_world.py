"""What the deployer needs of the router: looks at files, the version command and the verb, none of them on the loop."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from typing import Protocol

from turnout.automatic import run_verb
from turnout.build_stamp import told_version, trace
from turnout.core.model import Desired, Snapshot
from turnout.deployer import Asked
from turnout.errors import ConflictError, NotRunningError, TimedOutError
from turnout.service import Service
from turnout.system.home import Home


class Host(Protocol):
    """The service inside the router, as it is now."""

    service: Service
    snapshot: Snapshot

    def say(self, event: str, boot_id: str, **evidence: object) -> None: ...


class DeployWorld:
    """The world of one service's deployer. Owns nothing.

    Args:
        loop: the router's.
        executor: where files are looked at.
        home: the state directory.
        host: the service.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, executor: Executor, home: Home, host: Host) -> None:
        self._loop = loop
        self._executor = executor
        self._home = home
        self._host = host

    def now(self) -> float:
        return self._loop.time()

    async def trace(self) -> str | None:
        if self._host.snapshot.deployment.desired is Desired.STOPPED:
            return None  # it is looked at when it runs again
        settings = self._host.service.settings
        return await self._loop.run_in_executor(self._executor, lambda: trace(settings))

    async def version(self) -> str:
        settings = self._host.service.settings
        return await self._loop.run_in_executor(self._executor, lambda: told_version(settings))

    async def deploy(self) -> Asked:
        settings = self._host.service.settings
        within_s = settings.hold_timeout_s + settings.stop_grace_s + 2 * settings.start_timeout_s
        code = await run_verb(self._home, "up", settings.name, "--from-router", within_s=within_s)
        if code in {ConflictError.exit_code, NotRunningError.exit_code, TimedOutError.exit_code}:
            return Asked.BUSY
        return Asked.FAILED if code else Asked.DONE

    def say(self, event: str, boot_id: str, **evidence: object) -> None:
        self._host.say(event, boot_id, **evidence)
