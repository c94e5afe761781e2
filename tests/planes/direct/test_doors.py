"""Doors from threads of the router: opened and shut by the loop that steers."""

from __future__ import annotations

import asyncio
import threading

import pytest

from turnout.core.slots import source_of
from turnout.planes.direct.doors import Doors, ThreadDoor
from turnout.reuseport.program import Door


def test_a_thread_has_its_door_opened_and_shut_by_the_loop() -> None:
    doors, calls = Doors(), list[object]()
    doors.renew = lambda: calls.append((threading.get_ident(), [*doors.all]))

    async def run() -> None:
        loop = asyncio.get_running_loop()
        door = ThreadDoor(loop, doors)

        def connects() -> None:
            with door(source_of(3), 77):
                calls.append("connects")
            doors.renew = None
            with pytest.raises(OSError, match="does not steer"), door(source_of(3), 77):
                calls.append("never")

        await asyncio.to_thread(connects)

    asyncio.run(run())
    here = threading.get_ident()
    assert calls == [(here, [Door(3, source_of(3), 77)]), "connects", (here, [])]


def test_a_loop_that_has_ended_opens_no_door() -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    with pytest.raises(ConnectionRefusedError, match="closed"), ThreadDoor(loop, Doors())(source_of(3), 77):
        pass
