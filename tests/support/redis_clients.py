"""Clients of a Redis that come and go, each of which must have one daemon."""

from __future__ import annotations

import re
import socket
import threading
from collections import Counter
from typing import Self

from support import eventually

CLIENTS = 20
PAUSE_S = 0.02  # 20 clients are a load; without a pause they are most of what the machine does


class RedisClients:
    """Connections that exchange, close and reconnect; every reply must come from the one daemon of its connection."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.errors: list[str] = []
        self.connections = 0
        self.replies: Counter[bytes] = Counter()
        self._threads = [threading.Thread(target=self._work) for _ in range(CLIENTS)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def met(self, processes: int) -> None:
        """Wait until more processes than so many have answered."""
        eventually(lambda: len(self.replies) > processes, timeout_s=60, why="the clients did not meet the new process")

    def _work(self) -> None:
        while not self._stop.wait(PAUSE_S):
            try:
                seen = self._one_connection()
            except (OSError, ValueError) as error:
                with self._lock:
                    self.errors.append(repr(error))
            else:
                with self._lock:
                    self.connections += 1
                    self.replies.update(seen)

    def _one_connection(self) -> Counter[bytes]:
        """Five exchanges on one connection: `run_id` tells which process answered."""
        seen: Counter[bytes] = Counter()
        with socket.create_connection(self._address, 20) as sock, sock.makefile("rb") as replies:
            for _ in range(5):
                sock.sendall(b"INFO server\r\n")
                head = replies.readline()
                if not head.startswith(b"$"):
                    raise ValueError(f"redis said {head!r}")
                body = replies.read(int(head[1:]) + 2)
                found = re.search(rb"run_id:(\w+)", body)
                if not found:
                    raise ValueError(f"half an answer: {body!r}")
                seen[found[1]] += 1
        if len(seen) != 1:
            raise ValueError(f"one connection was answered by {len(seen)} daemons")
        return seen
