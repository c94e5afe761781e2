"""One service inside the router: its plane and listeners, and the tasks that follow, decide and drain."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any, Final

from turnout.core.model import Desired, Snapshot
from turnout.core.rollout_times import RolloutTimes
from turnout.deploy_world import DeployWorld
from turnout.deployer import Deployer
from turnout.drain_world import DrainWorld
from turnout.drainer import Drainer
from turnout.errors import TurnoutError
from turnout.following import Following
from turnout.keeper_link import KeeperLink
from turnout.leaving import Leaving
from turnout.live_settings import LiveSettings
from turnout.planes.attention import Attention
from turnout.planes.chooser import let_go
from turnout.planes.pins import Pins
from turnout.planes.plane import Plane
from turnout.pointing import Pointing
from turnout.service import policy
from turnout.service_report import ServiceReport
from turnout.sharing import Sharing
from turnout.supervision import Supervision
from turnout.system.control import Message
from turnout.system.home import Home
from turnout.telling import Telling
from turnout.troubles import Troubles

TROUBLES_S: Final = 1.0
log = logging.getLogger("turnout.router")


class Served:
    """Owns the plane, the listeners and the tasks of one service; the loop and the executors belong to the router."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        executor: Executor,
        scribe: Executor,
        home: Home,
        name: str,
        plane: Plane,
        plane_reason: str,
        keeper: KeeperLink,
        attention: Attention,
        pins: Pins | None,
        group: Sharing,
    ) -> None:
        self._loop = loop
        self.plane = plane
        self._pins = pins
        self.group = group
        self.sockets: list[socket.socket] = []
        self._leads = asyncio.Event()
        self._leaves = asyncio.Event()
        self._rests = asyncio.Event()
        self._leaving: Leaving | None = None
        self._times = RolloutTimes()
        self._troubles = Troubles()
        self._troubles_at = 0.0
        self._plane_trouble = ""
        live = self.live = LiveSettings(home.service(name), plane.name, self._settings_changed)
        # until the registry is read, nobody is turned away: a router that follows a dead one finds clients waiting
        plane.point_at(None, patience_s=live.settings.hold_timeout_s)
        following = self.following = Following(loop, executor, live, self, attention)
        self._pointing = Pointing(plane, live, following, group.source_of, group.is_joining)
        telling = Telling(scribe, live, following)
        self.supervision = Supervision(
            loop, executor, home, live, following, self._pointing, telling, restart_changed=self._point
        )
        drain_world = DrainWorld(
            loop,
            executor,
            live,
            following,
            telling,
            plane,
            keeper,
            probe=self.supervision.probe,
            located=self._pointing.located,
        )
        self.drainer = Drainer(drain_world, lambda: live.settings)
        self.deployer = Deployer(DeployWorld(loop, executor, home, live, following, telling), lambda: live.settings)
        self.report = ServiceReport(
            loop,
            plane,
            plane_reason,
            live,
            following,
            self.supervision,
            self.drainer,
            drain_world.elsewhere,
            self._troubles,
            self._times,
        )

    async def run(self) -> None:
        """Follow the registry; between :meth:`lead` and :meth:`rest` also decide; until cancelled."""
        supervision = self.supervision
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.following.run())
                await self._leads.wait()
                deciding = [
                    group.create_task(self._keep_running(supervision.supervisor.run, "supervisor")),
                    group.create_task(self._keep_running(self.drainer.run, "drainer")),
                    group.create_task(self._keep_running(supervision.restarter.run, "restarter")),
                    group.create_task(self._keep_running(self.deployer.run, "deployer")),
                    group.create_task(self._keep_running(supervision.cold_rollback.run, "cold rollback")),
                    group.create_task(self._keep_running(supervision.watch_owner, "owner watch")),
                ]
                await self._leaves.wait()
                await self.following.idle()
                for task in deciding:
                    task.cancel()
                self._leads.clear()
                self._rests.set()
        finally:
            self._rests.set()
            self._close()

    def take(self, sockets: Sequence[socket.socket], told: Message) -> None:
        """Accept on these and on no other listeners, now or once this router leads; they are owned here.

        Args:
            sockets: at a shared address there are several; one that is left out then was shut down by the keeper, and
                the plane has noticed.
            told: what the keeper says of them.
        """
        before = {_inode(sock): sock for sock in self.sockets}
        wanted = {_inode(sock): sock for sock in sockets}
        addresses = {sock.getsockname()[:2] for sock in sockets}
        self.group.took(told)
        self.sockets = [before.get(inode, sock) for inode, sock in wanted.items()]
        for inode, sock in before.items():
            if inode not in wanted:
                if sock.getsockname()[:2] not in addresses:
                    self.plane.remove_listener(sock.getsockname()[:2])
                sock.close()
        for inode, sock in wanted.items():
            if inode in before:
                sock.close()  # another descriptor of the same listener
            elif self._leads.is_set():
                self.plane.add_listener(sock)
        if self.ready:
            self._point()  # a daemon may have another place now

    @property
    def ready(self) -> bool:
        """The registry was read, and the plane points where it says."""
        return self.following.applied_revision >= 0

    @property
    def decides(self) -> bool:
        """Whether this router leads, and does not leave yet."""
        return self._leads.is_set() and not self._leaves.is_set()

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """The fixed addresses."""
        return [(address.host, address.port) for address in self.live.settings.listen]

    def lead(self) -> None:
        """Accept, check, drain, restart from here on."""
        if not self._leads.is_set():
            self._leads.set()
            self._end_other_steering()
            for sock in self.sockets:
                self.plane.add_listener(sock)
            self.group.lead()
            self.following.look_soon()

    def _end_other_steering(self) -> None:
        """A predecessor on another plane may have left the kernel steering past this one."""
        if self._pins is not None and self.plane.name != "sk_lookup":
            try:
                self._pins.remove()
            except OSError as error:
                log.error("%s: cannot end what is pinned: %s", self.live.service.name, error)  # noqa: TRY400
        if self.plane.name != "reuseport":
            for sock in self.sockets:
                try:
                    let_go(sock, self.group.home())
                except OSError as error:
                    log.error("%s: cannot end the steering: %s", self.live.service.name, error)  # noqa: TRY400
            self.group.steered(self.group.home())

    async def rest(self) -> None:
        """Decide nothing any more; a write under way is brought to its end, with what is told of it."""
        self._leaves.set()
        await self._rests.wait()

    def leave(self) -> None:
        """Accept nothing any more, and let those that are here go."""
        self.plane.stop_accepting()
        for sock in self.sockets:
            sock.close()
        self.sockets.clear()
        self._leaving = Leaving(self.plane, lambda: self.live.settings, self._loop.time())
        self._point()

    def left(self) -> int:
        """How many clients a router that leaves still has; those whose time is up are cut."""
        return self._leaving.step(self.following.snapshot, self._loop.time()) if self._leaving else 0

    def _close(self) -> None:
        self.following.close()
        self.plane.close()
        for sock in self.sockets:
            sock.close()
        self.sockets.clear()

    # -- what the registry and the settings say ----------------------------------------------------------------------

    def observe(self, snapshot: Snapshot) -> None:
        """Point the plane, and tell those who decide."""
        self.supervision.restarter.observe(snapshot)
        self.supervision.cold_rollback.observe(snapshot)
        self._point()
        self._times.observe(snapshot, self._loop.time(), self.following.written_ago_s)
        self.supervision.supervisor.observe(snapshot)
        # The poll may see our own write before its journal entry is made: what follows from it then waits for that.
        if not self.following.deciding:
            self.drainer.observe(snapshot)

    def polled(self, now: float) -> None:
        """Look now and then at what the plane met; ``now``: the loop's clock, seconds."""
        if now >= self._troubles_at:
            self._troubles_at = now + TROUBLES_S
            for line in self._troubles.look(self.plane.counters, now):
                log.warning("%s: %s", self.live.service.name, line)
            if self.plane.trouble != self._plane_trouble:
                self._plane_trouble = self.plane.trouble
                what = (
                    f"it relays: {self.plane.trouble}" if self.plane.trouble else "the kernel places connections again"
                )
                log.warning("%s: plane %s: %s", self.live.service.name, self.plane.name, what)

    def _settings_changed(self) -> None:
        """Hold the plane to the settings as they are now."""
        self.plane.apply(policy(self.live.settings))
        if self.ready:
            self._point()
        self.following.settings_changed()

    def _point(self) -> None:
        # A router that leaves accepts nobody, and what it holds was promised a daemon: whether one is on its way its
        # successor knows, not it.
        leaves = self._leaving is not None and self.following.snapshot.deployment.desired is not Desired.STOPPED
        self._pointing.point(coming=leaves or self.supervision.restarter.due is not None)

    async def _keep_running(self, work: Callable[[], Any], what: str) -> None:
        """A failed write (a full disk, a held lock, no descriptors) must not end the watch: say it and go on."""
        while True:
            try:
                await work()
            except (OSError, TurnoutError) as error:
                log.warning("%s: %s: %s", self.live.service.name, what, error)
            await asyncio.sleep(1.0)
            with contextlib.suppress(TurnoutError):
                await self.following.look()


def _inode(sock: socket.socket) -> int:
    return os.fstat(sock.fileno()).st_ino
