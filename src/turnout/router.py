"""The router: the composition root, and the only file that knows everyone.

One process on uvloop for all services of a home. The keeper starts it and gives it its listeners; it may die at
any moment: all that it knows stands in the registry, and connections wait in the kernel until its successor is there.
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
from turnout.errors import TurnoutError
from turnout.keeper_link import KeeperLink
from turnout.planes.policy import Policy
from turnout.planes.poller import Poller
from turnout.planes.relay import Relay
from turnout.served import Served
from turnout.system.home import Home

THREADS: Final = 8  # probes, file locks and fsyncs; never client bytes
ADMIN_AGAIN_S: Final = 1.0
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
        self._poller = Poller(loop)  # one for all services: none of them waits for another's events
        self._group = asyncio.TaskGroup()
        self._link = KeeperLink(loop, home, self)
        self._admin: AdminServer | None = None
        self._done = asyncio.Event()

    async def run(self) -> None:
        """Serve until SIGTERM."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._done.set)
        try:
            # a bug in any task ends the process: the keeper starts another, which reads everything from the registry
            async with asyncio.TaskGroup() as self._group:
                linked = self._group.create_task(self._link.run(self._open_admin))
                await self._done.wait()
                linked.cancel()
                for _, task in self._services.values():
                    task.cancel()
        finally:
            if self._admin:
                self._admin.close()
            self._link.close()
            self._poller.close()
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._scribe.shutdown(wait=True)  # what was decided is told, also by one that ends
            log.info("router ended, pid %d", os.getpid())

    def _open_admin(self) -> None:
        """Only the router that the keeper knows may answer; a predecessor's socket is replaced."""
        if self._admin is not None or self._done.is_set():
            return
        try:
            self._admin = AdminServer(self._loop, self._home.router_sock, self)
        except (TurnoutError, OSError) as error:  # a full disk: clients are served all the same
            log.error("no admin socket for now: %s", error)  # noqa: TRY400  # the message says it all
            self._loop.call_later(ADMIN_AGAIN_S, self._open_admin)

    # -- listeners, from and to the keeper ---------------------------------------------------------------------------

    def take(self, service: str, sockets: Sequence[socket.socket]) -> None:
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
        served.take(sockets)
        gc.collect()
        gc.freeze()  # what lives as long as the process need not be walked by every collection

    def release(self, service: str) -> None:
        found = self._services.pop(service, None)
        if found:
            found[1].cancel()

    def held(self) -> Sequence[tuple[str, str, int, int]]:
        return [
            (name, *sock.getsockname()[:2], sock.fileno())
            for name, (served, _) in self._services.items()
            for sock in served.sockets
        ]

    def ended(self, service: str, boot_id: str) -> None:
        found = self._services.get(service)
        if found and found[0].snapshot.deployment.active_boot_id == boot_id:
            found[0].supervisor.poke()

    def _compose(self, service: str) -> Served:
        home = self._home.service(service)
        settings = load_settings(home.settings.read_bytes())
        plane = Relay(self._loop, poller=self._poller, policy=Policy(hold_max=settings.hold_max))
        return Served(self._loop, self._executor, self._scribe, self._home, service, plane, self._link)

    # -- answers for the admin socket --------------------------------------------------------------------------------

    def status(self) -> Mapping[str, Any]:
        return {
            "pid": os.getpid(),
            "version": __version__,
            "uptime_s": time.monotonic() - self._started,
            "keeper": self._link.connected,
            "services": {name: served.status() for name, (served, _) in self._services.items()},
        }

    def drains(self, service: str) -> Sequence[Mapping[str, Any]]:
        return self._services[service][0].drains()

    def when_applied(self, service: str, revision: int, reply: Callable[[int], None]) -> None:
        self._services[service][0].when_applied(revision, reply)


def main(argv: list[str]) -> int:
    """``python -m turnout.router HOME``: how the keeper starts it."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%Y-%m-%dT%H:%M:%S")
    home = Home(Path(argv[0]))
    _bound_log(home.router_log)
    log.info("router %s of %s, pid %d", __version__, home.root, os.getpid())

    async def serve() -> None:
        await Router(asyncio.get_running_loop(), home).run()

    with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())
    return 0


def _bound_log(path: Path) -> None:
    """Keep one earlier log of bounded size; this process writes on into a new file."""
    try:
        if path.stat().st_size < LOG_BOUND_BYTES:
            return
        path.replace(path.with_suffix(".log.1"))
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError:
        return
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
