"""Steady load on one address: clients that connect, exchange, close, and count everything."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from io import BufferedReader
from typing import Final

TIMEOUT_S: Final = 5.0
PAUSE_S: Final = 0.004  # steady, not as fast as it goes: people work on this machine

Exchange = Callable[[socket.socket], str]


class Load:
    """Client threads against ``address``. Owns its threads; each connection belongs to the thread that opened it.

    Args:
        address: host and port.
        exchange: speaks to the daemon over one connection and returns its version; raises OSError or ValueError.
        clients: how many connect, exchange and close over and over, 1 or more.
    """

    def __init__(self, address: tuple[str, int], exchange: Exchange, *, clients: int = 6) -> None:
        self._address = address
        self._exchange = exchange
        self._stop = threading.Event()
        self._let_go = threading.Event()
        self._lock = threading.Lock()
        self.answered: Counter[str] = Counter()
        self.made = 0
        self.failed = 0
        self.errors: Counter[str] = Counter()
        self.long_exchanges: Counter[str] = Counter()
        self._threads = [threading.Thread(target=self._short, daemon=True) for _ in range(clients)]
        self._threads.append(threading.Thread(target=self._long, daemon=True))

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def let_long_one_go(self) -> None:
        """Have the long-lived connection closed from our side, so that the daemon it is with can drain."""
        self._let_go.set()

    def stop(self) -> None:
        """End, and wait for what is under way; an interrupt may have come before every thread was started."""
        self._stop.set()
        self._let_go.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(TIMEOUT_S * 2)

    def _short(self) -> None:
        while not self._stop.wait(PAUSE_S):
            try:
                with socket.create_connection(self._address, TIMEOUT_S) as sock:
                    version = self._exchange(sock)
            except (OSError, ValueError) as error:
                self._count(None, f"{type(error).__name__}: {error}")
            else:
                self._count(version, "")

    def _long(self) -> None:
        """One connection that is kept: it must stay with the daemon that it began with."""
        try:
            with socket.create_connection(self._address, TIMEOUT_S) as sock:
                first = self._exchange(sock)
                while not self._let_go.wait(0.02):
                    version = self._exchange(sock)
                    if version != first:
                        raise ValueError(f"a connection moved from {first} to {version}")
                    self.long_exchanges[version] += 1
        except (OSError, ValueError) as error:
            self._count(None, f"long-lived: {type(error).__name__}: {error}")
        else:
            self._count(first, "")

    def _count(self, version: str | None, error: str) -> None:
        with self._lock:
            self.made += 1
            if version is None:
                self.failed += 1
                self.errors[error] += 1
            else:
                self.answered[version] += 1


def line_exchange(sock: socket.socket) -> str:
    """One line to the bundled daemon; the first word of its answer is its version."""
    sent = f"hello {time.monotonic_ns()}"
    sock.sendall(sent.encode() + b"\n")
    with sock.makefile("rb") as stream:
        answer = _line(stream).decode()
    version, _, rest = answer.partition(" ")
    if not rest.rstrip("\n").endswith(sent):
        raise ValueError(f"not an answer to {sent!r}: {answer!r}")
    return version


def redis_exchange(version_of: Callable[[int], str]) -> Exchange:
    """Ask a Redis for its port, and with it for its version in the demonstration."""

    def exchange(sock: socket.socket) -> str:
        sock.sendall(b"INFO server\r\n")
        with sock.makefile("rb") as stream:
            head = _line(stream)
            if not head.startswith(b"$"):
                raise ValueError(f"redis answered {head!r}")
            length = int(head[1:]) + len(b"\r\n")
            body = stream.read(length)
        if len(body) < length:
            raise ConnectionError("the connection ended in the middle of an answer")
        port = next(line for line in body.split(b"\r\n") if line.startswith(b"tcp_port:"))
        return version_of(int(port.partition(b":")[2]))

    return exchange


def _line(stream: BufferedReader) -> bytes:
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise ConnectionError("the connection ended before the answer")
    return line
