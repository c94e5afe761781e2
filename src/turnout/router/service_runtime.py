"""One service inside the router: its plane and listeners, and the tasks that follow, decide and drain."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Executor
from typing import Any, Final

import msgspec

from turnout.config.settings import Address
from turnout.config.validation import demands
from turnout.core.model import Desired, Snapshot
from turnout.errors import TurnoutError
from turnout.planes.direct.bpf_pins import Pins
from turnout.planes.direct.doors import Doors, ThreadDoor
from turnout.planes.direct.reuseport import Reuseport
from turnout.planes.direct.sk_lookup import SkLookup
from turnout.planes.direct.steering import Steering
from turnout.planes.loop_priority import LoopPriority
from turnout.planes.selection import Planes, lacking, select_plane
from turnout.reuseport.feature_test import group_works
from turnout.reuseport.program import attach, let_go
from turnout.router.auto_deployer import AutoDeployer, DeployActions
from turnout.router.drain.actions import DrainActions
from turnout.router.drain.drainer import Drainer
from turnout.router.drain.router_drain import RouterDrain
from turnout.router.event_log import EventLog
from turnout.router.exit_watch import ExitWatch
from turnout.router.follow.file_threads import FileThreads
from turnout.router.follow.registry import RegistryFollower
from turnout.router.follow.settings import OpenedSettings, SettingsFollower
from turnout.router.followed_service import FollowedService
from turnout.router.group_view import GroupView
from turnout.router.health.abandoned_rollouts import AbandonedRollouts
from turnout.router.health.actions import HealthActions
from turnout.router.health.daemon_prober import DaemonProber
from turnout.router.health.probing import ProbeThreads
from turnout.router.keeper_link import KeeperLink
from turnout.router.kernel_view import KernelView, SharedAddress
from turnout.router.plane_warnings import PlaneWarnings
from turnout.router.service_plane import DaemonChecks, ServicePlane
from turnout.router.service_report import ServiceReport
from turnout.router.socket_owners import own_ends
from turnout.router.upstream import UpstreamSelector
from turnout.router.verb_runner import VerbRunner
from turnout.state.home import Home
from turnout.state.service import policy
from turnout.system.control_channel import Message
from turnout.system.daemon_threads import DaemonThreads

WARNINGS_S: Final = 1.0
log = logging.getLogger("turnout.router")


class RouterResources(msgspec.Struct, frozen=True):
    """What one router process shares with the runtimes of all its services. The router owns it.

    Args:
        checks: threads for health checks whose daemon has none of its own.
        journal: one thread, which writes the decisions in the order in which they were made.
        loop_priority: keeps the relays' poller from staying while something is urgent.
    """

    loop: asyncio.AbstractEventLoop
    home: Home
    checks: Executor
    journal: Executor
    keeper: KeeperLink
    loop_priority: LoopPriority


class ServiceRuntime:
    """Owns the plane, the listeners and the tasks of one service; what it shares with others belongs to the router."""

    def __init__(self, resources: RouterResources, opened: OpenedSettings, plane: ServicePlane) -> None:
        loop = self._loop = resources.loop
        self.plane = plane.plane
        self.group = plane.group
        self.doors = plane.doors
        self._pins = plane.pins
        self._exits = plane.exits
        self.sockets: list[socket.socket] = []
        self._unaccepted: list[socket.socket] = []  # those of them that the plane is to accept from, and does not yet
        self._accept_trouble = ""
        self._leading = asyncio.Event()
        self._stopping = asyncio.Event()
        self._decided = asyncio.Event()
        self._drain: RouterDrain | None = None
        self._warnings = PlaneWarnings()
        self._warnings_at = 0.0
        self._plane_trouble = ""
        name = opened.home.name
        self._files = FileThreads(
            DaemonThreads(f"read {name}"),
            DaemonThreads(f"write {name}"),
            DaemonThreads(f"configuration {name}", 2),  # the file is followed while the version command runs
            DaemonThreads(f"start {name}"),
        )
        self._probe_threads = ProbeThreads(loop, resources.checks)
        live = self.live = SettingsFollower(opened, self.plane.name, self._settings_changed)
        # until the registry is read, no client is reset: a router that follows a dead one finds clients waiting
        self.plane.set_upstream(None, patience_s=live.settings.hold_timeout_s)
        registry = self.registry = RegistryFollower(loop, self._files, live, self, resources.loop_priority)
        events = EventLog(resources.journal, live, registry)
        service = FollowedService(loop, self._files, live, registry, events)
        self._upstream = UpstreamSelector(self.plane, live, registry, self._exits, self.group.source_of)
        door = ThreadDoor(loop, plane.doors)
        self._prober = DaemonProber(service, self._probe_threads, self._upstream, door, self._select_upstream)
        probe = self._prober.probe
        interpreters, starting = resources.keeper.interpreters, self._files.starting

        def verb_time_s() -> float:
            return live.settings.hold_timeout_s + live.settings.stop_grace_s + 2 * live.settings.start_timeout_s

        verbs = VerbRunner(resources.home, name, interpreters, starting, verb_time_s)
        self.health = HealthActions(service, verbs, probe, self._select_upstream)
        self._abandoned = AbandonedRollouts(service, self.health.restarter)
        drain_actions = DrainActions(service, self.plane, resources.keeper, self._upstream.located)
        self.drainer = Drainer(loop.time, lambda: live.settings, probe, registry, events, drain_actions)
        self.auto_deployer = AutoDeployer(loop.time, lambda: live.settings, events, DeployActions(service, verbs))
        self.report = ServiceReport(service, plane, self.health, self.drainer, drain_actions.elsewhere, self._warnings)

    async def run(self) -> None:
        """Follow the registry; between :meth:`become_leader` and :meth:`stop_deciding` also decide; until cancelled."""
        health = self.health
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.registry.run())
                await self._leading.wait()
                deciding = [
                    group.create_task(self._keep_running(health.monitor.run, "supervisor")),
                    group.create_task(self._keep_running(self.drainer.run, "drainer")),
                    group.create_task(self._keep_running(health.restarter.run, "restarter")),
                    group.create_task(self._keep_running(self.auto_deployer.run, "deployer")),
                    group.create_task(self._keep_running(health.cold_rollback.run, "cold rollback")),
                    group.create_task(self._keep_running(self._abandoned.run, "owner watch")),
                ]
                # not among those: a draining router has to know when the clients that it holds may go
                group.create_task(self._keep_running(self._prober.watch_listener, "listener check"))
                await self._stopping.wait()
                await self.registry.idle()
                for task in deciding:
                    task.cancel()
                self._leading.clear()
                self._decided.set()
        finally:
            self.close()

    def take_listeners(self, sockets: Sequence[socket.socket], message: Message) -> None:
        """Accept on these and on no other listeners, now or once this router leads; they are owned here.

        At a shared address there are several; the keeper has shut down those that it leaves out, and the plane has
        noticed. Copies of the daemons' listeners are kept for the next keeper. ``message`` is the keeper's, and
        describes the group.
        """
        before = {_inode(sock): sock for sock in self.sockets}
        wanted = {_inode(sock): sock for sock in sockets}
        addresses = {sock.getsockname()[:2] for sock in sockets}
        accepted = {inode for inode in before if not self.group.is_daemons(inode)}
        self.group.update(message)
        self.sockets = [before.get(inode, sock) for inode, sock in wanted.items()]
        for inode, sock in before.items():
            if inode not in wanted:
                if sock.getsockname()[:2] not in addresses:
                    self.plane.remove_listener(sock.getsockname()[:2])
                sock.close()
        for inode, sock in wanted.items():
            if inode in before:
                sock.close()  # another descriptor of the same listener
            if self._leading.is_set() and inode not in accepted and not self.group.is_daemons(inode):
                self._unaccepted.append(before.get(inode, sock))
        self._accept()
        if self.ready:
            self._select_upstream()  # a daemon may have another index now

    @property
    def ready(self) -> bool:
        """The registry was read, and the plane points where it says."""
        return self.registry.applied_revision >= 0

    @property
    def decides(self) -> bool:
        """Whether this router leads, and does not leave yet."""
        return self._leading.is_set() and not self._stopping.is_set()

    def relayed_from(self) -> Collection[tuple[str, int]]:
        """From where the plane is connected to daemons at the fixed addresses."""
        relays = any(map(self.plane.relayed, self.registry.snapshot.daemons))
        return own_ends({port for _, port in self.addresses}) if relays else ()

    @property
    def addresses(self) -> list[tuple[str, int]]:
        return [(address.host, address.port) for address in self.live.settings.listen]

    def become_leader(self) -> None:
        """Accept, check, drain, restart from here on."""
        if not self._leading.is_set():
            self._leading.set()
            self._end_other_steering()
            self._unaccepted = [sock for sock in self.sockets if not self.group.is_daemons(_inode(sock))]
            self._accept()
            self.group.become_leader()
            self.registry.look_soon()

    def _accept(self) -> None:
        """Have the plane accept from the listeners that it lacks; where that fails, again with the next look."""
        lacking = [sock for sock in self._unaccepted if sock in self.sockets]
        self._unaccepted = []
        trouble = ""
        for sock in lacking:
            try:
                self.plane.add_listener(sock)
            except OSError as error:  # the connections that there are go on, and clients wait in the kernel's queue
                self._unaccepted.append(sock)
                trouble = f"cannot accept at {Address(*sock.getsockname()[:2])} yet: {error.strerror}"
        if trouble and trouble != self._accept_trouble:  # it is tried again every second
            log.error("%s: %s", self.live.service.name, trouble)
        elif self._accept_trouble and not trouble:
            log.warning("%s: accepts now", self.live.service.name)
        self._accept_trouble = trouble

    def _end_other_steering(self) -> None:
        """A predecessor on another plane may have left the kernel steering past this one."""
        if self._pins is not None and self.plane.name != "sk_lookup":
            removing = self._loop.run_in_executor(self._files.writing, self._pins.remove)
            removing.add_done_callback(self._pins_removed)
        if self.plane.name != "reuseport":
            for sock in self.sockets:
                try:
                    let_go(sock, self.group.home())
                except OSError as error:
                    log.error("%s: cannot end the steering: %s", self.live.service.name, error)  # noqa: TRY400
            self.group.set_selected([self.group.home()])

    def _pins_removed(self, removing: asyncio.Future[None]) -> None:
        if not removing.cancelled() and (error := removing.exception()):
            log.error("%s: cannot end what is pinned: %s", self.live.service.name, error)

    async def stop_deciding(self) -> None:
        """Finish the pending write and its journal entry, and decide nothing after them."""
        self._stopping.set()
        await self._decided.wait()

    def begin_drain(self) -> None:
        """Accept no more connections, and drain those that this router carries."""
        self.plane.stop_accepting()
        for sock in self.sockets:
            sock.close()
        self.sockets.clear()
        self._unaccepted.clear()
        self._drain = RouterDrain(self.plane, lambda: self.live.settings, self._loop.time())
        self._select_upstream()

    def clients_left(self) -> int:
        """Cut what the drain settings say; returns how many clients a draining router still has."""
        return self._drain.step(self.registry.snapshot, self._loop.time()) if self._drain else 0

    def close(self) -> None:
        """Close the plane, the listeners and the threads; may be called twice."""
        self._decided.set()
        self.registry.close()
        self._files.shutdown()
        self._probe_threads.close()
        self.plane.close()
        self._exits.close()
        for sock in self.sockets:
            sock.close()
        self.sockets.clear()
        self._unaccepted.clear()

    def on_snapshot(self, snapshot: Snapshot) -> None:
        """Select the upstream, and hand the snapshot to the parts that decide."""
        self.health.restarter.on_snapshot(snapshot)
        self.health.cold_rollback.on_snapshot(snapshot)
        self._select_upstream()
        self.report.times.on_snapshot(snapshot, self._loop.time(), self.registry.written_ago_s)
        self.health.monitor.on_snapshot(snapshot)
        self._probe_threads.keep(snapshot.daemons)
        # The poll may see our own write before its journal entry is made: what follows from it then waits for that.
        if not self.registry.writes_in_flight:
            self.drainer.on_snapshot(snapshot)

    def on_daemon_exit(self, boot_id: str) -> None:
        """Send no client to a daemon whose process has ended, and check it at once."""
        if self.ready:
            self._select_upstream()
        if self.registry.snapshot.deployment.active_boot_id == boot_id:
            self.health.monitor.check_now()

    def on_poll(self, now: float) -> None:
        """Look now and then at what the plane met; ``now``: the loop's clock, seconds."""
        if now >= self._warnings_at:
            self._warnings_at = now + WARNINGS_S
            if self._unaccepted:
                self._accept()
            for line in self._warnings.poll(self.plane.counters, now):
                log.warning("%s: %s", self.live.service.name, line)
            if self.plane.degraded_reason != self._plane_trouble:
                trouble = self._plane_trouble = self.plane.degraded_reason
                mode = f"it relays: {trouble}" if trouble else "the kernel places connections again"
                log.warning("%s: plane %s: %s", self.live.service.name, self.plane.name, mode)

    def _settings_changed(self) -> None:
        self.plane.apply(policy(self.live.settings))
        if self.ready:
            self._select_upstream()
        self.registry.settings_changed()

    def _select_upstream(self) -> None:
        # A draining router accepts no client, and the clients that it holds wait for a daemon: only its successor
        # knows whether a daemon is on its way.
        leaves = self._drain is not None and self.registry.snapshot.deployment.desired is not Desired.STOPPED
        self._upstream.apply(coming=leaves or self.health.restarter.pending is not None)

    async def _keep_running(self, work: Callable[[], Any], name: str) -> None:
        """A failed write (a full disk, a held lock, no descriptors) must not end the watch: say it and go on."""
        while True:
            try:
                await work()
            except (OSError, TurnoutError) as error:
                log.warning("%s: %s: %s", self.live.service.name, name, error)
            await asyncio.sleep(1.0)
            with contextlib.suppress(TurnoutError):
                await self.registry.look()


def _inode(sock: socket.socket) -> int:
    return os.fstat(sock.fileno()).st_ino


def compose_service(
    resources: RouterResources, planes: Planes, opened: OpenedSettings, pins: Pins | None
) -> ServiceRuntime:
    """Choose the plane of a service, and make the runtime of the service around it."""
    service, settings = opened.home.name, opened.settings
    chosen = select_plane(
        settings.plane,
        lacks=lacking(),
        demands=demands(settings),
        takes_part=settings.takes_part,
        tried=lambda: group_works(attach),
    )
    log.info("%s: plane %s: %s", service, chosen.name, chosen.reason)
    # a plane asks when it is in use, and by then there is a runtime
    group = GroupView(service, resources.keeper)
    kernel = KernelView(
        lambda: runtime.addresses,
        lambda: runtime.registry.snapshot.daemons,
        shared=SharedAddress(
            group.listeners_of,
            lambda boot_id: runtime.plane.relayed(boot_id),  # noqa: PLW0108  # made below
            lambda: runtime.relayed_from(),  # noqa: PLW0108
        ),
    )
    exits = ExitWatch(resources.loop, lambda boot_id: runtime.on_daemon_exit(boot_id))  # noqa: PLW0108  # made below
    doors = Doors()
    checks = DaemonChecks(kernel, exits, doors)
    steering: Steering | None = None
    if chosen.name == "sk_lookup":
        steering = SkLookup(kernel.listener_of, pins)
    elif chosen.name == "reuseport":
        steering = Reuseport(kernel.is_there, group, doors)
    if steering:
        plane = planes.direct(steering, kernel, policy(settings), checks)
    else:
        plane = planes.make(chosen.name, policy(settings), checks)
    runtime = ServiceRuntime(resources, opened, ServicePlane(plane, chosen.reason, group, doors, exits, pins))
    return runtime
