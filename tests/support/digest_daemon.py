"""Reads each connection to its end, and only then answers: its name and the SHA-256 of what came. ``… PORT NAME``."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import sys
import threading


def serve(sock: socket.socket, name: str) -> None:
    digest = hashlib.sha256()
    with contextlib.suppress(OSError), sock:
        while part := sock.recv(1 << 16):
            digest.update(part)
        sock.sendall(f"{name} {digest.hexdigest()}\n".encode())


def main() -> None:
    with socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=1024) as listener:
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=serve, args=(sock, sys.argv[2]), daemon=True).start()


if __name__ == "__main__":
    main()
