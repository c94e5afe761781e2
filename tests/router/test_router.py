"""The router's services as they come and go, with listeners of the test's and no keeper."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import uvloop

from turnout.config.settings import Address, Settings, dump_settings
from turnout.router.follow.settings import OpenedSettings
from turnout.router.router import Router
from turnout.state.home import Home


def test_a_service_that_is_released_as_soon_as_it_is_opened_accepts_no_client_any_more(tmp_path: Path) -> None:
    """The keeper's message may come before the first step of the service's task, which a cancelled task never makes."""
    home = Home(tmp_path)
    home.create()
    service = home.service("s")
    service.create()
    listener = socket.create_server(("127.0.0.1", 0))
    service.settings.write_bytes(dump_settings(Settings(name="s", listen=(Address(*listener.getsockname()[:2]),))))

    async def run() -> None:
        router = Router(asyncio.get_running_loop(), home)
        assert router._leader_lock.try_take()
        try:
            async with asyncio.TaskGroup() as router._group:
                router._opened(OpenedSettings.read(service), None, [listener], {"op": "listen", "service": "s"})
                plane = router._services["s"].plane
                router.release_listeners("s")
            await asyncio.sleep(0)
            assert listener.fileno() == -1
            assert plane.waiting() == 0
            assert not router._planes._poller or not router._planes._poller.members
        finally:
            router._planes.close()
            router._leader_lock.release()
            for threads in (router._executor, router._files, router._journal):
                threads.shutdown(wait=False)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
