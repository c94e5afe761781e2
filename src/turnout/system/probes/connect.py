"""A connection to a daemon, also where it shares the fixed address with other daemons."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from turnout.core.model import Daemon
from turnout.system.files import undone_on_error

# Lets the connection from a source address and port reach the daemon that the source names, while it is made; raises
# OSError: it cannot.
Door = Callable[[str, int], AbstractContextManager[None]]


def shut(_source: str, _port: int) -> AbstractContextManager[None]:
    """No door: a daemon that shares the fixed address cannot be reached."""
    raise ConnectionRefusedError("no router directs a connection to this daemon")


def no_door(_source: str, _port: int) -> AbstractContextManager[None]:
    """What a router of 0.1 needs, which lets the source of any connection name the daemon."""
    return nullcontext()


def connect(daemon: Daemon, timeout_s: float, door: Door = shut) -> socket.socket:
    """A connection to this daemon and no other, with that timeout; the caller's to close.

    Raises OSError: it refuses, does not answer, or cannot be reached.
    """
    address = (daemon.host, daemon.port)
    if not daemon.source:
        return socket.create_connection(address, timeout_s)
    sock = socket.socket()
    with undone_on_error(sock.close):
        sock.settimeout(timeout_s)
        sock.bind((daemon.source, 0))
        with door(daemon.source, sock.getsockname()[1]):
            sock.connect(address)
    return sock
