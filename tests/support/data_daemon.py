"""A daemon that owns its data, as PostgreSQL and Redis do: one directory, one log of writes, no second one beside it.

``SET WORD`` is appended, synced and answered with ``ok VERSION``; ``COUNT`` with the number of words. A second one on
the directory exits with 1, after leaving a file ``collision`` in it, so that a test can tell that it was ever tried.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path


def words(directory: Path) -> list[str]:
    """What was written, in its order."""
    log = directory / "log"
    return log.read_text().split() if log.exists() else []


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--version", default="v1")
    parser.add_argument("--start-delay", type=float, default=0.0)
    parser.add_argument("--stop-delay", type=float, default=0.0, help="seconds between TERM and the end")
    parser.add_argument("--broken", type=Path, help="exit with 7 where this file exists")
    parser.add_argument("--sick", type=Path, help="end, once it serves, as soon as this file exists")
    options = parser.parse_args()
    directory: Path = options.dir
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        (directory / "collision").touch()
        print("another server runs on this directory", flush=True)
        return 1
    if options.broken and options.broken.exists():
        print("cannot find my hat", flush=True)
        return 7
    time.sleep(options.start_delay)
    log = os.open(directory / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    writing = threading.Lock()

    def serve(client: socket.socket) -> None:
        with client, client.makefile("rb") as lines:
            for line in lines:
                verb, _, word = line.strip().partition(b" ")
                if verb == b"SET":
                    with writing:
                        os.write(log, word + b"\n")
                        os.fsync(log)
                    client.sendall(b"ok %s\n" % options.version.encode())
                else:
                    client.sendall(b"%d\n" % len(words(directory)))

    def end(_number: int, _frame: object) -> None:
        time.sleep(options.stop_delay)
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    listener = socket.create_server(("127.0.0.1", options.port), backlog=512)
    listener.settimeout(0.05)
    while not (options.sick and options.sick.exists()):
        try:
            client, _ = listener.accept()
        except TimeoutError:
            continue
        client.settimeout(None)
        threading.Thread(target=serve, args=(client,), daemon=True).start()
    os._exit(9)


if __name__ == "__main__":
    sys.exit(main())
