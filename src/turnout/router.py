"""The router: the composition root, and the only file that knows everyone.

One process on uvloop for all services of a home. The keeper starts it and gives it its listeners; it may die at
any moment: all that it knows stands in the registry, and connections wait in the kernel until its successor is there.

    standby ── the lead is free ──► leads ── a successor is ready ──► leaving ── nobody is left ──► ended
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import uvloop

from turnout import __version__
from turnout.admin import AdminServer
from turnout.config import load_settings
from turnout.config_check import demands
from turnout.errors import ConflictError, NotRunningError, TurnoutError
from turnout.keeper_link import KeeperLink
from turnout.kernel_view import KernelView
from turnout.log_lines import log_to_stderr
from turnout.logfile import CHECK_EVERY_S, LogFile
from turnout.metrics import Reading
from turnout.planes.choose import Planes, choose, lacking
from turnout.planes.chooser import attach
from turnout.planes.pins import pins_of
from turnout.planes.reuseport import Reuseport
from turnout.planes.sk_lookup import SkLookup
from turnout.planes.steering import Steering
from turnout.planes.trial import group_works
from turnout.scraping import Scraping
from turnout.served import Served
from turnout.service import policy
from turnout.sharing import Sharing
from turnout.system.control import Message
from turnout.system.home import Home
from turnout.system.lead_lock import LeadLock

THREADS: Final = 8  # probes, file locks and fsyncs; never client bytes
ADMIN_AGAIN_S: Final = 1.0
LEAD_POLL_S: Final = 0.005
ORPHAN_PATIENCE_S: Final = 2.0  # a predecessor that was told to leave has let the lead go by then
LEFT_POLL_S: Final = 0.05
REPLACE_TIMEOUT_S: Final = 60.0
LOG_BOUND_BYTES: Final = 8 * 1024 * 1024
log = logging.getLogger("turnout.router")


class Router:
    """Everything that one router process has. Owns the services, the keeper link, the admin socket and the threads."""

    def __init__(self, loop: asyncio.AbstractEventLoop, home: Home) -> None:
        self._loop = loop
        self._home = home
        self._started = time.monotonic()
        self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="turnout")
        # one thread: the journal has the decisions in the order in which they were made
        self._scribe = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._services: dict[str, tuple[Served, asyncio.Task[None]]] = {}
        self._planes = Planes(loop)
        self._group = asyncio.TaskGroup()
        self._link = KeeperLink(loop, home, self)
        self._lead = LeadLock(home.router_lock)
        self._log_file = LogFile(home.router_log, LOG_BOUND_BYTES)
        self._admin: AdminServer | None = None
        self._scraping = Scraping(home, self._executor, self._reading)
        self._expected: frozenset[str] | None = None  # the services that the keeper has; None: it did not say yet
        self._lost_at: float | None = None
        self._ready_told = False
        self._leave = asyncio.Event()
        self._done = asyncio.Event()
        self._leaving = False
        self._code = 0

    async def run(self) -> int:
        """Serve until a successor has taken over and nobody is left, or everything ends; answers the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_term)
        self._loop.add_signal_handler(signal.SIGHUP, self.reload)
        self._lead.try_take()
        self._watch_log()
        try:
            # a bug in any task ends the process: the keeper starts another, which reads everything from the registry
            async with asyncio.TaskGroup() as self._group:
                linked = self._group.create_task(self._link.run(self._connected))
                living = self._group.create_task(self._live())
                await self._done.wait()
                linked.cancel()
                living.cancel()
                for _, task in self._services.values():
                    task.cancel()
        finally:
            if self._admin:
                self._admin.close()
            self._link.close()
            self._planes.close()
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._scribe.shutdown(wait=True)  # what was decided is told, also by one that ends
            self._lead.release()
            log.info("router ended, pid %d", os.getpid())
        return self._code

    # -- its life ----------------------------------------------------------------------------------------------------

    @property
    def phase(self) -> str:
        if self._leaving:
            return "leaving"
        return "leads" if self._lead.held else "standby"

    async def _live(self) -> None:
        if not self._lead.held:
            log.info("pid %s has the lead: waiting for it", self._lead.holder())
            if not await self._take_over():
                log.warning("the keeper is gone and the lead is not free: nothing to do here")
                self._done.set()
                return
        log.info("leads, pid %d", os.getpid())
        self._link.tell({"op": "leads"})
        for served, _ in self._services.values():
            served.lead()
        self._open_admin()
        scraping = self._group.create_task(self._scraping.run())
        try:
            await self._leave.wait()
        finally:
            scraping.cancel()
        await self._hand_over()
        while left := sum(served.left() for served, _ in self._services.values()):
            log.debug("%d connections are left", left)
            await asyncio.sleep(LEFT_POLL_S)
        log.info("nobody is left")
        self._done.set()

    async def _take_over(self) -> bool:
        """Prepare all services, say so, and wait until the predecessor lets the lead go, or dies. False: orphaned."""
        while not self._lead.try_take():
            now = self._loop.time()
            if self._link.connected:
                self._lost_at = None
                if not self._ready_told and self._is_ready():
                    self._ready_told = True
                    self._link.tell({"op": "ready"})
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
            and all(served.ready for served, _ in self._services.values())
        )

    async def _hand_over(self) -> None:
        """First what is being decided comes to its end; then, in one step, another may accept and lead."""
        log.info("a successor is ready: leaving, pid %d", os.getpid())
        await asyncio.gather(*(served.rest() for served, _ in self._services.values()))
        self._leaving = True
        for served, _ in self._services.values():
            served.leave()
        if self._admin:
            self._admin.close()
            self._admin = None
        await self._loop.run_in_executor(self._scribe, lambda: None)  # the journal has all that was decided
        self._lead.release()
        self._link.tell({"op": "left"})

    def _on_term(self) -> None:
        """Have a successor started, which makes this one leave; asked twice, end at once."""
        if self._leaving or self._leave.is_set() or not self._lead.held:
            self._done.set()
            return
        self._group.create_task(self._ask_for_successor())

    async def _ask_for_successor(self) -> None:
        try:
            there, why = await self._link.replace(timeout_s=REPLACE_TIMEOUT_S)
        except NotRunningError:
            log.info("told to end, and there is no keeper to start a successor")
            self._leave.set()
            return
        if not there and not self._leave.is_set():
            log.error("told to end, but there is no successor, so it stays: %s", why)

    def _watch_log(self) -> None:
        self._log_file.check(rotates=not self._leaving)
        self._loop.call_later(CHECK_EVERY_S, self._watch_log)

    # -- what the keeper says ----------------------------------------------------------------------------------------

    def _connected(self) -> None:
        if self._lead.held and not self._leaving:
            self._open_admin()

    def _open_admin(self) -> None:
        """Only the router that leads, and that the keeper knows, may answer; a predecessor's socket is replaced."""
        if self._admin is not None or self._done.is_set() or self._leaving or not self._link.connected:
            return
        try:
            self._admin = AdminServer(self._loop, self._home.router_sock, self)
        except (TurnoutError, OSError) as error:  # a full disk: clients are served all the same
            log.error("no admin socket for now: %s", error)  # noqa: TRY400  # the message says it all
            self._loop.call_later(ADMIN_AGAIN_S, self._open_admin)

    def attached(self, services: Sequence[str]) -> None:
        self._expected = frozenset(services)

    def refused(self) -> None:
        """Without the lead this is a second router, started by hand; with it, one whose record was lost: it goes on."""
        if not self._lead.held:
            log.error("a router already runs for %s: pid %s", self._home.root, self._lead.holder())
            self._code = ConflictError.exit_code
            self._done.set()

    def leave(self) -> None:
        self._leave.set()

    def stand_down(self) -> None:
        if not self._lead.held:  # its predecessor may have let it go this very moment
            self._done.set()

    def end(self) -> None:
        self._done.set()

    def reload(self) -> None:
        """SIGHUP: look at the settings and the log file now."""
        self._log_file.check()
        for served, _ in self._services.values():
            served.live.reload()

    def cut(self, service: str, boot_id: str) -> None:
        found = self._services.get(service)
        if found:
            log.info("%s: cut %d connections of %s", service, found[0].plane.cut(boot_id), boot_id)

    # -- listeners, from and to the keeper ---------------------------------------------------------------------------

    def take(self, service: str, sockets: Sequence[socket.socket], told: Message) -> None:
        """All listeners that the service is to have from now on."""
        if self._leave.is_set():  # its successor gets them as well
            for sock in sockets:
                sock.close()
            return
        if service in self._services:
            served = self._services[service][0]
        else:
            try:
                served = self._compose(service)
            except (TurnoutError, OSError) as error:
                log.error("cannot serve %s: %s", service, error)  # noqa: TRY400  # the message says it all
                for sock in sockets:
                    sock.close()
                return
            self._services[service] = served, self._group.create_task(served.run())
            if self._lead.held:
                served.lead()
        served.take(sockets, told)
        gc.collect()
        gc.freeze()  # what lives as long as the process need not be walked by every collection

    def release(self, service: str) -> None:
        self._expected = (self._expected or frozenset()) - {service}
        found = self._services.pop(service, None)
        if found:
            found[1].cancel()

    def held(self) -> Sequence[tuple[str, str, int, int]]:
        return [
            (name, *sock.getsockname()[:2], sock.fileno())
            for name, (served, _) in self._services.items()
            for sock in served.sockets
        ]

    def homes(self) -> Mapping[str, int]:
        return {name: served.group.home() for name, (served, _) in self._services.items()}

    def ended(self, service: str, boot_id: str) -> None:
        found = self._services.get(service)
        if found:
            found[0].supervision.process_ended(boot_id)

    def _compose(self, service: str) -> Served:
        home = self._home.service(service)
        settings = load_settings(home.settings.read_bytes())
        chosen = choose(
            settings.plane,
            lacks=lacking(),
            demands=demands(settings),
            takes_part=settings.takes_part,
            tried=lambda: group_works(attach),
        )
        log.info("%s: plane %s: %s", service, chosen.name, chosen.reason)
        pins = pins_of(self._home.root, service)
        # a plane asks when it is in use, and by then there is a service
        group = Sharing(service, self._link)
        kernel = KernelView(
            lambda: served.addresses, lambda: served.following.snapshot.daemons, given=group.listener_of
        )
        steering: Steering | None = None
        if chosen.name == "sk_lookup":
            steering = SkLookup(kernel.listener_of, pins)
        elif chosen.name == "reuseport":
            steering = Reuseport(kernel.is_there, group.home, group.steered)
        if steering:
            plane = self._planes.direct(steering, kernel, policy(settings), kernel.is_there)
        else:
            plane = self._planes.make(chosen.name, policy(settings), kernel.is_there)
        served = Served(
            self._loop,
            self._executor,
            self._scribe,
            self._home,
            service,
            plane,
            chosen.reason,
            self._link,
            self._planes.attention,
            pins,
            group,
        )
        return served

    # -- answers for the admin socket --------------------------------------------------------------------------------

    def status(self) -> Mapping[str, Any]:
        return {
            "pid": os.getpid(),
            "version": __version__,
            "uptime_s": time.monotonic() - self._started,
            "keeper": self._link.connected,
            "leaving": list(self._link.leaving or ()),
            "metrics": self._scraping.status(),
            "services": {name: served.report.status() for name, (served, _) in self._services.items()},
        }

    def _reading(self) -> Reading:
        return Reading(
            __version__,
            time.monotonic() - self._started,
            len(self._link.leaving or ()),
            [served.report.reading() for served, _ in self._services.values()],
        )

    def drains(self, service: str) -> Sequence[Mapping[str, Any]]:
        return self._services[service][0].report.drains()

    def when_applied(self, service: str, revision: int, reply: Callable[[int], None]) -> None:
        self._services[service][0].following.when_applied(revision, reply)


def main(argv: list[str]) -> int:
    """``python -m turnout.router HOME``: how the keeper starts it."""
    log_to_stderr("%(asctime)s %(levelname)s %(message)s", datefmt="%Y-%m-%dT%H:%M:%S")
    home = Home(Path(argv[0]))
    log.info("router %s of %s, pid %d", __version__, home.root, os.getpid())

    async def serve() -> int:
        return await Router(asyncio.get_running_loop(), home).run()

    with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
