"""The router: the composition root, where the parts of all services are made.

One process on uvloop for all services of a home. The keeper starts it and gives it its listeners; it may die at
any moment: all that it knows stands in the registry, and connections wait in the kernel until its successor is there.

    standby ── the lead is free ──► leads ── a successor is ready ──► drains ── no client is left ──► ended
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from turnout import __version__
from turnout.core.slots import index_of
from turnout.errors import ConflictError, NotRunningError
from turnout.planes.direct.bpf_pins import Pins
from turnout.planes.selection import Planes
from turnout.router.admin_socket import AdminSocket
from turnout.router.follow.registry import REST_S
from turnout.router.follow.settings import OpenedSettings
from turnout.router.group_view import home_of, state_of
from turnout.router.keeper_link import KeeperLink
from turnout.router.metrics_server import MetricsServer
from turnout.router.openings import ServiceOpener, close_all
from turnout.router.service_runtime import RouterResources, ServiceRuntime, compose_service
from turnout.state.home import Home
from turnout.state.leader_lock import LeaderLock
from turnout.status.metrics import Reading
from turnout.system.control_channel import Message
from turnout.system.daemon_threads import DaemonThreads
from turnout.system.own_log import CHECK_EVERY_S, LogFile

THREADS: Final = 8  # texts of metrics, and checks without a thread of their own
FILES_LOOK_S: Final = 1.0
LEAD_POLL_S: Final = 0.005
ORPHAN_PATIENCE_S: Final = 2.0  # a predecessor that was asked to has released the lead by then
LEFT_POLL_S: Final = 0.05
LAST_WAIT_S: Final = 0.5  # for the journal, where all before it took its time
REPLACE_TIMEOUT_S: Final = 60.0
LOG_BOUND_BYTES: Final = 8 * 1024 * 1024
log = logging.getLogger("turnout.router")


class Router:
    """Everything that one router process has. Owns the services, the keeper link, the admin socket and the threads."""

    def __init__(self, loop: asyncio.AbstractEventLoop, home: Home) -> None:
        self._loop = loop
        self._home = home
        self._started = time.monotonic()
        self._executor = DaemonThreads("turnout", THREADS)
        # A home that hangs (NFS, FUSE) holds this thread and nothing else: a service has FileThreads of its own.
        self._files = DaemonThreads("home")
        # one thread: the journal has the decisions in the order in which they were made
        self._journal = DaemonThreads("journal")
        self._openings = ServiceOpener(loop, home, self._opened)
        self._services: dict[str, ServiceRuntime] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._planes = Planes(loop)
        self._group = asyncio.TaskGroup()
        self._link = KeeperLink(loop, self._files, home, self)
        self._resources = RouterResources(
            loop, home, self._executor, self._journal, self._link, self._planes.loop_priority
        )
        self._leader_lock = LeaderLock(home.router_lock, home.services)
        self._restoring: asyncio.Future[bool] | None = None
        self._log_file = LogFile(home.router_log, LOG_BOUND_BYTES)
        self._admin = AdminSocket(loop, self._files, home.router_sock, self, lambda: self._may_answer)
        self._checking_log = False
        self._metrics = MetricsServer(home, self._executor, self._files, self._reading)
        self._expected: frozenset[str] | None = None  # the services that the keeper has; None: it did not say yet
        self._lost_at: float | None = None
        self._ready_sent = False
        self._file_trouble = ""
        self._release_asked = asyncio.Event()
        self._done = asyncio.Event()
        self._draining = False
        self._code = 0

    async def run(self) -> int:
        """Serve until a successor leads and no client is left, or everything ends; returns the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_term)
        self._loop.add_signal_handler(signal.SIGHUP, self.reload)
        self._leader_lock.try_take()
        self._watch_log()
        self._watch_files()
        try:
            # a bug in any task ends the process: the keeper starts another, which reads everything from the registry
            async with asyncio.TaskGroup() as self._group:
                linked = self._group.create_task(self._link.run(self._admin.open))
                living = self._group.create_task(self._live())
                await self._done.wait()
                linked.cancel()
                living.cancel()
                self._openings.close()
                for task in self._tasks.values():
                    task.cancel()
        finally:
            self._admin.close()
            self._openings.close()
            self._link.close()
            self._planes.close()
            for threads in (self._executor, self._files):
                threads.shutdown(wait=False, cancel_futures=True)
            self._journal.shutdown(wait=True)  # events of decisions are still written: two seconds at most
            self._leader_lock.release()
            log.info("router ended, pid %d", os.getpid())
        return self._code

    # -- phases ------------------------------------------------------------------------------------------------------

    @property
    def phase(self) -> str:
        if self._draining:
            return "leaving"
        return "leads" if self._leader_lock.held else "standby"

    async def _live(self) -> None:
        if not self._leader_lock.held:
            log.info("pid %s has the lead: waiting for it", self._leader_lock.holder())
            if not await self._take_over():
                log.warning("the keeper is gone and the lead is not free: nothing to do here")
                self._done.set()
                return
        log.info("leads, pid %d", os.getpid())
        for service in self._services.values():
            service.become_leader()
        self._admin.open()
        await self._admin.settled()  # a verb that learns of the new leader asks there
        self._link.send({"op": "leads"})
        metrics = self._group.create_task(self._metrics.run())
        try:
            await self._release_asked.wait()
        finally:
            metrics.cancel()
        await self._hand_over()
        while left := sum(service.clients_left() for service in self._services.values()):
            log.debug("%d connections are left", left)
            await asyncio.sleep(LEFT_POLL_S)
        log.info("no client is left")
        self._done.set()

    async def _take_over(self) -> bool:
        """Prepare all services, say so, and wait until the predecessor lets the lead go, or dies. False: orphaned."""
        while not self._leader_lock.try_take():
            now = self._loop.time()
            if self._link.connected:
                self._lost_at = None
                if not self._ready_sent and self._is_ready():
                    self._ready_sent = True
                    self._link.send({"op": "ready"})
            elif self._lost_at is None:
                self._lost_at = now
            elif now - self._lost_at > ORPHAN_PATIENCE_S:
                return False
            await asyncio.sleep(LEAD_POLL_S)
        return True

    def _is_ready(self) -> bool:
        return (
            self._expected is not None
            and self._expected <= self._services.keys()
            and all(service.ready for service in self._services.values())
        )

    async def _hand_over(self) -> None:
        """Finish what is being decided; then, in one step, stop accepting and release the lead."""
        log.info("a successor is ready: leaving, pid %d", os.getpid())
        by = self._loop.time() + REST_S  # each wait is for the home's file system, and the keeper waits for all of them
        await asyncio.gather(*(service.stop_deciding() for service in self._services.values()))
        await self._admin.settled()  # it must not take the place of the successor's
        self._draining = True
        for service in self._services.values():
            service.begin_drain()
        self._openings.close()
        self._admin.close()
        # the journal has all that was decided, or its directory hangs
        ending: list[asyncio.Future[Any]] = [self._loop.run_in_executor(self._journal, lambda: None)]
        if self._restoring:
            ending.append(self._restoring)
        await asyncio.wait(ending, timeout=max(LAST_WAIT_S, by - self._loop.time()))
        self._leader_lock.release()
        self._link.send({"op": "left"})

    def _on_term(self) -> None:
        """Have a successor started, which makes this one leave; asked again once it leaves, end at once."""
        if self._draining or self._release_asked.is_set() or not self._leader_lock.held:
            self._done.set()
            return
        self._group.create_task(self._ask_for_successor())

    async def _ask_for_successor(self) -> None:
        try:
            there, why = await self._link.replace(timeout_s=REPLACE_TIMEOUT_S)
        except NotRunningError:
            log.info("SIGTERM: it ends, and there is no keeper to start a successor")
            self._release_asked.set()
            return
        if not there and not self._release_asked.is_set():
            log.error("SIGTERM: it stays, for there is no successor: %s", why)

    def _watch_log(self) -> None:
        self._loop.call_later(CHECK_EVERY_S, self._watch_log)  # first: a check that fails does not end the next
        self._check_log()

    def _watch_files(self) -> None:
        """Make socket and lock file again where a cleaner of old files has removed them: verbs ask by the socket."""
        self._loop.call_later(FILES_LOOK_S, self._watch_files)
        self._admin.look()
        if self._leader_lock.held and not self._draining and self._restoring is None:
            self._restoring = self._loop.run_in_executor(self._files, self._leader_lock.restore)
            self._restoring.add_done_callback(self._restored)

    def _restored(self, restoring: asyncio.Future[bool]) -> None:
        self._restoring = None
        if restoring.cancelled():
            return
        error = restoring.exception()
        trouble = str(error or "")
        if trouble and trouble != self._file_trouble:  # it is tried again every second
            log.warning("%s was removed, and cannot be made again yet: %s", self._home.router_lock, trouble)
        self._file_trouble = trouble
        if error is None and restoring.result():
            log.warning("made %s again: it was removed", self._home.router_lock)

    def _check_log(self) -> None:
        if self._checking_log:
            return
        self._checking_log = True
        check = partial(self._log_file.check, rotates=not self._draining)

        def checked(done: asyncio.Future[None]) -> None:
            self._checking_log = False
            if not done.cancelled():
                done.exception()  # no thread to be had: it is checked again

        self._loop.run_in_executor(self._files, check).add_done_callback(checked)

    # -- messages of the keeper ----------------------------------------------------------------------------------------

    @property
    def _may_answer(self) -> bool:
        """Only the router that leads, and that the keeper knows: a predecessor's socket is replaced."""
        ends = self._done.is_set() or self._release_asked.is_set()
        return self._leader_lock.held and self._link.connected and not ends

    def on_attached(self, services: Sequence[str]) -> None:
        self._expected = frozenset(services)

    def on_refused(self) -> None:
        """Without the lead this is a second router, started by hand; with it, one whose record was lost: it goes on."""
        if not self._leader_lock.held:
            log.error("a router already runs for %s: pid %s", self._home.root, self._leader_lock.holder())
            self._code = ConflictError.exit_code
            self._done.set()

    def release_lead(self) -> None:
        self._release_asked.set()

    def stand_down(self) -> None:
        if not self._leader_lock.held:  # its predecessor may have let it go this very moment
            self._done.set()

    def shut_down(self) -> None:
        self._done.set()

    def reload(self) -> None:
        """SIGHUP: look at the settings and the log file now."""
        self._check_log()
        for service in self._services.values():
            service.live.reload()
            service.registry.look_at_file()

    def cut(self, service: str, boot_id: str) -> None:
        if service in self._services:
            log.info("%s: cut %d connections of %s", service, self._services[service].plane.cut(boot_id), boot_id)

    # -- listeners, from and to the keeper ---------------------------------------------------------------------------

    def take_listeners(self, service: str, sockets: Sequence[socket.socket], message: Message) -> None:
        """Take all listeners that the service has from now on."""
        if self._release_asked.is_set():  # its successor gets them as well
            close_all(sockets)
        elif service in self._services:
            self._hand_listeners(self._services[service], sockets, message)
        else:
            self._openings.begin(self._group, service, sockets, message)

    def _opened(
        self, opened: OpenedSettings, pins: Pins | None, sockets: Sequence[socket.socket], message: Message
    ) -> None:
        if self._release_asked.is_set():
            close_all(sockets)
            return
        service = compose_service(self._resources, self._planes, opened, pins)
        self._services[opened.home.name] = service
        task = self._tasks[opened.home.name] = self._group.create_task(service.run())
        task.add_done_callback(lambda _: service.close())  # a task that is cancelled before its first step runs nothing
        if self._leader_lock.held:
            service.become_leader()
        self._hand_listeners(service, sockets, message)

    @staticmethod
    def _hand_listeners(service: ServiceRuntime, sockets: Sequence[socket.socket], message: Message) -> None:
        service.take_listeners(sockets, message)
        gc.collect()
        gc.freeze()  # what lives as long as the process need not be walked by every collection

    def release_listeners(self, service: str) -> None:
        self._expected = (self._expected or frozenset()) - {service}
        self._openings.release(service)
        if self._services.pop(service, None):
            self._tasks.pop(service).cancel()

    def listeners(self) -> Sequence[tuple[str, str, int, int]]:
        held = {name: service.sockets for name, service in self._services.items()} | self._openings.offered()
        return [(name, *sock.getsockname()[:2], sock.fileno()) for name, sockets in held.items() for sock in sockets]

    def group_homes(self) -> Mapping[str, int]:
        waiting = {name: home_of(message) for name, message in self._openings.messages().items()}
        return {name: service.group.home() for name, service in self._services.items()} | waiting

    def group_states(self) -> Mapping[str, Mapping[str, Any]]:
        states = {name: service.group.state for name, service in self._services.items()}
        states |= {name: state_of(message) for name, message in self._openings.messages().items()}
        return {name: state for name, state in states.items() if state}

    def on_daemon_exit(self, service: str, boot_id: str) -> None:
        if service in self._services:
            self._services[service].on_daemon_exit(boot_id)

    # -- answers for the admin socket --------------------------------------------------------------------------------

    def status(self) -> Mapping[str, Any]:
        return {
            "pid": os.getpid(),
            "version": __version__,
            "uptime_s": time.monotonic() - self._started,
            "keeper": self._link.connected,
            "leaving": list(self._link.draining or ()),
            "metrics": self._metrics.status(),
            "services": {name: service.report.status() for name, service in self._services.items()},
        }

    def _reading(self) -> Reading:
        return Reading(
            __version__,
            time.monotonic() - self._started,
            len(self._link.draining or ()),
            [service.report.reading() for service in self._services.values()],
        )

    def drains(self, service: str) -> Sequence[Mapping[str, Any]]:
        return self._services[service].report.drains()

    def open_door(self, service: str, source: str, port: int) -> Callable[[], None]:
        doors, door = self._services[service].doors, (index_of(source), source, port)
        doors.open(*door)
        return partial(doors.close, *door)

    def when_applied(self, service: str, revision: int, reply: Callable[[int], None]) -> None:
        self._services[service].registry.when_applied(revision, reply)
