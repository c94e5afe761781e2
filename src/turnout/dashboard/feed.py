"""Server-sent events: each page is sent the newest of each part, as fast as it takes it, and nothing is queued."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from typing import Any, Final

log: Final = logging.getLogger("turnout.dashboard")
MAX_PAGES: Final = 16
EVERY_S: Final = 0.5
UNWATCHED_S: Final = 5.0
HEARTBEAT_S: Final = 2.0
SEND_S: Final = 20.0
HEAD: Final = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"x-accel-buffering", b"no"),  # a proxy in front of it must not wait for more
)
Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]


class Feed:
    """Looks now and then, keeps the newest of each part, and sends it to the pages.

    A page that is slow misses what is outdated by the time it takes more. Owns no task: :meth:`run` runs in the task of
    the caller, and each stream in that of its request.

    Args:
        look: returns each part as one line of JSON; called in a thread, one call at a time.
        every_s: seconds between two looks while a page is open, and ``unwatched_s`` while none is.
        heartbeat_s: how long a stream is silent at most.
        send_s: how long a page may take no byte at all; then its stream ends.
        most: how many pages there may be at a time.
    """

    def __init__(
        self,
        look: Callable[[], Mapping[str, bytes]],
        *,
        every_s: float = EVERY_S,
        unwatched_s: float = UNWATCHED_S,
        heartbeat_s: float = HEARTBEAT_S,
        send_s: float = SEND_S,
        most: int = MAX_PAGES,
    ) -> None:
        self._look = look
        self._every_s = every_s
        self._unwatched_s = unwatched_s
        self._heartbeat_s = heartbeat_s
        self._send_s = send_s
        self._most = most
        self._parts: dict[str, tuple[int, bytes]] = {}
        self._version = 0
        self._changed = asyncio.Event()
        self._hurry = asyncio.Event()
        self._closed = False
        self.pages = 0

    @property
    def is_full(self) -> bool:
        return self.pages >= self._most

    async def run(self) -> None:
        """Look again and again, until :meth:`close`."""
        while not self._closed:
            self._hurry.clear()
            try:
                parts = await asyncio.to_thread(self._look)
            except Exception:  # what others wrote in a home must not end the page; the log has it
                log.exception("cannot read the status: the open pages keep the last one")
            else:
                for part, payload in parts.items():
                    self.publish(part, payload)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._every_s if self.pages else self._unwatched_s):
                    await self._hurry.wait()

    def hurry(self) -> None:
        """Look at once: something has just been done."""
        self._hurry.set()

    def publish(self, part: str, payload: bytes) -> None:
        """Make ``payload``, one line of JSON, the newest of ``part``. One that says the same as before is not sent."""
        if part in self._parts and self._parts[part][1] == payload:
            return
        self._version += 1
        self._parts[part] = (self._version, payload)
        self._wake()

    def close(self) -> None:
        """End every stream, and :meth:`run`."""
        self._closed = True
        self._hurry.set()
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def stream(self, receive: Receive, send: Send) -> None:
        """Serve one page (ASGI) until it goes, takes nothing any more, or the feed is closed."""
        self.pages += 1
        tasks: set[asyncio.Task[None]] = set()
        try:
            await send({"type": "http.response.start", "status": 200, "headers": list(HEAD)})
            self.hurry()
            async with asyncio.TaskGroup() as group:
                tasks = {group.create_task(self._send_all(send)), group.create_task(_until_gone(receive))}
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in tasks:
                    task.cancel()
        finally:
            self.pages -= 1

    async def _send_all(self, send: Send) -> None:
        sent: dict[str, int] = {}
        try:
            while not self._closed:
                changed = self._changed  # taken before anything is sent: what comes meanwhile is not slept over
                for part, (version, payload) in list(self._parts.items()):
                    if sent.get(part) != version:
                        sent[part] = version
                        await self._send(send, b"event: %s\ndata: %s\n\n" % (part.encode(), payload))
                try:
                    async with asyncio.timeout(self._heartbeat_s):
                        await changed.wait()
                except TimeoutError:
                    await self._send(send, b": nothing new\n\n")  # a comment (HTML, section 9.2.6): the line is alive
            await self._send(send, b"", more=False)
        except TimeoutError:
            return  # it takes nothing any more

    async def _send(self, send: Send, body: bytes, *, more: bool = True) -> None:
        async with asyncio.timeout(self._send_s):
            await send({"type": "http.response.body", "body": body, "more_body": more})


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
