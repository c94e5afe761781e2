"""A daemon for big payloads: sends as many bytes as the client announces while it receives as many, then a digest.

client: 8 bytes N, then N bytes       daemon: N bytes, then the SHA-256 of what came
"""

from __future__ import annotations

import hashlib
import socket
import sys
import threading

BLOCK = 1 << 20


def pattern(offset: int, size: int) -> bytes:
    """Bytes that tell where they are: no block is like another, so that a swapped or repeated one changes the hash."""
    start = offset // 8
    words = range(start, start + size // 8 + 2)
    data = b"".join(word.to_bytes(8, "little") for word in words)
    return data[offset % 8 : offset % 8 + size]


BASE = pattern(0, BLOCK)


def block(number: int) -> bytes:
    """One megabyte of payload: the pattern, with the block's number in front."""
    return number.to_bytes(8, "big") + BASE[8:]


def pump_out(sock: socket.socket, size: int, *, start: int = 0) -> None:
    """Send the payload's bytes from ``start``, a whole number of blocks, up to ``size``."""
    sent = start
    while sent < size:
        data = block(sent // BLOCK)[: size - sent]
        sock.sendall(data)
        sent += len(data)


def expected(size: int) -> bytes:
    digest = hashlib.sha256()
    for number in range(-(-size // BLOCK)):
        digest.update(block(number)[: size - number * BLOCK])
    return digest.digest()


def take_in(sock: socket.socket, size: int) -> bytes:
    digest, left = hashlib.sha256(), size
    buffer = bytearray(BLOCK)
    view = memoryview(buffer)
    while left:
        got = sock.recv_into(view[: min(BLOCK, left)])
        if not got:
            raise ConnectionError(f"the stream ended {left} bytes early")
        digest.update(view[:got])
        left -= got
    return digest.digest()


def serve(sock: socket.socket) -> None:
    with sock:
        head = sock.recv(8, socket.MSG_WAITALL)
        if len(head) < 8:
            return
        size = int.from_bytes(head, "big")
        out = threading.Thread(target=pump_out, args=(sock, size))
        out.start()
        digest = take_in(sock, size)
        out.join()
        sock.sendall(digest)


def main() -> None:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", int(sys.argv[1])))
    listener.listen(64)
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=serve, args=(sock,), daemon=True).start()


if __name__ == "__main__":
    main()
