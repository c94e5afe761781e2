"""The router's metrics address: ``GET /metrics``, and nothing else.

It is opened where the home says (``metrics.json``), moved when that changes, and tried again while another program
has the address. It cannot keep the router from its work: clients are few, requests are small, each has a deadline, and
the text is made in another thread, at most a few times a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import Final

import msgspec

from turnout.config.settings import Address, Scrape
from turnout.errors import TurnoutError
from turnout.state.home import Home
from turnout.state.metrics_address import bound, read_scrape
from turnout.status.metrics import Reading, expose, load_library
from turnout.system.file_watcher import Watcher

CLIENTS_MOST: Final = 16
REQUEST_MOST_BYTES: Final = 8192
DEADLINE_S: Final = 5.0  # for a request and its answer
FRESH_S: Final = 0.25  # so long a text is reused
LOOK_EVERY_S: Final = 0.5
PLAIN: Final = "text/plain; charset=utf-8"
log = logging.getLogger("turnout.router")


class HttpResponse(msgspec.Struct, frozen=True):
    """What a request gets. ``headers``: further ones."""

    status: str
    body: bytes
    content_type: str = PLAIN
    headers: Mapping[str, str] | None = None


class MetricsServer:
    """Owns the listening socket and its clients' tasks, while :meth:`run` runs.

    Args:
        executor: where texts are made.
        files: where the home is looked at.
        read: what there is to tell; called in the loop's thread.
    """

    def __init__(
        self,
        home: Home,
        executor: Executor,
        files: Executor,
        read: Callable[[], Reading],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._home = home
        self._executor = executor
        self._files = files
        self._read = read
        self._clock = clock
        self._clients: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._made: dict[str, tuple[float, asyncio.Future[tuple[bytes, str]]]] = {}  # by format, with when it was begun
        self.address: Address | None = None  # where it listens
        self.error = ""  # why it does not, although it should
        self._unread = ""  # why what the home says could not be read

    def status(self) -> Mapping[str, str | None]:
        """For the admin socket: where it listens, and why not where it should; both None where it is not asked for."""
        return {"listen": str(self.address) if self.address else None, "error": self.error or None}

    async def run(self) -> None:
        """Listen where the home says, until cancelled."""
        loop = asyncio.get_running_loop()
        watcher = Watcher(self._home.metrics)
        wanted, server = Scrape(), None
        try:
            while True:
                with contextlib.suppress(OSError):  # no thread to be had
                    wanted = await loop.run_in_executor(self._files, self._look, watcher, wanted)
                if wanted.listen != self.address:
                    self._close(server)
                    server = None
                    if wanted.listen:
                        server = await self._open(wanted.listen)
                    else:
                        self._set_error("")
                await asyncio.sleep(LOOK_EVERY_S)
        finally:
            self._close(server)

    def _look(self, watcher: Watcher, before: Scrape) -> Scrape:
        """What the home says now; blocks as long as its file system does."""
        if not watcher.poll() and not self._unread:
            return before
        known, self._unread = self._unread, ""
        try:
            return read_scrape(self._home)
        except TurnoutError as error:
            if error.message != known:
                log.warning("metrics: %s", error.message)
            if isinstance(error.__cause__, OSError):  # no descriptor, an I/O error: it is read again
                self._unread = error.message
            return before

    async def _open(self, address: Address) -> asyncio.Server | None:
        loop = asyncio.get_running_loop()
        # in another thread: to say who has a taken address takes a walk through /proc
        binding = loop.run_in_executor(self._executor, _bind, address)
        try:
            sock = await asyncio.shield(binding)
        except (TurnoutError, OSError) as error:  # no thread to be had: it is tried again with the next look
            self._set_error(in_words(error))
            return None
        except asyncio.CancelledError:
            binding.add_done_callback(_give_back)
            raise
        try:
            server = await asyncio.start_server(self._serve, sock=sock, limit=REQUEST_MOST_BYTES)
        except OSError as error:  # no memory: likewise
            sock.close()
            self._set_error(in_words(error))
            return None
        self.address = address
        self._set_error("")
        log.info("metrics: http://%s/metrics", address)
        return server

    def _set_error(self, error: str) -> None:
        if error and error != self.error:
            log.warning("metrics are not served: %s", error)
        self.error = error

    def _close(self, server: asyncio.Server | None) -> None:
        if server is None:
            return
        server.close()
        self.address = None
        for task, writer in list(self._clients.items()):
            self._end(task, writer)

    def _end(self, task: asyncio.Task[None], writer: asyncio.StreamWriter) -> None:
        del self._clients[task]
        task.cancel()
        writer.transport.abort()

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
            answer, head = HttpResponse("431 Request Header Fields Too Large", b"the request is too large\n"), b""
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

    async def _answer(self, head: bytes) -> HttpResponse:
        """RFC 9112: a request line of three words, then header fields."""
        first, *fields = head.decode("latin-1").split("\r\n")
        words = first.split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return HttpResponse("400 Bad Request", b"this is no HTTP request\n")
        method, target, _ = words
        if target.partition("?")[0] != "/metrics":
            return HttpResponse("404 Not Found", b"the metrics of turnout are at /metrics\n")
        if method not in {"GET", "HEAD"}:
            return HttpResponse("405 Method Not Allowed", b"read only\n", headers={"Allow": "GET, HEAD"})
        accept = next(
            (value for name, _, value in (field.partition(":") for field in fields) if name.lower() == "accept"), ""
        )
        body, content_type = await self._text(accept.strip())
        return HttpResponse("200 OK", body, content_type)

    async def _text(self, accept: str) -> tuple[bytes, str]:
        """One text at a time is made, and given to all who ask within a moment; it outlives who asked first."""
        kind = "openmetrics" if "application/openmetrics-text" in accept else ""
        begun_at, job = self._made.get(kind, (0.0, None))
        if job is None or (job.done() and self._clock() - begun_at >= FRESH_S):
            loop = asyncio.get_running_loop()
            job = loop.run_in_executor(self._executor, expose, self._read(), accept)
            self._made[kind] = self._clock(), job
        return await asyncio.shield(job)


def in_words(error: TurnoutError | OSError) -> str:
    return error.message if isinstance(error, TurnoutError) else error.strerror or str(error)


def _bind(address: Address) -> socket.socket:
    load_library()
    return bound(address, backlog=CLIENTS_MOST)


def _give_back(binding: asyncio.Future[socket.socket]) -> None:
    """Close a listener that :meth:`MetricsServer.run` no longer waits for."""
    if not binding.cancelled() and binding.exception() is None:
        binding.result().close()
