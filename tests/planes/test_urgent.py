"""Urgent data (MSG_OOB): the stream arrives whole, the urgent byte in its place; it never ends early in order."""

from __future__ import annotations

import socket

import pytest

from stage import RELAYS, Stage
from support import eventually
from traffic import at_once, read_all

BEFORE, AFTER = b"a" * (4 << 20), b"b" * (1 << 20)


@pytest.fixture(params=RELAYS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def send_with_an_urgent_byte(sock: socket.socket, before: bytes, after: bytes) -> None:
    sock.sendall(before)
    sock.send(b"!", socket.MSG_OOB)
    sock.sendall(after)
    sock.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("half_closed", [False, True], ids=["both ways", "after the other way ended"])
@pytest.mark.parametrize("sender", ["client", "daemon"])
def test_a_stream_with_an_urgent_byte_arrives_whole_through_a_reader_that_stalls(
    stage: Stage, sender: str, half_closed: bool
) -> None:
    ends = stage.pair(stage.daemon("v1"))
    here, there = ends if sender == "client" else reversed(ends)
    if half_closed:
        there.shutdown(socket.SHUT_WR)
        assert here.recv(1) == b""
    with at_once(lambda: send_with_an_urgent_byte(here, BEFORE, AFTER)):
        assert there.recv(1, socket.MSG_PEEK) == b"a"
        the_reader_stalls(stage)
        got = read_all(there)
    assert got == BEFORE + b"!" + AFTER


def the_reader_stalls(stage: Stage) -> None:
    """Wait until the plane holds bytes that the reader does not take."""
    eventually(lambda: any(one.half_sent for one in stage.call(lambda: stage.plane.open_connections("v1")) or ()))


@pytest.mark.parametrize("sender", ["client", "daemon"])
def test_an_urgent_byte_at_the_very_end_is_part_of_the_stream(stage: Stage, sender: str) -> None:
    ends = stage.pair(stage.daemon("v1"))
    here, there = ends if sender == "client" else reversed(ends)
    send_with_an_urgent_byte(here, b"before", b"")
    assert read_all(there) == b"before!"
