"""A service with ``strategy = "recreate"`` around the daemon that owns its data, and clients that count promises."""

from __future__ import annotations

import json
import socket
import sys
import threading
from pathlib import Path
from typing import Self

from data_daemon import words
from e2e_support import Turnout

DAEMON = str(Path(__file__).with_name("data_daemon.py"))
RECREATE = """
[service.default]
listen = "127.0.0.1:{port}"
command = {command}
version = "{version}"
strategy = "recreate"
observe = "{observe}"
health = {{ interval = "100ms", timeout = "2s", failures = 3 }}
start_timeout = "{start_timeout}"
stop = {{ grace = "{grace}" }}
drain = {{ grace = "{drain}" }}
hold = {{ timeout = "{hold}" }}
"""


class Owner:
    """One directory of data behind one turnout."""

    def __init__(self, turnout: Turnout) -> None:
        self.turnout = turnout
        self.data = turnout.home.root.parent / "data"
        self.data.mkdir()
        self.broken = turnout.home.root.parent / "broken"
        self.sick = turnout.home.root.parent / "sick"

    def configure(
        self,
        version: str,
        *flags: str,
        observe: str = "300ms",
        start_timeout: str = "20s",
        grace: str = "20s",
        drain: str = "3s",
        hold: str = "60s",
    ) -> None:
        command = [sys.executable, "-P", DAEMON, "--port", "{port}", "--dir", str(self.data), "--version", version]
        text = RECREATE.format(
            port=self.turnout.port,
            command=json.dumps([*command, *flags]),
            version=version,
            observe=observe,
            start_timeout=start_timeout,
            grace=grace,
            drain=drain,
            hold=hold,
        )
        (self.turnout.home.root.parent / "turnout.toml").write_text(text)

    def bad(self, version: str, **more: str) -> None:
        """A build that does not start for as long as ``broken`` is there."""
        self.broken.touch()
        self.configure(version, "--broken", str(self.broken), **more)

    def set(self, word: str, *, timeout_s: float = 60.0) -> str:
        """Write one word over a connection of its own; the version that acknowledged it."""
        with socket.create_connection(self.turnout.address, timeout_s) as sock:
            return exchange(sock, word)

    def written(self) -> list[str]:
        return words(self.data)

    @property
    def collided(self) -> bool:
        """Two were on the directory at once."""
        return (self.data / "collision").exists()


def exchange(sock: socket.socket, word: str) -> str:
    sock.sendall(f"SET {word}\n".encode())
    answer = sock.makefile("rb").readline().decode().split()
    if answer[:1] != ["ok"]:
        raise ConnectionError(f"no acknowledgement: {answer}")
    return answer[1]


class Writers:
    """Clients that connect, write one word, and close, over and over. Owns its threads."""

    def __init__(self, owner: Owner, clients: int = 6) -> None:
        self._owner = owner
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.acknowledged: list[str] = []
        self.errors: list[str] = []
        self._threads = [threading.Thread(target=self._work, args=(n,), daemon=True) for n in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(70)

    def _work(self, client: int) -> None:
        number = 0
        while not self._stop.wait(0.01):
            number += 1
            word = f"c{client}-{number}"
            try:
                self._owner.set(word)
            except OSError as error:
                with self._lock:
                    self.errors.append(repr(error))
            else:
                with self._lock:
                    self.acknowledged.append(word)

    def lost(self) -> set[str]:
        """Acknowledged, and not there."""
        return set(self.acknowledged) - set(self._owner.written())
