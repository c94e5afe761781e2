"""Two transports as one connection: what is passed on, in which order, and how it ends."""

from __future__ import annotations

import errno
import socket
from collections import deque
from typing import Any, cast

import pytest

from turnout.planes.plane import Counters
from turnout.planes.stream.leg import BURST_BYTES, SMALL_BYTES, Leg, LegPair
from turnout.system.net.tcp import RESET_LINGER


class FakeSocket:
    """``rest``: what a read finds, an error among it; after that nothing is there. ``error``: what SO_ERROR answers."""

    def __init__(self) -> None:
        self.error = 0
        self.resets = False
        self.closed = False
        self.rest: deque[bytes | OSError] = deque()

    def getsockopt(self, level: int, name: int) -> int:
        assert (level, name) == (socket.SOL_SOCKET, socket.SO_ERROR)
        return self.error

    def setsockopt(self, level: int, name: int, value: bytes) -> None:
        assert (level, name) == (socket.SOL_SOCKET, socket.SO_LINGER)
        self.resets = value == RESET_LINGER

    def recv(self, _size: int) -> bytes:
        if not self.rest:
            raise BlockingIOError
        found = self.rest.popleft()
        if isinstance(found, OSError):
            raise found
        return found

    def getpeername(self) -> tuple[str, int]:
        return "192.0.2.7", 50000

    def close(self) -> None:
        self.closed = True


class FakeTransport:
    """``takes``: how much of what is written goes out; the rest stays in its buffer. ``ends``: what was done to it."""

    def __init__(self) -> None:
        self.takes = 1 << 30
        self.written = b""
        self.unsent = b""
        self.reads = True
        self.ends: list[str] = []

    def write(self, data: bytes) -> None:
        taken, left = data[: self.takes], data[self.takes :]
        self.written += taken
        self.takes -= len(taken)
        self.unsent += left

    def get_write_buffer_size(self) -> int:
        return len(self.unsent)

    def set_write_buffer_limits(self, high: int) -> None:
        self.ends.append(f"limit {high}")

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True

    def write_eof(self) -> None:
        self.ends.append("eof")

    def close(self) -> None:
        self.ends.append("close")

    def abort(self) -> None:
        self.ends.append("abort")


class Scene:
    def __init__(self) -> None:
        self.counters = Counters()
        self.half_closed: set[LegPair] = set()
        self.ended: list[LegPair] = []
        self.here, self.there = FakeSocket(), FakeSocket()
        sockets = cast("socket.socket", cast("Any", self.here)), cast("socket.socket", cast("Any", self.there))
        self.pair = LegPair(7, *sockets, "a", 100.0, self.counters, self.half_closed, self.ended.append)
        self.client, self.daemon = FakeTransport(), FakeTransport()

    def open(self) -> Scene:
        self.made(self.pair.daemon)
        self.made(self.pair.client)
        return self

    def made(self, leg: Leg) -> None:
        leg.connection_made(cast("Any", self.daemon if leg is self.pair.daemon else self.client))

    def ends(self, leg: Leg) -> None:
        """An end of stream comes."""
        (self.here if leg is self.pair.client else self.there).rest.append(b"")
        assert leg.eof_received()


@pytest.fixture
def scene() -> Scene:
    return Scene().open()


def test_bytes_go_to_the_other_side_and_are_counted_for_both_directions(scene: Scene) -> None:
    scene.pair.client.data_received(b"question")
    scene.pair.daemon.data_received(b"the answer")
    assert (scene.daemon.written, scene.client.written) == (b"question", b"the answer")
    assert (scene.pair.moved(), scene.counters.copied_bytes) == ((8, 10), 18)
    info = scene.pair.info(103.0, peers=True)
    assert (info.id, info.peer, info.age_s, info.answered, info.half_sent) == (7, "192.0.2.7:50000", 3.0, True, False)


def test_what_the_other_side_has_not_taken_is_not_moved_and_pauses_its_source(scene: Scene) -> None:
    scene.daemon.takes = 3
    scene.pair.client.data_received(b"question")
    scene.pair.daemon.pause_writing()
    assert (scene.pair.moved(), scene.client.reads) == ((3, 0), False)
    assert scene.pair.info(100.0, peers=False).half_sent
    scene.daemon.unsent = b""
    scene.pair.daemon.resume_writing()
    assert (scene.pair.moved(), scene.client.reads) == ((8, 0), True)


def test_a_daemon_that_speaks_before_the_client_is_there_is_heard_once_it_is() -> None:
    scene = Scene()
    scene.made(scene.pair.daemon)
    scene.pair.daemon.data_received(b"220 ready")
    assert (scene.daemon.reads, scene.pair.moved()) == (False, (0, 0)), "one read at most waits"
    scene.made(scene.pair.client)
    assert (scene.client.written, scene.daemon.reads) == (b"220 ready", True)


def test_an_end_that_came_before_the_client_was_there_follows_its_bytes() -> None:
    scene = Scene()
    scene.made(scene.pair.daemon)
    scene.pair.daemon.data_received(b"bye")
    scene.ends(scene.pair.daemon)
    scene.made(scene.pair.client)
    assert (scene.client.written, scene.client.ends, scene.daemon.ends) == (b"bye", ["eof"], [])


def test_one_end_leaves_the_other_direction_open_and_both_close_the_connection(scene: Scene) -> None:
    scene.ends(scene.pair.client)
    assert (scene.daemon.ends, scene.client.ends, scene.half_closed) == (["eof"], [], {scene.pair})
    scene.pair.daemon.data_received(b"answer")
    assert scene.client.written == b"answer"
    scene.ends(scene.pair.daemon)
    assert (scene.daemon.ends, scene.client.ends) == (["eof", "close"], ["close"])
    scene.pair.client.connection_lost(None)
    assert not scene.ended
    scene.pair.daemon.connection_lost(None)
    assert (scene.ended, scene.half_closed) == ([scene.pair], set())


@pytest.mark.parametrize("how", ["a pending error", "a read that stops early"])
def test_what_looks_like_an_end_and_is_none_resets_both_sides(scene: Scene, how: str) -> None:
    if how == "a pending error":
        scene.here.error = errno.ECONNRESET
        scene.here.rest.append(b"")  # once the error was taken, a read sees an end
    else:
        scene.here.rest += [b"last words", ConnectionResetError()]
    assert scene.pair.client.eof_received()
    assert (scene.client.ends, scene.daemon.ends) == (["abort"], ["abort"])
    assert (scene.here.resets, scene.there.resets) == (True, True)
    assert scene.daemon.written == (b"" if how == "a pending error" else b"last words")


def test_a_reset_reaches_the_other_side_behind_the_bytes_that_came_before_it(scene: Scene) -> None:
    scene.daemon.takes = 3
    scene.pair.client.data_received(b"question")
    scene.here.error = errno.ECONNRESET
    scene.pair.client.eof_received()
    assert scene.daemon.ends == ["limit 0"], "it is owed bytes"
    scene.daemon.unsent = b""
    scene.pair.daemon.resume_writing()
    assert (scene.daemon.ends[-1], scene.there.resets) == ("abort", True)


def test_what_a_daemon_said_before_its_reset_is_delivered_although_a_write_met_it_first(scene: Scene) -> None:
    scene.there.rest += [b"too large", ConnectionResetError()]
    scene.pair.daemon.connection_lost(BrokenPipeError())
    assert scene.client.written == b"too large"
    assert scene.client.ends == ["abort"]
    scene.pair.client.connection_lost(None)
    assert scene.ended == [scene.pair]


def test_the_bytes_that_a_lost_side_never_took_are_not_counted_as_moved(scene: Scene) -> None:
    scene.daemon.takes = 3
    scene.pair.client.data_received(b"question")
    scene.pair.daemon.connection_lost(ConnectionResetError())
    scene.daemon.unsent = b""
    assert scene.pair.moved() == (3, 0)


def test_a_burst_has_its_destination_end_by_a_reset_until_it_is_over(scene: Scene) -> None:
    """What a killed process has open is closed by the kernel in order, and half a download would look whole."""
    scene.pair.daemon.data_received(b"x" * BURST_BYTES)
    assert (scene.here.resets, scene.there.resets) == (True, False)
    resets: list[bool] = []
    for size in (SMALL_BYTES, 1, BURST_BYTES):
        scene.pair.daemon.data_received(b"x" * size)
        resets.append(scene.here.resets)
    assert resets == [True, False, True]
    scene.ends(scene.pair.daemon)
    assert (scene.here.resets, scene.client.ends) == (False, ["eof"])


def test_the_end_in_order_waits_for_nothing_and_is_a_reset_where_bytes_are_under_way(scene: Scene) -> None:
    scene.pair.end()
    assert (scene.client.ends, scene.daemon.ends) == (["close"], ["close"])
    other = Scene().open()
    other.daemon.takes = 3
    other.pair.client.data_received(b"question")
    other.pair.end()
    assert (other.client.ends, other.daemon.ends, other.here.resets) == (["abort"], ["abort"], True)


def test_a_connection_that_is_ended_before_its_transports_are_there_ends_once_they_are() -> None:
    scene = Scene()
    scene.pair.end()
    scene.made(scene.pair.daemon)
    assert scene.daemon.ends == []
    scene.made(scene.pair.client)
    assert (scene.client.ends, scene.daemon.ends) == (["close"], ["close"])


def test_a_transport_that_comes_for_a_broken_connection_is_reset() -> None:
    scene = Scene()
    scene.pair.reset()
    scene.made(scene.pair.daemon)
    assert (scene.daemon.ends, scene.there.resets) == (["abort"], True)


def test_a_leg_that_never_gets_its_transport_is_reset_and_the_pair_ends_once() -> None:
    scene = Scene()
    scene.made(scene.pair.daemon)
    scene.pair.client.never_made()
    scene.pair.client.never_made()
    assert (scene.here.resets, scene.here.closed, scene.daemon.ends) == (True, True, ["abort"])
    scene.pair.daemon.connection_lost(None)
    assert scene.ended == [scene.pair]
