"""One connection that moves as much as it can, both ends in a process of their own: ``bulk_flow.py FIXED_PORT``.

Prints the port of its daemon; at a line on stdin its client connects to the fixed address, and bytes flow until the
next line.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading

from bulk_daemon import BLOCK, block


def send(sock: socket.socket, stop: threading.Event) -> None:
    with contextlib.suppress(OSError):
        while not stop.is_set():
            sock.sendall(block(0))


def drop(sock: socket.socket) -> None:
    buffer = bytearray(BLOCK)
    with contextlib.suppress(OSError):
        while sock.recv_into(buffer):
            pass


def main() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        sys.stdin.readline()
        client = socket.create_connection(("127.0.0.1", int(sys.argv[1])), 20)
        far, _ = listener.accept()
    stop = threading.Event()
    threads = [threading.Thread(target=send, args=(client, stop)), threading.Thread(target=drop, args=(far,))]
    for thread in threads:
        thread.start()
    sys.stdin.readline()
    stop.set()
    for sock in (client, far):
        sock.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join(20)


if __name__ == "__main__":
    main()
