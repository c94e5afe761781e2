"""A client is handed over only to a daemon that lived after it was connected to: its port may be another program's."""

from __future__ import annotations

import socket

import pytest

from stage import RELAYS, Stage
from support import eventually


@pytest.fixture(params=RELAYS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_client_whose_daemon_ended_after_the_connect_goes_back_to_the_hold_unread(stage: Stage) -> None:
    taken = stage.daemon("dead", point=False)
    stage.stand.ended.add("dead")
    stage.set_upstream(taken)
    client = stage.client()
    client.sendall(b"secret")
    with taken.accept() as stranger, pytest.raises(ConnectionResetError):
        stranger.recv(100)
    assert stage.call(stage.plane.connections) == 0
    far = stage.daemon("v2").accept()
    assert far.recv(100) == b"secret"
    far.sendall(b"thanks")
    assert client.recv(100) == b"thanks"
    far.close()


def test_so_does_a_client_whose_connect_took_its_time(stage: Stage) -> None:
    """The kernel did not answer at once: by the time it does, the daemon has ended."""
    taken = stage.daemon("dead", point=False)
    taken.listener.listen(0)
    with socket.create_connection(taken.listener.getsockname(), 20):  # its queue is full
        stage.set_upstream(taken)
        client = stage.client()
        client.sendall(b"secret")
        eventually(lambda: stage.plane.counters.accepted == 1)
        assert stage.plane.counters.connect_failed == 0
        stage.stand.ended.add("dead")
        taken.accept().close()
    with taken.accept() as stranger, pytest.raises(ConnectionResetError):
        stranger.recv(100)
    eventually(lambda: stage.plane.counters.connect_failed == 1)  # counted in the loop's thread, after the reset
    far = stage.daemon("v2").accept()
    assert far.recv(100) == b"secret"
    far.close()
