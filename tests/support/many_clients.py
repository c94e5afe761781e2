"""So many clients in a process of their own, with its own limit of descriptors: ``many_clients.py PORT COUNT``.

Each sends its number, first to last, and must get it back with its bytes reversed. Says "connected" and "answered".
"""

from __future__ import annotations

import resource
import socket
import sys


def main() -> None:
    port, count = int(sys.argv[1]), int(sys.argv[2])
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    clients = []
    for number in range(count):
        clients.append(socket.create_connection(("127.0.0.1", port), 60))
        clients[-1].sendall(number.to_bytes(8, "big"))
    print("connected", flush=True)
    for number, client in enumerate(clients):
        client.settimeout(600)
        answer = client.makefile("rb").read(8)
        if answer != number.to_bytes(8, "little"):
            raise SystemExit(f"client {number} got {answer!r}")
        client.close()
    print("answered", flush=True)


if __name__ == "__main__":
    main()
