"""Daemons that listen before they are ready, and say so."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from turnout.core.data_owner import DataOwner, owns_its_data
from turnout.core.model import Daemon
from turnout.system.probes.readiness import says_not_ready

STARTING = b"SFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\0"
NO_ROLE = b"SFATAL\0VFATAL\0C28000\0Mrole does not exist: 57P03\0\0"


def message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body


@contextmanager
def answering(answer: bytes | None) -> Iterator[tuple[int, list[bytes]]]:
    """One that answers each connection so (None: by closing it); with what it heard."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            client, _ = listener.accept()
            with client:
                heard.append(client.recv(4096))
                if answer is not None:
                    client.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1], heard
        thread.join(20)


def owner(*command: str) -> DataOwner:
    found = owns_its_data(command)
    assert found
    return found


@pytest.mark.parametrize(
    ("command", "answer", "ready"),
    [
        ("redis-server", b"-LOADING Redis is loading the dataset in memory\r\n", False),
        ("redis-server", b"+PONG\r\n", True),
        ("redis-server", b"-NOAUTH Authentication required.\r\n", True),
        ("redis-server", None, True),
        ("postgres", message(b"E", STARTING), False),
        ("postgres", message(b"E", NO_ROLE), True),
        ("postgres", message(b"R", struct.pack("!I", 0)), True),
        ("postgres", None, True),
    ],
)
def test_only_what_says_that_it_is_not_ready_is_not(command: str, answer: bytes | None, ready: bool) -> None:
    known = owner(command)
    with answering(answer) as (port, heard):
        said = says_not_ready(Daemon("d", "127.0.0.1", port), known.asks, known.not_ready, timeout_s=20)
    assert heard == [known.asks]
    assert (said == "") is ready, said
    assert "\n" not in said


def test_one_that_is_silent_is_not_ready() -> None:
    """A Redis that is loading looks at its clients only now and then."""
    known = owner("redis-server")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        said = says_not_ready(Daemon("d", "127.0.0.1", port), known.asks, known.not_ready, timeout_s=0.05)
    assert "did not answer" in said


def test_nobody_there_is_for_the_probe_to_say() -> None:
    known = owner("redis-server")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert says_not_ready(Daemon("d", "127.0.0.1", port), known.asks, known.not_ready, timeout_s=1) == ""


def test_the_startup_message_is_as_long_as_it_says() -> None:
    asks = owner("postgres").asks
    assert struct.unpack("!I", asks[:4])[0] == len(asks)
    assert struct.unpack("!I", asks[4:8])[0] == 3 << 16
