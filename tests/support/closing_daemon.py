"""A daemon that lives on without its listener: SIGUSR1 closes it, SIGUSR2 opens it again. It answers each line."""

from __future__ import annotations

import selectors
import signal
import socket
import sys


def listener() -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", int(sys.argv[1])))
    sock.listen(64)
    return sock


def main() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGUSR2})
    first = listener()
    with selectors.DefaultSelector() as selector:
        selector.register(first, selectors.EVENT_READ)
        sock: socket.socket | None = first
        while True:
            if selector.select(0.02) and sock is not None:
                client, _ = sock.accept()
                with client, client.makefile("rb") as lines:
                    client.sendall(b"v1 " + lines.readline())
            signals = signal.sigpending()
            if signal.SIGUSR1 in signals and sock is not None:
                signal.sigwait({signal.SIGUSR1})
                selector.unregister(sock)
                sock.close()
                sock = None
            elif signal.SIGUSR2 in signals and sock is None:
                signal.sigwait({signal.SIGUSR2})
                sock = listener()
                selector.register(sock, selectors.EVENT_READ)


if __name__ == "__main__":
    main()
