"""What the drainer needs of the router: what connections a daemon has, and how they and it are ended."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from concurrent.futures import Executor
from typing import Final

from turnout.core.membership import forget_daemon
from turnout.core.model import Daemon, DrainCause
from turnout.errors import TurnoutError
from turnout.following import Following
from turnout.keeper_link import KeeperLink
from turnout.live_settings import LiveSettings
from turnout.planes.plane import Carried, Plane
from turnout.system.probe import ProbeResult
from turnout.system.sockets import established_to
from turnout.system.spawn_record import read_records
from turnout.telling import Telling

FAILED_GRACE_S: Final = 5.0


class DrainWorld:
    """The world of one service's drainer. Owns nothing.

    Args:
        loop: the router's.
        executor: where files are read.
        live: the service and its settings.
        following: the registry.
        telling: log and journal.
        plane: what carries the connections.
        keeper: stops daemons, and reaches a router that leaves.
        probe: whether a daemon is well.
        located: the daemon as it can be reached now.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        executor: Executor,
        live: LiveSettings,
        following: Following,
        telling: Telling,
        plane: Plane,
        keeper: KeeperLink,
        probe: Callable[[Daemon], Awaitable[ProbeResult]],
        located: Callable[[Daemon], Daemon],
    ) -> None:
        self._loop = loop
        self._executor = executor
        self._live = live
        self._following = following
        self._telling = telling
        self._plane = plane
        self._keeper = keeper
        self._probe = probe
        self._located = located

    def now(self) -> float:
        return self._loop.time()

    def carried(self, boot_id: str) -> Sequence[Carried] | None:
        """Ours; None where we have none left and a router that leaves still has some, which only it can tell apart."""
        own = self._plane.carried(boot_id)
        return own if own or own is None or self.elsewhere(boot_id) == 0 else None

    @property
    def _nobody_leaves(self) -> bool:
        """The keeper says so; before it has said anything there may be a router that leaves."""
        return self._keeper.leaving is not None and not self._keeper.leaving

    def elsewhere(self, boot_id: str) -> int | None:
        """Connections of that daemon that a leaving router carries: those that the kernel knows of, without ours.

        None: it does not tell.
        """
        daemon = self._following.snapshot.daemons.get(boot_id)
        if self._nobody_leaves or daemon is None:
            return 0
        try:
            source = self._located(daemon).source
            return max(0, established_to(daemon.port, source=source) - self._plane.relayed(boot_id))
        except OSError:
            return None

    def cut(self, boot_id: str, ids: Collection[int] | None = None) -> int:
        if ids is None and not self._nobody_leaves:
            self._keeper.tell({"op": "cut", "service": self._live.service.name, "boot_id": boot_id})
        return self._plane.cut(boot_id, ids)

    async def is_healthy(self, daemon: Daemon) -> bool:
        return (await self._probe(daemon)).ok

    async def stop(self, boot_id: str) -> bool:
        settings = self._live.service.settings
        daemon = self._following.snapshot.daemons.get(boot_id)
        failed = daemon is None or daemon.drain_cause is DrainCause.FAILED
        grace_s = min(settings.stop_grace_s, FAILED_GRACE_S) if failed else settings.stop_grace_s
        gone = await self._keeper.stop(
            self._live.service.name, boot_id, stop_signal=settings.stop_signal, grace_s=grace_s
        )
        if not gone:
            await asyncio.sleep(1.0)  # until the next `up` has started a keeper
        return gone

    async def forget(self, boot_id: str) -> None:
        await self._following.update(lambda snap: forget_daemon(snap, boot_id))

    async def strays(self) -> list[str]:
        """Running processes of ours that the registry knows nothing of: their verb died before it could say.

        A candidate is named in the registry before it is started, so what has a record is looked at first and the
        registry after it: whatever is not in there then is not on its way either.
        """

        def find() -> list[str]:
            records = read_records(self._live.service.home.records)
            running = [boot_id for boot_id, record in records.items() if record.ended is None]
            if not running:
                return []
            snapshot = self._live.service.registry.read().snapshot
            known = set(snapshot.daemons) | snapshot.deployment.named
            return [boot_id for boot_id in running if boot_id not in known]

        try:
            return await self._loop.run_in_executor(self._executor, find)
        except TurnoutError:
            return []

    def say(self, event: str, boot_id: str, **evidence: object) -> None:
        self._telling.say(event, boot_id, **evidence)
