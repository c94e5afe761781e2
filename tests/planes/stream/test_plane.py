"""What the loop's transports do not tell the stream plane, and it finds out all the same."""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from stage import Stage
from support import eventually


@pytest.fixture
def streams() -> Iterator[Stage]:
    stage = Stage("stream")
    with contextlib.closing(stage):
        yield stage


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def read_to_the_end(sock: socket.socket) -> tuple[bytes, bool]:
    """Everything, and whether it ended by a reset."""
    data = b""
    try:
        while part := sock.recv(65536):
            data += part
    except ConnectionResetError:
        return data, True
    return data, False


def test_a_reset_behind_unread_bytes_is_no_end_of_stream(streams: Stage) -> None:
    """libuv reads what is there and, as the socket is dead both ways, reports an end."""
    daemon = streams.daemon("v1")
    for _ in range(20):
        client, far = streams.pair(daemon)
        client.sendall(b"x" * 5000)
        reset(client)
        _, by_reset = read_to_the_end(far)
        assert by_reset


def test_a_reset_after_the_end_of_stream_is_passed_on_although_nothing_watches(streams: Stage) -> None:
    client, far = streams.pair(streams.daemon("v1"))
    client.sendall(b"question")
    client.shutdown(socket.SHUT_WR)
    assert far.recv(100) == b"question"
    eventually(lambda: far.recv(1) == b"")
    reset(client)
    eventually(lambda: streams.call(streams.plane.connections) == 0, why="the reset was not noticed")
    assert far.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), "an end, and no reset"


def test_a_reset_of_a_paused_client_ends_the_connection_once_the_daemon_reads(streams: Stage) -> None:
    client, far = streams.pair(streams.daemon("v1"))
    client.setblocking(False)
    sent = 0

    def stalls() -> bool:
        """A full buffer alone may be a plane that had no turn yet: send on until it cannot pass anything on."""
        nonlocal sent
        with contextlib.suppress(BlockingIOError):
            while True:
                sent += client.send(b"x" * 65536)
        return any(one.half_sent for one in streams.call(lambda: streams.plane.open_connections("v1")) or ())

    eventually(stalls)
    reset(client)
    data, by_reset = read_to_the_end(far)
    assert by_reset
    assert len(data) <= sent
    eventually(lambda: streams.call(streams.plane.connections) == 0)


def test_what_the_daemon_said_before_its_reset_is_delivered_although_a_write_meets_it_first(streams: Stage) -> None:
    """The transport is lost with the answer unread: it is taken from the socket before that is closed."""
    answered = 0
    daemon = streams.daemon("v1")
    for _ in range(20):
        client, far = streams.pair(daemon)
        client.sendall(b"x" * 200_000)
        assert far.recv(10)
        far.sendall(b"too large")
        reset(far)
        with contextlib.suppress(OSError):
            client.sendall(b"x" * 200_000)
        data = b""
        with contextlib.suppress(ConnectionResetError):
            while part := client.recv(100):
                data += part
        assert data in {b"", b"too large"}
        answered += data == b"too large"
    assert answered, "never delivered in twenty tries"


def test_a_daemon_that_speaks_at_once_is_heard_before_the_clients_transport_is_there(streams: Stage) -> None:
    daemon = streams.daemon("v1")
    for number in range(50):
        client = streams.client()
        far = daemon.accept()
        far.sendall(b"220 %d" % number)
        far.close()
        assert read_to_the_end(client) == (b"220 %d" % number, False)


def test_connections_that_are_still_being_opened_end_with_the_plane() -> None:
    stage = Stage("stream")
    daemon = stage.daemon("v1")
    clients = [stage.client() for _ in range(50)]
    daemon.accept().close()
    stage.close()
    for client in clients:
        assert client.fileno() == -1


def test_a_plane_that_is_killed_in_a_burst_ends_it_by_a_reset() -> None:
    """What a killed process had open is closed by the kernel in order, and half a download would look whole."""
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)
        script = Path(__file__).parents[2] / "support" / "stream_alone.py"
        child = subprocess.Popen(
            [sys.executable, str(script), str(listener.getsockname()[1])], stdout=subprocess.PIPE, text=True
        )
        with child, contextlib.ExitStack() as opened:
            opened.callback(child.kill)
            assert child.stdout is not None
            address = ("127.0.0.1", int(child.stdout.readline()))
            client = opened.enter_context(socket.create_connection(address, 20))
            far, _ = listener.accept()
            opened.enter_context(far)

            def push() -> None:
                with contextlib.suppress(OSError):
                    while not stop.is_set():
                        far.sendall(bytes(1 << 20))

            pusher = threading.Thread(target=push)
            pusher.start()
            opened.callback(pusher.join, 20)
            opened.callback(stop.set)
            taken = 0
            while taken < 20 << 20:
                taken += len(client.recv(1 << 20))
            child.kill()
            child.wait(20)
            _, by_reset = read_to_the_end(client)
            assert by_reset
