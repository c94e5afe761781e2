"""Who is held is served first in first out, however many they are: late is only who waits for a daemon that refuses."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from stage import RELAYS, Stage
from support import eventually
from traffic import read_exactly
from turnout.core.connection_policy import Policy
from turnout.planes.plane import Upstream

HELD = 150


@pytest.fixture(params=RELAYS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def stage(kind: str) -> Iterator[Stage]:
    found = Stage(kind, policy=Policy(hold_max=2 * HELD))
    try:
        yield found
    finally:
        found.close()


def numbered(stage: Stage, numbers: range) -> list[socket.socket]:
    """Clients that come one after the other, and say which one they are."""
    clients = []
    for number in numbers:
        clients.append(stage.client())
        clients[-1].sendall(number.to_bytes(2, "big"))
        eventually(lambda number=number: stage.plane.counters.accepted == number + 1)  # type: ignore[misc]  # mypy cannot infer defaults
    return clients


def test_all_who_waited_are_served_in_their_order_however_little_patience_is_left(stage: Stage) -> None:
    """The state is idle by the time the daemon is there: only one that refuses is given up after a moment."""
    stage.set_upstream(None)
    clients = numbered(stage, range(HELD))
    daemon = stage.daemon("v1", point=False)
    stage.set_upstream(daemon, patience_s=0.001)
    order = []
    for _ in clients:
        with daemon.accept() as far:
            order.append(int.from_bytes(read_exactly(far, 2), "big"))
    assert order == list(range(HELD))
    assert stage.plane.counters.hold_timeout == 0


@pytest.mark.parametrize("held", [True, False], ids=["held before", "all at once"])
def test_a_small_accept_queue_gets_as_many_as_it_takes_and_no_handshake_is_dropped(stage: Stage, *, held: bool) -> None:
    """A dropped one is sent again after 1, 3, 7 s, so those behind it would come first."""
    daemon = stage.daemon("v1", point=False)
    daemon.listener.listen(4)
    stage.set_upstream(None if held else daemon)
    clients = numbered(stage, range(HELD))
    stage.set_upstream(daemon, patience_s=0.001)
    order = []
    pause = threading.Event()
    for _ in clients:
        pause.wait(0.002)  # it takes some time for each
        with daemon.accept() as far:
            order.append(int.from_bytes(read_exactly(far, 2), "big"))
    assert order == list(range(HELD))
    assert stage.plane.counters.hold_timeout == 0


def test_clients_that_wait_reach_a_daemon_of_another_address_family(kind: str) -> None:
    """A listener of another family came meanwhile: their sockets were made for the family of the first."""
    stage = Stage(kind)
    try:
        stage.set_upstream(None)
        client = stage.client()
        eventually(lambda: stage.plane.waiting() == 1)
        with (
            socket.create_server(("::1", 0), family=socket.AF_INET6) as second,
            socket.create_server(("::1", 0), family=socket.AF_INET6) as daemon,
        ):
            stage.call(lambda: stage.plane.add_listener(second))
            target = Upstream("a", *daemon.getsockname()[:2])
            stage.call(lambda: stage.plane.set_upstream(target, patience_s=20.0))
            daemon.settimeout(20)
            far, _ = daemon.accept()
            with far:
                far.sendall(b"hello")
                assert client.recv(100) == b"hello"
    finally:
        stage.close()
