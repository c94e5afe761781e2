"""Clients at full speed in a process of their own: ``flip_clients.py PORT THREADS``; they end with a line on stdin.

Each connects, asks, closes, over and over. At the end it says as JSON when each connection began and when it was made
(monotonic seconds, which all processes share), who answered it, and every error.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time

EXCHANGES = 2


def main() -> None:
    address = ("127.0.0.1", int(sys.argv[1]))
    stop = threading.Event()
    answered: list[tuple[float, float, str]] = []
    errors: list[str] = []

    def work() -> None:
        while not stop.is_set():
            began = time.monotonic()
            try:
                answered.append((began, *one_connection(address)))
            except (OSError, ValueError) as error:
                errors.append(repr(error))

    threads = [threading.Thread(target=work) for _ in range(int(sys.argv[2]))]
    for thread in threads:
        thread.start()
    print("running", flush=True)
    sys.stdin.readline()
    stop.set()
    for thread in threads:
        thread.join()
    print(json.dumps({"answered": answered, "errors": errors}), flush=True)


def one_connection(address: tuple[str, int]) -> tuple[float, str]:
    """When it was made, and who answered; that must be one and the same each time."""
    with socket.create_connection(address, 30) as sock, sock.makefile("rb") as lines:
        made = time.monotonic()
        seen = set()
        for number in range(EXCHANGES):
            sock.sendall(b"%d\n" % number)
            said = lines.readline().decode().split()
            if not said or said[-1] != str(number):
                raise ValueError(f"no answer to {number}: {said}")
            seen.add(said[0])
    if len(seen) != 1:
        raise ValueError(f"one connection was answered by {seen}")
    return made, seen.pop()


if __name__ == "__main__":
    main()
