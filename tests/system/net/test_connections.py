"""Connections of other processes: what is counted of each, who spoke last, and how they are ended from outside."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest

from process_support import Started, line_of
from support import eventually
from turnout.system.net import connections
from turnout.system.net.connections import (
    Connection,
    at_addresses,
    connections_at,
    end,
    handshakes_at,
    is_answered,
    reset,
)
from turnout.system.net.sockets import descriptors_of
from turnout.system.pidfd import copy_of, socket_of

SERVER = """
import socket, sys
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
sock, _ = listener.accept()
listener.close()
print("accepted", flush=True)
try:
    print("read", sock.recv(100), flush=True)
except OSError as error:
    print("read", type(error).__name__, flush=True)
"""
ANY = Connection(1, socket.AF_INET, "127.0.0.1", 80, ("127.0.0.1", 9), 7, 0, 0, 10, 10, 100, 100, 100, b"")


class Server:
    """A process that accepts one connection and says how it ends."""

    def __init__(self, started: Started) -> None:
        self.process = started.python(SERVER)
        self.port = int(self.line())
        self.client = socket.create_connection(("127.0.0.1", self.port), 20)
        assert self.line() == "accepted"

    def line(self) -> str:
        return line_of(self.process).decode().strip()

    def connection(self) -> Connection:
        (one,) = connections_at(self.port)
        return one

    def holders(self) -> list[tuple[int, int]]:
        inode = self.connection().inode
        return [(self.process.pid, fd) for found, fd in descriptors_of(self.process.pid) if found == inode]


@pytest.fixture
def server() -> Iterator[Server]:
    with Started() as started:
        found = Server(started)
        with found.client:
            yield found


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_a_connection_is_told_with_its_peer_and_what_came_and_went(opened: ExitStack) -> None:
    listener = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
    client = opened.enter_context(socket.create_connection(listener.getsockname(), 20))
    port = listener.getsockname()[1]
    (queued,) = connections_at(port)
    assert queued.inode == 0, "nobody has accepted it"
    far, _ = listener.accept()
    opened.enter_context(far)
    client.sendall(b"question")
    eventually(lambda: connections_at(port)[0].unread == 8)
    assert far.recv(100) == b"question"
    far.sendall(b"answer")
    assert client.recv(100) == b"answer"
    eventually(lambda: connections_at(port)[0].bytes_out == 6)
    (found,) = connections_at(port)
    assert (found.cookie, found.peer, found.host) == (queued.cookie, client.getsockname(), "127.0.0.1")
    assert (found.bytes_in, found.unread, found.unsent) == (8, 0, 0)
    assert found.inode > 0


def test_bytes_that_do_not_arrive_are_unsent(opened: ExitStack) -> None:
    listener = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
    opened.enter_context(socket.create_connection(listener.getsockname(), 20))
    far = opened.enter_context(listener.accept()[0])
    far.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            far.send(bytes(1 << 20))
    assert connections_at(listener.getsockname()[1])[0].unsent > 0


def test_a_handshake_that_waits_for_its_first_byte_is_told_with_its_age(opened: ExitStack) -> None:
    listener = opened.enter_context(socket.socket())
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 30)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    port = listener.getsockname()[1]
    assert handshakes_at(port) == []
    opened.enter_context(socket.create_connection(listener.getsockname(), 20))
    (young,) = handshakes_at(port)
    assert (young.host, young.port) == ("127.0.0.1", port)
    assert 0.0 <= young.age_s < 20
    threading.Event().wait(0.05)
    assert handshakes_at(port)[0].age_s > young.age_s


def test_only_what_came_to_one_of_the_addresses_counts() -> None:
    six = replace(ANY, family=socket.AF_INET6, host="::1")
    elsewhere = replace(ANY, host="127.0.0.2")
    assert at_addresses([ANY, six, elsewhere], [("127.0.0.1", 80)]) == [ANY]
    assert at_addresses([ANY, six, elsewhere], [("0.0.0.0", 80)]) == [ANY, elsewhere]
    assert at_addresses([ANY, six, elsewhere], [("::", 80)]) == [six]
    assert at_addresses([ANY], [("127.0.0.1", 81)]) == []


def test_a_client_of_ipv4_that_a_daemon_of_both_families_accepted_counts_at_the_wildcard_of_ipv4(
    opened: ExitStack,
) -> None:
    """It travels as an IPv4-mapped address (ipv6(7)); uncounted, its daemon would be stopped under it."""
    daemon = opened.enter_context(socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True))
    port = daemon.getsockname()[1]
    opened.enter_context(socket.create_connection(("127.0.0.1", port), 20))
    opened.enter_context(daemon.accept()[0])
    found = connections_at(port)
    assert at_addresses(found, [("0.0.0.0", port)]) == found
    assert at_addresses(found, [("127.0.0.1", port)]) == found
    assert at_addresses(found, [("::", port)]) == []


# -- who spoke last --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "answered"),
    [
        pytest.param(replace(ANY, bytes_in=0, bytes_out=0), True, id="nobody has said anything"),
        pytest.param(replace(ANY, bytes_in=0), True, id="only the daemon has"),
        pytest.param(replace(ANY, bytes_out=0), False, id="only the client has"),
        pytest.param(replace(ANY, sent_ago_ms=90), True, id="the daemon spoke last"),
        pytest.param(replace(ANY, received_ago_ms=90), False, id="the client spoke last"),
        pytest.param(replace(ANY, heard_ago_ms=60), True, id="in one tick, and the answer was confirmed alone"),
        pytest.param(ANY, False, id="in one tick, and nothing tells"),
        pytest.param(
            replace(ANY, sent_ago_ms=60_000, received_ago_ms=60_000, heard_ago_ms=10),
            False,
            id="in one tick, and what was heard since is a keepalive's",
        ),
    ],
)
def test_at_the_first_look_the_kernels_ticks_tell_who_spoke_last(now: Connection, answered: bool) -> None:
    assert is_answered(now, None, known=False) is answered


@pytest.mark.parametrize(
    ("came", "went", "known", "answered"),
    [
        pytest.param(0, 5, False, True, id="an answer since"),
        pytest.param(5, 0, True, False, id="a question since"),
        pytest.param(0, 0, True, True, id="nothing since an answer"),
        pytest.param(0, 0, False, False, id="nothing since a question"),
        pytest.param(5, 5, True, False, id="both since, in one tick"),
    ],
)
def test_at_later_looks_the_bytes_since_then_tell(came: int, went: int, known: bool, answered: bool) -> None:
    now = replace(ANY, bytes_in=ANY.bytes_in + came, bytes_out=ANY.bytes_out + went)
    assert is_answered(now, ANY, known=known) is answered


# -- ended from outside ----------------------------------------------------------------------------------------------


def test_a_connection_is_ended_in_order_for_both(server: Server) -> None:
    assert end(server.connection(), server.holders())
    assert server.client.recv(1) == b""
    assert server.line() == "read b''"


def test_a_connection_that_is_broken_off_is_a_reset_for_its_client(server: Server) -> None:
    assert reset(server.connection(), server.holders())
    with pytest.raises(ConnectionResetError):
        server.client.recv(1)
    assert server.line() in {"read ConnectionAbortedError", "read ConnectionResetError"}


def test_without_the_right_to_destroy_sockets_a_copy_is_disconnected(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_family: int, _sockid: bytes) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(connections, "destroy", refuse)
    assert reset(server.connection(), server.holders())
    with pytest.raises(ConnectionResetError):
        server.client.recv(1)
    assert server.line() in {"read ConnectionResetError", "read BrokenPipeError"}


def test_where_neither_is_allowed_it_is_said_that_it_was_not_done(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(connections, "destroy", refuse)
    monkeypatch.setattr(connections, "socket_of", refuse)
    assert not reset(server.connection(), server.holders())
    assert not end(server.connection(), server.holders())
    server.client.sendall(b"still here")
    assert server.line() == "read b'still here'"


def test_one_that_has_ended_by_itself_counts_as_done(server: Server) -> None:
    before = server.connection()
    server.client.sendall(b"bye")
    server.client.close()
    server.process.wait(20)
    eventually(lambda: connections_at(server.port) == [])
    assert reset(before, [])


# -- copies of descriptors -------------------------------------------------------------------------------------------


def test_a_copy_is_the_same_socket_and_is_closed_on_exec(server: Server) -> None:
    ((pid, fd),) = server.holders()
    inode = server.connection().inode
    with socket_of(pid, fd, inode) as copy:
        assert copy.getpeername() == server.client.getsockname()
        assert not copy.get_inheritable()


def test_a_number_that_changed_hands_is_refused_and_nothing_stays_open(server: Server) -> None:
    ((pid, fd),) = server.holders()
    with pytest.raises(ProcessLookupError, match="another one"):
        socket_of(pid, fd, 1)
    with pytest.raises(OSError, match="Bad file descriptor"):
        copy_of(pid, 4000)


def test_of_a_process_that_is_gone_there_is_no_copy(server: Server) -> None:
    server.process.kill()
    server.process.wait(20)
    with pytest.raises(ProcessLookupError):
        copy_of(server.process.pid, 0)
