"""One service as its router follows it, for all parts of its runtime."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from turnout.router.event_log import EventLog
from turnout.router.follow.file_threads import FileThreads
from turnout.router.follow.registry import RegistryFollower
from turnout.router.follow.settings import SettingsFollower


class FollowedService(msgspec.Struct, frozen=True):
    """The settings, the registry, the threads and the event log of one service. Owns nothing."""

    loop: asyncio.AbstractEventLoop
    files: FileThreads
    live: SettingsFollower
    registry: RegistryFollower
    events: EventLog

    @property
    def name(self) -> str:
        return self.live.service.name

    async def write_file(self, write: Callable[[], None]) -> None:
        """Write a file of the service in the thread for that; a router that drains waits until it is written."""
        with self.registry.uninterrupted():
            await self.loop.run_in_executor(self.files.writing, write)
