"""The router's services as they come and go, with listeners of the test's and no keeper."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine
from pathlib import Path
from typing import Any, cast

import uvloop

from fake_time import SkippingLoop
from turnout.config.settings import Address, Settings, dump_settings
from turnout.keeper.routers import RELEASE_TIMEOUT_S
from turnout.router.follow.registry import REST_S
from turnout.router.follow.settings import OpenedSettings
from turnout.router.router import Router
from turnout.state.home import Home, ServiceHome


@contextlib.asynccontextmanager
async def leading(home: Home) -> AsyncGenerator[Router]:
    """A router that leads, with the test's own group of tasks."""
    router = Router(asyncio.get_running_loop(), home)
    assert router._leader_lock.try_take()
    try:
        async with asyncio.TaskGroup() as router._group:
            yield router
            router._openings.close()
        await asyncio.sleep(0)  # what is done after a task
    finally:
        router._link.close()
        router._planes.close()
        router._leader_lock.release()
        for threads in (router._executor, router._files, router._journal):
            threads.shutdown(wait=False)


def play(
    story: Callable[[], Coroutine[Any, Any, None]],
    loop_factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop,
) -> None:
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(story())


def made(home: Home, name: str, listener: socket.socket) -> ServiceHome:
    """A service of that home, which listens there."""
    home.create()
    service = home.service(name)
    service.create()
    address = Address(*listener.getsockname()[:2])
    service.settings.write_bytes(dump_settings(Settings(name=name, listen=(address,))))
    return service


def test_a_service_that_is_released_as_soon_as_it_is_opened_accepts_no_client_any_more(tmp_path: Path) -> None:
    """The keeper's message may come before the first step of the service's task, which a cancelled task never makes."""
    home, listener = Home(tmp_path), socket.create_server(("127.0.0.1", 0))
    opened = OpenedSettings.read(made(home, "s", listener))

    async def story() -> None:
        async with leading(home) as router:
            router._opened(opened, None, [listener], {"op": "listen", "service": "s"})
            router.release_listeners("s")
            poller = router._planes._poller
        assert listener.fileno() == -1
        assert poller is None or not poller.members

    play(story)


def test_the_next_keeper_is_given_the_listeners_of_services_that_cannot_be_opened_yet(tmp_path: Path) -> None:
    """Else the address looks taken to it, by the router itself, for as long as that runs."""
    home, listener = Home(tmp_path), socket.create_server(("127.0.0.1", 0))
    service = made(home, "s", listener)
    service.settings.write_text("damaged")
    host, port = listener.getsockname()

    async def story() -> None:
        async with leading(home) as router:
            router.take_listeners("s", [listener], {"op": "listen", "service": "s", "home": 3})
            assert router.listeners() == [("s", host, port, listener.fileno())]
            assert router.group_homes() == {"s": 3}
            router.release_listeners("s")
            assert (router.listeners(), router.group_homes(), listener.fileno()) == ([], {}, -1)

    play(story)


def test_a_router_that_leaves_keeps_no_listener_of_a_service_that_it_could_not_open(tmp_path: Path) -> None:
    """Nothing would accept what the kernel queues there once its successor has closed it."""
    home, listener = Home(tmp_path), socket.create_server(("127.0.0.1", 0))
    service = made(home, "s", listener)
    service.settings.write_text("damaged")

    async def story() -> None:
        async with leading(home) as router:
            router.take_listeners("s", [listener], {"op": "listen", "service": "s"})
            router.release_lead()
            await router._hand_over()
            assert listener.fileno() == -1

    play(story)


class HangingService:
    """A service whose last write hangs with the file system of its home."""

    async def stop_deciding(self) -> None:
        await asyncio.sleep(REST_S)

    def begin_drain(self) -> None:
        """It has nothing."""


def test_a_home_that_hangs_keeps_a_router_no_longer_from_leaving_than_its_keeper_waits(tmp_path: Path) -> None:
    """The keeper kills a router that does not release the lead in time, and every client with it."""
    home = Home(tmp_path)
    home.create()
    hangs = threading.Event()

    async def story() -> None:
        loop = asyncio.get_running_loop()
        async with leading(home) as router:
            router._services["s"] = cast("Any", HangingService())
            router._restoring = loop.create_future()
            loop.run_in_executor(router._journal, hangs.wait)
            router.release_lead()
            began = loop.time()
            await router._hand_over()
            assert loop.time() - began < RELEASE_TIMEOUT_S
            assert not router._leader_lock.held
            hangs.set()

    play(story, SkippingLoop)
