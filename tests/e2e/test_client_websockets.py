"""Websockets through the fixed address: one stays for all switches, others come and go."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

from bulk_daemon import block
from e2e_support import Turnout
from programs import wheel
from repeated import over_and_over
from support import eventually, report, scaled

SUPPORT = Path(__file__).parents[1] / "support"


@pytest.mark.timeout(600)
def test_a_websocket_outlives_switches_and_new_ones_reach_the_new_daemon(turnout: Turnout) -> None:
    wheel("websockets")
    from websockets.sync.client import ClientConnection, connect  # noqa: PLC0415  # it may not be installed

    switches = scaled(2, 30)
    uri = f"ws://127.0.0.1:{turnout.port}/"
    seen: set[str] = set()

    def deploy(version: str, verb: str) -> None:
        command = [sys.executable, "-P", str(SUPPORT / "websocket_daemon.py"), "{port}", version]
        turnout.configure(command, version=version, observe="200ms", deadline="none")
        turnout.run(verb)

    def opened() -> ClientConnection:
        return connect(uri, compression=None, max_size=None, proxy=None, open_timeout=60, ping_interval=None)

    def come_and_go() -> None:
        with opened() as connection:
            seen.add(str(connection.recv(60)))
            for number in range(3):
                connection.send(block(number))
                assert connection.recv(60) == block(number)

    deploy("v0", "up")
    with opened() as lasting:
        assert lasting.recv(60) == "v0"
        exchanged = 0
        lock = threading.Lock()

        def exchange() -> None:
            nonlocal exchanged
            with lock:
                lasting.send(f"message {exchanged}")
                assert lasting.recv(60) == f"message {exchanged}"
                exchanged += 1

        with over_and_over(exchange, clients=1) as kept, over_and_over(come_and_go) as others:
            others.again()
            for number in range(1, switches + 1):
                deploy(f"v{number}", "deploy")
                others.again(times=3)
                kept.again()
        assert lasting.ping().wait(60), "a pong comes from the daemon that it began with"
    eventually(lambda: len(turnout.daemons()) == 1, why="an old daemon is left without connections")
    report("websockets", switches=switches, messages=exchanged, connections=others.times)
    assert kept.errors + others.errors == []
    assert seen == {f"v{number}" for number in range(switches + 1)}
