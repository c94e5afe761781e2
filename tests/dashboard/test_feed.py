"""The pages' events: the newest of each part, bounded in number, time and memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from turnout.dashboard.feed import Feed

LONG_S = 60.0


class Page:
    """A page that takes what it is sent when it is told to. ``gone`` ends it."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()
        self.takes = asyncio.Event()
        self.takes.set()
        self.bodies: list[bytes] = []
        self.ended = False
        self._more = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        await self.takes.wait()
        if message["type"] == "http.response.body":
            self.bodies.append(message["body"])
            self.ended = not message["more_body"]
            self._more.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(LONG_S):
            while not condition():
                self._more.clear()
                await self._more.wait()

    @property
    def heard(self) -> bytes:
        return b"".join(self.bodies)


def nothing() -> dict[str, bytes]:
    return {}


def feed(look: Callable[[], dict[str, bytes]] = nothing, **bounds: Any) -> Feed:
    return Feed(look, **{"heartbeat_s": LONG_S, "send_s": LONG_S, "every_s": LONG_S, "unwatched_s": LONG_S, **bounds})


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(LONG_S):
            await scenario()

    asyncio.run(bounded())


async def settle() -> None:
    """Everybody who can go on has done so."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_a_page_is_sent_each_part_and_then_what_changes() -> None:
    async def scenario() -> None:
        own, page = feed(), Page()
        own.publish("look", b"1")
        own.publish("logs", b"2")
        async with asyncio.TaskGroup() as group:
            group.create_task(own.stream(page.receive, page.send))
            await page.until(lambda: len(page.bodies) == 2)
            own.publish("look", b"1")
            own.publish("look", b"3")
            await page.until(lambda: len(page.bodies) == 3)
            own.close()
        assert page.heard == b"event: look\ndata: 1\n\nevent: logs\ndata: 2\n\nevent: look\ndata: 3\n\n"
        assert page.ended

    run(scenario)


def test_a_look_that_fails_is_logged_and_looked_again(caplog: pytest.LogCaptureFixture) -> None:
    looks = 0

    def look() -> dict[str, bytes]:
        nonlocal looks
        looks += 1
        if looks == 1:
            raise OverflowError("cannot convert float infinity to integer")
        return {"look": b"1"}

    async def scenario() -> None:
        own, page = feed(look, every_s=0.0, unwatched_s=0.0), Page()
        async with asyncio.TaskGroup() as group:
            group.create_task(own.run())
            group.create_task(own.stream(page.receive, page.send))
            await page.until(lambda: b"data: 1" in page.heard)
            own.close()

    run(scenario)
    assert "OverflowError" in caplog.text


def test_a_slow_page_misses_what_is_outdated_and_nothing_is_queued() -> None:
    async def scenario() -> None:
        own, page = feed(), Page()
        async with asyncio.TaskGroup() as group:
            group.create_task(own.stream(page.receive, page.send))
            await settle()
            page.takes.clear()
            for number in range(1000):
                own.publish("look", b"%d" % number)
                await settle()
            page.takes.set()
            await page.until(lambda: b"data: 999\n" in page.heard)
            own.close()
        assert page.heard.count(b"event: look") <= 2

    run(scenario)


def test_a_page_that_takes_nothing_is_let_go() -> None:
    async def scenario() -> None:
        own, page = feed(send_s=0.05), Page()
        own.publish("look", b"1")
        stuck = asyncio.create_task(own.stream(page.receive, page.send))
        await settle()
        page.takes.clear()
        own.publish("look", b"2")
        await stuck
        assert own.pages == 0

    run(scenario)


def test_a_page_that_goes_is_counted_out_at_once() -> None:
    async def scenario() -> None:
        own, page = feed(most=1), Page()
        stream = asyncio.create_task(own.stream(page.receive, page.send))
        await settle()
        assert own.is_full
        page.gone.set()
        await stream
        assert not own.is_full

    run(scenario)


def test_a_silent_line_is_kept_alive() -> None:
    async def scenario() -> None:
        own, page = feed(heartbeat_s=0.01), Page()
        async with asyncio.TaskGroup() as group:
            group.create_task(own.stream(page.receive, page.send))
            await page.until(lambda: page.heard.count(b": nothing new\n\n") >= 3)
            own.close()

    run(scenario)


def test_a_new_page_does_not_wait_for_the_next_look() -> None:
    async def scenario() -> None:
        looks = 0
        looked, loop = asyncio.Event(), asyncio.get_running_loop()

        def look() -> dict[str, bytes]:
            nonlocal looks
            looks += 1
            loop.call_soon_threadsafe(looked.set)
            return {"look": b"%d" % looks}

        own, page = feed(look), Page()
        async with asyncio.TaskGroup() as group:
            group.create_task(own.run())
            await looked.wait()
            group.create_task(own.stream(page.receive, page.send))
            await page.until(lambda: b"data: 2\n" in page.heard)
            own.close()

    run(scenario)
