"""What only the relay does, beyond the contract of every plane."""

from __future__ import annotations

import asyncio
import threading

from bulk_daemon import expected, pump_out, take_in
from stage import PLANES, Stage, Stand
from support import eventually, report, scaled
from turnout.core.connection_policy import Policy
from turnout.planes.plane import Plane, PlaneOptions
from turnout.planes.relay import Relay

MIB = 1 << 20


def test_while_new_connections_come_the_queue_before_them_gets_shorter() -> None:
    def unpaced(loop: asyncio.AbstractEventLoop, policy: Policy, stand: Stand) -> Plane:
        return Relay(loop, PlaneOptions(policy, release_per_tick=0))

    PLANES["relay without a pace"] = unpaced
    stage = Stage("relay without a pace")
    try:
        stage.set_upstream(None)
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


def test_a_bulk_transfer_hardly_enters_user_space() -> None:
    size = scaled(64, 1024) * MIB
    stage = Stage("relay")
    try:
        client, far = stage.pair(stage.daemon("v1"))
        sender = threading.Thread(target=pump_out, args=(client, size))
        sender.start()
        assert take_in(far, size) == expected(size)
        sender.join()
        counters = stage.plane.counters
    finally:
        stage.close()
    share = counters.copied_bytes / size
    report("bulk transfer", bytes=size, copied_bytes=counters.copied_bytes, share=share)
    assert counters.spliced_bytes > 0
    assert share < 0.01
