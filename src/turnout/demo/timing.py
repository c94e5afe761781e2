"""How long connections and exchanges take, seen by a client in Python: its own cost is in every figure."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from turnout.config import Address

TIMEOUT_S: Final = 5.0
SLICE: Final = 50  # so many on one side, then as many on the other
MOST: Final = 1500  # each closed connection keeps its port for a minute (tcp(7), TIME_WAIT)
PHASE_S: Final = 5.0
CLIENTS: Final = 4
PAUSE_S: Final = 0.004  # steady, not as fast as it goes: the machine is somebody's desk

Way = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Latency:
    """Microseconds, over so many."""

    p50_us: float
    p99_us: float
    count: int


def latency(took_s: list[float]) -> Latency:
    """What of these seconds is worth saying; there is at least one."""
    ordered = sorted(took_s)
    p50, p99 = (ordered[len(ordered) * part // 100] * 1e6 for part in (50, 99))
    return Latency(p50, p99, len(ordered))


def dial(address: Address) -> socket.socket:
    """A connection that sends small messages at once."""
    sock = socket.create_connection((address.host, address.port), TIMEOUT_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def exchange(sock: socket.socket, send: bytes) -> None:
    """Say it, and wait for the beginning of the answer.

    Raises:
        OSError: there is none.
    """
    sock.sendall(send)
    if not sock.recv(65536):
        raise ConnectionError("the connection ended before the answer")


def whole(address: Address, send: bytes, *, ends: bool) -> None:
    """One connection from connect to end.

    A relay's connect succeeds before the daemon knows of it, so something has to come back: an answer, or the daemon's
    own end after ours.

    Args:
        address: where to.
        send: what the daemon answers; empty: nothing is sent.
        ends: wait for the daemon's end of stream, too.
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
    took: tuple[list[float], list[float]] = ([], [])
    deadline = time.monotonic() + PHASE_S
    while len(took[1]) < MOST and time.monotonic() < deadline:
        for way, into in zip((direct, through), took, strict=True):
            for _ in range(SLICE):
                began = time.perf_counter()
                way()
                into.append(time.perf_counter() - began)
    return latency(took[0]), latency(took[1])


class Clients:
    """Threads that connect, speak and end, over and over, and keep how long it took. Owns its threads.

    Args:
        way: one whole connection; raises OSError where it fails.
    """

    def __init__(self, way: Way) -> None:
        self._way = way
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
                self._way()
            except OSError as error:
                with self._lock:
                    self.errors[f"{type(error).__name__}: {error}"] += 1
            else:
                with self._lock:
                    self.took_s.append(time.perf_counter() - began)
