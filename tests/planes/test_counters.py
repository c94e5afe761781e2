"""The counters of a plane balance: each client that was accepted is here, or one counter has its end."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from stage import RELAYS, Stage
from support import eventually
from turnout.core.connection_policy import Policy, networks
from turnout.system.net.tcp import RESET_LINGER

ENDS = ("closed", "denied", "hold_overflow", "hold_timeout", "hold_left", "reset_unrouted")


@pytest.fixture(params=RELAYS)
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    found = Stage(request.param, policy=Policy(hold_max=4))
    try:
        yield found
    finally:
        found.close()


def comes(stage: Stage) -> None:
    """A client that may be reset as soon as it comes."""
    with contextlib.suppress(ConnectionError):
        stage.client()


def resets(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_LINGER)
    sock.close()


def come_and_go(stage: Stage) -> None:
    """A client that has reset its connection before the plane accepts it."""
    with socket.create_connection(stage.address, 20) as client:
        resets(client)


def gone_at_its_introduction(stage: Stage) -> str:
    daemon = stage.daemon("v1", point=False)
    daemon.target = msgspec.structs.replace(daemon.target, proxy_protocol=True)
    stage.set_upstream(daemon)
    stage.call(lambda: come_and_go(stage))
    return "closed"


def reset_by_the_daemon_at_its_connect(stage: Stage) -> str:
    def dial(*_: object) -> int:
        return errno.ECONNRESET

    stage.daemon("v1")
    acceptor: Any = vars(stage.plane)["_acceptor"]
    acceptor._dial = dial
    comes(stage)
    return "closed"


def gone_while_it_was_held(stage: Stage) -> str:
    stage.set_upstream(None)
    client = stage.client()
    eventually(lambda: stage.plane.counters.held_now == 1)
    resets(client)
    return "hold_left"


def served(stage: Stage) -> str:
    client, far = stage.pair(stage.daemon("v1"))
    client.close()
    far.close()
    return "closed"


def nothing_serves(stage: Stage) -> str:
    stage.set_upstream(None, patience_s=0.0)
    comes(stage)
    return "reset_unrouted"


def one_too_many(stage: Stage) -> str:
    stage.set_upstream(None)
    for _ in range(5):
        comes(stage)
    return "hold_overflow"


def waits_too_long(stage: Stage) -> str:
    stage.set_upstream(None, patience_s=0.01)
    comes(stage)
    return "hold_timeout"


def a_stranger(stage: Stage) -> str:
    stage.call(lambda: stage.plane.apply(Policy(allow=networks(("10.0.0.0/8",)))))
    comes(stage)
    return "denied"


@pytest.mark.parametrize(
    "end",
    [
        gone_at_its_introduction,
        reset_by_the_daemon_at_its_connect,
        gone_while_it_was_held,
        served,
        nothing_serves,
        one_too_many,
        waits_too_long,
        a_stranger,
    ],
)
def test_each_end_of_a_client_is_counted_once(stage: Stage, end: Callable[[Stage], str]) -> None:
    counter = end(stage)
    counters = stage.plane.counters
    eventually(lambda: getattr(counters, counter) == 1, why=f"{counter} of {counters}")

    def balance() -> tuple[int, int]:
        here = stage.plane.connections() + stage.plane.waiting()
        return counters.accepted, here + sum(getattr(counters, name) for name in ENDS)

    accepted, known = stage.call(balance)
    assert accepted == known > 0, counters
