"""The connections of former daemons, and how they and the daemons are ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import Final

import msgspec

from turnout.core.model import Daemon, DrainCause
from turnout.errors import TurnoutError
from turnout.planes.plane import ConnectionInfo, Plane
from turnout.router.followed_service import FollowedService
from turnout.router.keeper_link import KeeperLink
from turnout.system.net.sockets import established_to
from turnout.system.spawn_record import read_records

FAILED_GRACE_S: Final = 5.0


class DrainActions(msgspec.Struct, frozen=True):
    """Counts and ends the connections of one service's former daemons, and has the daemons stopped. Owns nothing.

    ``located`` answers a daemon with the source address that reaches it now.
    """

    service: FollowedService
    plane: Plane
    keeper: KeeperLink
    located: Callable[[Daemon], Daemon]

    def carried(self, boot_id: str) -> Sequence[ConnectionInfo] | None:
        """This router's connections; None where it has none, and a draining router has some, which it cannot list."""
        own = self.plane.open_connections(boot_id)
        return own if own or own is None or self.elsewhere(boot_id) == 0 else None

    @property
    def _no_router_drains(self) -> bool:
        """Whether the keeper has named no router that drains; until it names any or none there may be one."""
        return self.keeper.draining is not None and not self.keeper.draining

    def elsewhere(self, boot_id: str) -> int | None:
        """How many connections of that daemon a draining router has: the kernel's count without this router's.

        None: the kernel does not tell.
        """
        daemon = self.service.registry.snapshot.daemons.get(boot_id)
        if self._no_router_drains or daemon is None:
            return 0
        try:
            source = self.located(daemon).source
            if source:  # only a router of 0.1 comes from there; what others relay is seen as a client's
                return established_to(daemon.port, source=source)
            return max(0, established_to(daemon.port) - self.plane.relayed(boot_id))
        except OSError:
            return None

    def cut(self, boot_id: str, ids: Collection[int] | None = None) -> int:
        if ids is None and not self._no_router_drains:
            self.keeper.send({"op": "cut", "service": self.service.name, "boot_id": boot_id})
        return self.plane.cut(boot_id, ids)

    async def stop(self, boot_id: str) -> bool:
        settings = self.service.live.settings
        daemon = self.service.registry.snapshot.daemons.get(boot_id)
        failed = daemon is None or daemon.drain_cause is DrainCause.FAILED
        grace_s = min(settings.stop_grace_s, FAILED_GRACE_S) if failed else settings.stop_grace_s
        stop_signal = settings.stop_signal
        gone = await self.keeper.stop(self.service.name, boot_id, stop_signal=stop_signal, grace_s=grace_s)
        if not gone:
            await asyncio.sleep(1.0)  # until the next `up` has started a keeper
        return gone

    async def strays(self) -> list[str]:
        """The boots that have processes, and that the registry does not know: their verb died before it wrote them.

        A candidate is named in the registry before it is started, so what has a record is looked at first and the
        registry after it: whatever is not in there then is not on its way either.
        """

        def find() -> list[str]:
            records = read_records(self.service.live.service.home.records)
            running = [boot_id for boot_id, record in records.items() if record.ended is None or record.has_remains]
            if not running:
                return []
            snapshot = self.service.live.service.registry.read().snapshot
            known = set(snapshot.daemons) | snapshot.deployment.named
            return [boot_id for boot_id in running if boot_id not in known]

        try:
            return await self.service.loop.run_in_executor(self.service.files.writing, find)
        except (TurnoutError, OSError):
            return []
