"""The router's metrics address: ``GET /metrics``, and nothing else.

It is opened where the home says (``metrics.json``), moved when that changes, and tried again while somebody else has
the address. Nothing of it can keep the router from its work: clients are few, requests are small, each has a deadline,
and the text is made in another thread, at most a few times a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final

from turnout.config import Address, Scrape
from turnout.errors import TurnoutError
from turnout.metrics import Reading, expose, require
from turnout.scrape_address import bound, read_scrape
from turnout.system.home import Home
from turnout.system.watcher import Watcher

CLIENTS_MOST: Final = 16
REQUEST_MOST_BYTES: Final = 8192
DEADLINE_S: Final = 5.0  # for a request and its answer
FRESH_S: Final = 0.25  # so long a text is given again instead of being made anew
LOOK_EVERY_S: Final = 0.5
PLAIN: Final = "text/plain; charset=utf-8"
log = logging.getLogger("turnout.router")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request gets. ``headers``: further ones."""

    status: str
    body: bytes
    content_type: str = PLAIN
    headers: Mapping[str, str] | None = None


class Scraping:
    """Owns the listening socket and its clients' tasks, while :meth:`run` runs.

    Args:
        home: the state directory, which says where.
        executor: where texts are made.
        read: what there is to tell; called in the loop's thread.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        home: Home,
        executor: Executor,
        read: Callable[[], Reading],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._home = home
        self._executor = executor
        self._read = read
        self._clock = clock
        self._clients: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._made: dict[str, tuple[float, asyncio.Future[tuple[bytes, str]]]] = {}  # by format, with when it was begun
        self.address: Address | None = None  # where it listens
        self.error = ""  # why it does not, although it should

    def status(self) -> Mapping[str, str | None]:
        """For the admin socket: where it listens, and why not where it should; both None where it is not asked for."""
        return {"listen": str(self.address) if self.address else None, "error": self.error or None}

    async def run(self) -> None:
        """Listen where the home says, until cancelled."""
        watcher = Watcher(self._home.metrics)
        wanted, server = Scrape(), None
        try:
            while True:
                if watcher.poll():
                    wanted = self._wanted(wanted)
                if wanted.listen != self.address:
                    if server:
                        self._close(server)
                        server = None
                    if wanted.listen:
                        server = await self._open(wanted.listen)
                    else:
                        self._say("")
                await asyncio.sleep(LOOK_EVERY_S)
        finally:
            if server:
                self._close(server)

    def _wanted(self, before: Scrape) -> Scrape:
        try:
            return read_scrape(self._home)
        except TurnoutError as error:
            log.warning("metrics: %s", error.message)
            return before

    async def _open(self, address: Address) -> asyncio.Server | None:
        loop = asyncio.get_running_loop()
        # in another thread: to say who has a taken address takes a walk through /proc
        binding = loop.run_in_executor(self._executor, _bind, address)
        try:
            sock = await asyncio.shield(binding)
        except TurnoutError as error:
            self._say(error.message)
            return None
        except asyncio.CancelledError:
            binding.add_done_callback(_give_back)
            raise
        server = await asyncio.start_server(self._serve, sock=sock, limit=REQUEST_MOST_BYTES)
        self.address = address
        self._say("")
        log.info("metrics: http://%s/metrics", address)
        return server

    def _say(self, error: str) -> None:
        if error and error != self.error:
            log.warning("metrics are not served: %s", error)
        self.error = error

    def _close(self, server: asyncio.Server) -> None:
        server.close()
        self.address = None
        for task, writer in list(self._clients.items()):
            self._end(task, writer)

    def _end(self, task: asyncio.Task[None], writer: asyncio.StreamWriter) -> None:
        del self._clients[task]
        task.cancel()
        writer.transport.abort()

    # -- one client --------------------------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._clients) >= CLIENTS_MOST:  # a scrape takes milliseconds: who has been here longest is none
            oldest, its_writer = next(iter(self._clients.items()))
            self._end(oldest, its_writer)
        self._clients[task] = writer
        try:
            async with asyncio.timeout(DEADLINE_S):
                await self._respond(reader, writer)
        except (OSError, TimeoutError, EOFError):
            log.debug("metrics: a client went before its answer was over")
        finally:
            self._clients.pop(task, None)
            if not writer.is_closing():
                writer.transport.abort()

    async def _respond(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            answer, head = Answer("431 Request Header Fields Too Large", b"the request is too large\n"), b""
        else:
            answer = await self._answer(head)
        lines = [
            f"HTTP/1.1 {answer.status}",
            f"Content-Type: {answer.content_type}",
            f"Content-Length: {len(answer.body)}",
            "Connection: close",
            *(f"{name}: {value}" for name, value in (answer.headers or {}).items()),
        ]
        body = b"" if head.startswith(b"HEAD ") else answer.body
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        await writer.drain()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async def _answer(self, head: bytes) -> Answer:
        """RFC 9112: a request line of three words, then header fields."""
        first, *fields = head.decode("latin-1").split("\r\n")
        words = first.split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return Answer("400 Bad Request", b"this is no HTTP request\n")
        method, target, _ = words
        if target.partition("?")[0] != "/metrics":
            return Answer("404 Not Found", b"the metrics of turnout are at /metrics\n")
        if method not in {"GET", "HEAD"}:
            return Answer("405 Method Not Allowed", b"read only\n", headers={"Allow": "GET, HEAD"})
        accept = next(
            (value for name, _, value in (one.partition(":") for one in fields) if name.lower() == "accept"), ""
        )
        body, content_type = await self._text(accept.strip())
        return Answer("200 OK", body, content_type)

    async def _text(self, accept: str) -> tuple[bytes, str]:
        """One text at a time is made, and given to all who ask within a moment; it outlives who asked first."""
        kind = "openmetrics" if "application/openmetrics-text" in accept else ""
        begun_at, job = self._made.get(kind, (0.0, None))
        if job is None or (job.done() and self._clock() - begun_at >= FRESH_S):
            loop = asyncio.get_running_loop()
            job = loop.run_in_executor(self._executor, expose, self._read(), accept)
            self._made[kind] = self._clock(), job
        return await asyncio.shield(job)


def _bind(address: Address) -> socket.socket:
    require()
    return bound(address, backlog=CLIENTS_MOST)


def _give_back(binding: asyncio.Future[socket.socket]) -> None:
    """Nobody waits for this listener any more."""
    if not binding.cancelled() and binding.exception() is None:
        binding.result().close()
