"""A daemon that serves nobody without a PROXY header: each line is answered by the client's address it was told."""

from __future__ import annotations

import socket
import sys
import threading

from proxy_header import read_header


def serve(sock: socket.socket) -> None:
    with sock:
        sock.settimeout(20)
        try:
            told = read_header(sock)
        except (AssertionError, OSError):
            return
        source = "local" if told.source is None else f"{told.source[0]}:{told.source[1]}"
        with sock.makefile("rb") as lines:
            for _ in lines:
                sock.sendall(f"{source}\n".encode())


def main(port: int) -> None:
    listener = socket.create_server(("127.0.0.1", port))
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=serve, args=(sock,), daemon=True).start()


if __name__ == "__main__":
    main(int(sys.argv[1]))
