"""The pump by itself, where the order of what it meets can be chosen."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any, cast

import pytest

from turnout.planes.flow import FlowState
from turnout.planes.plane import Counters
from turnout.planes.pump import Flow, Pair, Pump


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname(), 20)
        far, _ = listener.accept()
    return near, far


class Bench:
    """A client and a daemon with a pump between them that moves only when it is told."""

    def __init__(self) -> None:
        self.client, inner = tcp_pair()
        outer, self.daemon = tcp_pair()
        for sock in (inner, outer):
            sock.setblocking(False)
        self.epoll = select.epoll()
        self.epoll.register(inner.fileno(), 0)
        self.closed: list[Pair] = []
        self.flows: dict[int, Flow] = {}
        self.pump = Pump(self.epoll, self.flows, Counters(), self.closed.append, lambda: None)
        self.pair = self.pump.add(inner, outer, "boot")

    def turn(self) -> None:
        """One round of the loop: events, then what is to be read again."""
        for fd, events in self.epoll.poll(0.05):
            flow = self.flows.get(fd)
            if flow:
                self.pump.handle(flow, events)
        self.pump.run_again()

    def close(self) -> None:
        self.pump.close()
        self.epoll.close()
        self.client.close()
        self.daemon.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    found = Bench()
    with contextlib.closing(found):
        yield found


def ends_by_reset(sock: socket.socket) -> bool:
    sock.settimeout(20)
    try:
        while sock.recv(65536):
            pass
    except ConnectionResetError:
        return True
    return False


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def test_a_reset_that_the_send_meets_first_is_still_a_reset_for_the_other_side(bench: Bench) -> None:
    """The error is taken by the send; what the read sees after it looks like an orderly end, and is none."""
    reset(bench.daemon)
    bench.client.sendall(b"more of the upload")
    bench.pump.read(bench.pair.up)  # before the epoll has told of the reset
    for _ in range(5):
        bench.turn()
    assert bench.closed == [bench.pair]
    assert ends_by_reset(bench.client)


def test_what_the_daemon_said_before_its_reset_is_delivered_although_the_send_meets_it_first(bench: Bench) -> None:
    bench.daemon.sendall(b"too large")
    reset(bench.daemon)
    bench.client.sendall(b"more of the upload")
    bench.pump.read(bench.pair.up)
    got = b""
    with contextlib.suppress(BlockingIOError, ConnectionResetError):
        for _ in range(3):
            bench.turn()
            bench.client.setblocking(False)
            got += bench.client.recv(100)
    for _ in range(5):
        bench.turn()
    assert got == b"too large"
    assert bench.closed == [bench.pair]


def test_a_source_that_dies_while_it_is_paused_leaves_the_epoll_and_is_read_to_its_end(bench: Bench) -> None:
    bench.client.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        for _ in range(1000):
            sent += bench.client.send(b"x" * 65536)
            bench.pump.handle(bench.pair.up, select.EPOLLIN)
    assert bench.pair.up.state.blocked
    reset(bench.client)
    bench.turn()
    assert bench.pair.up.state is FlowState.ORPHANED_BLOCKED
    assert bench.epoll.poll(0.05) == [], "it spins on a descriptor that nothing is read from"
    bench.daemon.settimeout(0.05)
    arrived, ended = 0, False
    for _ in range(10_000):
        with contextlib.suppress(TimeoutError):
            try:
                arrived += len(bench.daemon.recv(1 << 20))
            except ConnectionResetError:
                ended = True
                break
        bench.turn()
    assert ended, "the reset was never passed on"
    assert 0 < arrived <= sent


def lingers(sock: socket.socket) -> tuple[int, int]:
    on, seconds = struct.unpack("ii", sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8))
    return on, seconds


def test_a_process_that_dies_in_a_burst_resets_its_destination_and_one_that_ends_it_leaves_nothing_of_that(
    bench: Bench,
) -> None:
    """The kernel closes what a killed process had, in order unless it was told otherwise (socket(7), SO_LINGER)."""
    sender = threading.Thread(target=bench.client.sendall, args=(bytes(1 << 20),))
    sender.start()
    bench.daemon.settimeout(20)
    came = 0
    while bench.pair.up.pipe is None:
        bench.turn()
    assert lingers(bench.pair.up.dst) == (1, 0)
    assert lingers(bench.pair.down.dst) == (0, 0), "nothing big goes that way"
    while came < 1 << 20:
        bench.turn()
        with contextlib.suppress(BlockingIOError):
            came += len(bench.daemon.recv(1 << 20, socket.MSG_DONTWAIT))
    sender.join()
    bench.client.shutdown(socket.SHUT_WR)
    while bench.pair.up.state is not FlowState.ENDED:
        bench.turn()
    assert lingers(bench.pair.up.dst) == (0, 0)
    assert bench.daemon.recv(1) == b""


def test_a_burst_whose_connection_is_ended_in_order_is_no_reset(bench: Bench) -> None:
    bench.client.sendall(bytes(200_000))
    while bench.pair.up.pipe is None or bench.pair.up.count < 200_000:
        bench.turn()
    bench.pump.end(bench.pair)
    assert not ends_by_reset(bench.daemon)


class FullEpoll:
    """This user has no more watches, after ``left`` of them."""

    def __init__(self, left: int) -> None:
        self.left = left

    def register(self, _fd: int, _events: int) -> None:
        if not self.left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.left -= 1


@pytest.mark.parametrize("left", [0, 1])
def test_a_connection_that_cannot_be_watched_is_reset_on_both_sides(left: int) -> None:
    """epoll_ctl(2). An error would leave both sockets open, and nothing would ever read from them."""
    client, inner = tcp_pair()
    outer, daemon = tcp_pair()
    flows: dict[int, Flow] = {}
    closed: list[Pair] = []
    pump = Pump(cast("Any", FullEpoll(left)), flows, Counters(), closed.append, lambda: None)
    pair = pump.add(inner, outer, "boot", fresh=True)
    assert (pair.closed, closed, flows) == (True, [pair], {})
    with client, daemon:
        assert ends_by_reset(client)
        assert ends_by_reset(daemon)
