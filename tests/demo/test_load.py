"""What the demonstration's clients say and count, over a pair of sockets or with a fake exchange."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from support import eventually
from turnout.demo.load import Load, line_exchange, redis_exchange

INFO = b"# Server\r\nredis_version:7.0\r\ntcp_port:4001\r\nhz:10\r\n"


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    client, daemon = socket.socketpair()
    client.settimeout(5.0)
    with client, daemon:
        yield client, daemon


def test_a_version_is_the_first_word_of_an_answer_that_has_what_was_sent(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("turnout.demo.load.time.monotonic_ns", lambda: 42)
    client, daemon = pair
    daemon.sendall(b"v2 4711 hello 42\n")
    assert line_exchange(client) == "v2"
    assert daemon.recv(100) == b"hello 42\n"


@pytest.mark.parametrize("answer", [b"v2 4711 hello 41\n", b"v2 4711 hello 42", b""])
def test_another_clients_answer_half_of_one_or_none_is_a_failure(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    monkeypatch.setattr("turnout.demo.load.time.monotonic_ns", lambda: 42)
    client, daemon = pair
    daemon.sendall(answer)
    daemon.shutdown(socket.SHUT_WR)
    with pytest.raises((ValueError, ConnectionError)):
        line_exchange(client)


def test_a_redis_is_known_by_the_port_in_its_answer_and_nothing_of_the_next_one_is_taken(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    client, daemon = pair
    ask = redis_exchange({4001: "v1"}.__getitem__)
    for _ in range(2):
        daemon.sendall(b"$%d\r\n%s\r\n" % (len(INFO), INFO))
        assert ask(client) == "v1"


@pytest.mark.parametrize("answer", [b"-LOADING\r\n", b"$100\r\nshort\r\n", b"$5"])
def test_an_error_or_half_an_answer_of_a_redis_is_a_failure(
    pair: tuple[socket.socket, socket.socket], answer: bytes
) -> None:
    client, daemon = pair
    daemon.sendall(answer)
    daemon.shutdown(socket.SHUT_WR)
    with pytest.raises((ValueError, ConnectionError)):
        redis_exchange(lambda _: "v1")(client)


def test_answers_are_counted_by_version_and_failures_by_their_kind() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        load = Load((address[0], address[1]), lambda _: "v1", clients=2)
        load.start()
        try:
            eventually(lambda: load.answered["v1"] >= 3 and load.long_exchanges["v1"] >= 1)
        finally:
            load.stop()
    assert load.failed == 0
    assert load.made == sum(load.answered.values())


def test_a_connection_that_moves_to_another_daemon_is_a_failure() -> None:
    versions = iter(["v1", "v2"])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        load = Load((address[0], address[1]), lambda _: next(versions), clients=0)
        load.start()
        try:
            eventually(lambda: load.failed == 1)
        finally:
            load.stop()
    assert list(load.errors) == ["long-lived: ValueError: a connection moved from v1 to v2"]


def test_a_load_of_which_not_every_thread_was_started_is_stopped() -> None:
    """Ctrl-C in the moment in between: the demonstration ended with a traceback, and left its processes."""
    load = Load(("127.0.0.1", 1), line_exchange, clients=2)
    load.stop()
    load._threads[0].start()
    load.stop()
    assert not load._threads[0].is_alive()
