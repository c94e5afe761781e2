"""Daemons inside the test's own process, for probes to ask."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack

from process_support import entry
from turnout.core.model import Daemon
from turnout.system.process import own_identity

TIMEOUT_S = 10.0


def here(opened: ExitStack, host: str = "127.0.0.1", backlog: int = 16) -> tuple[socket.socket, Daemon]:
    """A listener of this process, which is the daemon."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = opened.enter_context(socket.create_server((host, 0), family=family, backlog=backlog))
    return sock, entry(own_identity(), sock.getsockname()[1], host=host)


def serve(opened: ExitStack, talk: Callable[[socket.socket], None]) -> Daemon:
    """A daemon in a thread of this process: ``talk`` has each connection in turn."""
    sock, daemon = here(opened)

    def run() -> None:
        while True:
            try:
                client, _ = sock.accept()
            except OSError:
                return
            with client:
                try:
                    talk(client)
                except OSError:
                    continue

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    opened.callback(thread.join, TIMEOUT_S)
    opened.callback(sock.shutdown, socket.SHUT_RDWR)
    return daemon
