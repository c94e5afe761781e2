"""How long connections and exchanges take, seen by a client in Python: its own cost is in every figure."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from turnout.config.settings import Address
from turnout.demo.load import PAUSE_S, TIMEOUT_S

SLICE: Final = 50  # so many on one side, then as many on the other
MOST: Final = 1500  # each closed connection keeps its port for a minute (tcp(7), TIME_WAIT)
PHASE_S: Final = 5.0
CLIENTS: Final = 4

Way = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Latency:
    """Microseconds, over so many."""

    p50_us: float
    p99_us: float
    count: int


def latency(took_s: list[float]) -> Latency:
    """The percentiles of these times; there is at least one."""
    ordered = sorted(took_s)
    p50, p99 = (ordered[len(ordered) * part // 100] * 1e6 for part in (50, 99))
    return Latency(p50, p99, len(ordered))


def dial(address: Address) -> socket.socket:
    """A connection that sends small messages at once."""
    sock = socket.create_connection((address.host, address.port), TIMEOUT_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def exchange(sock: socket.socket, send: bytes) -> None:
    """Send it, and wait for the beginning of the answer. Raises OSError: there is none."""
    sock.sendall(send)
    if not sock.recv(65536):
        raise ConnectionError("the connection ended before the answer")


def whole(address: Address, send: bytes, *, ends: bool) -> None:
    """One connection from connect to end; ``send``: what the daemon answers, or empty; ``ends``: wait for its end, too.

    A relay's connect succeeds before the daemon knows of it, so something has to come back: an answer, or the daemon's
    own end after ours.
    """
    with dial(address) as sock:
        if send:
            exchange(sock, send)
        if ends:
            end(sock)


def end(sock: socket.socket) -> None:
    """End our side, and wait until the daemon has ended its own."""
    sock.shutdown(socket.SHUT_WR)
    while sock.recv(65536):
        pass


def in_turn(direct: Way, through: Way) -> tuple[Latency, Latency]:
    """Time both, a few of one and then a few of the other, so that what disturbs the machine meets both."""
    took_s: tuple[list[float], list[float]] = ([], [])
    deadline = time.monotonic() + PHASE_S
    while len(took_s[1]) < MOST and time.monotonic() < deadline:
        for connection, times in zip((direct, through), took_s, strict=True):
            for _ in range(SLICE):
                began = time.perf_counter()
                connection()
                times.append(time.perf_counter() - began)
    return latency(took_s[0]), latency(took_s[1])


class Clients:
    """Threads that connect, speak and end, over and over, and keep how long it took. Owns its threads.

    ``connection``: makes one whole connection; raises OSError where it fails.
    """

    def __init__(self, connection: Way) -> None:
        self._connection = connection
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.took_s: list[float] = []
        self.errors: Counter[str] = Counter()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(CLIENTS)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End, and wait for what is under way."""
        self._stop.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(TIMEOUT_S * 2)

    def _work(self) -> None:
        while not self._stop.wait(PAUSE_S):
            began = time.perf_counter()
            try:
                self._connection()
            except OSError as error:
                with self._lock:
                    self.errors[f"{type(error).__name__}: {error}"] += 1
            else:
                with self._lock:
                    self.took_s.append(time.perf_counter() - began)
