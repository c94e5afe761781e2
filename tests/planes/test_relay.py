"""What only the relay does, beyond the contract of every plane."""

from __future__ import annotations

import asyncio

from stage import PLANES, Stage
from support import eventually
from turnout.planes.plane import Plane
from turnout.planes.policy import Policy
from turnout.planes.relay import Relay


def test_while_new_connections_come_the_queue_before_them_gets_shorter() -> None:
    def unpaced(loop: asyncio.AbstractEventLoop, policy: Policy) -> Plane:
        return Relay(loop, policy=policy, release_per_tick=0)

    PLANES["relay without a pace"] = unpaced
    stage = Stage("relay without a pace")
    try:
        stage.point_at(None)
        held = [stage.client() for _ in range(4)]
        eventually(lambda: stage.plane.counters.held_now == 4)
        daemon = stage.daemon("b")
        assert stage.plane.counters.held_now == 4
        held += [stage.client() for _ in range(4)]
        eventually(lambda: not stage.plane.counters.held_now)
        for _ in held:
            daemon.accept().close()
    finally:
        del PLANES["relay without a pace"]
        stage.close()
