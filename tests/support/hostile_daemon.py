"""A line server that attacks its keeper: ``hostile_daemon.py NAME PORT GO ROUNDS`` begins once the file GO exists.

It binds from many threads, with bad pointers, lying lengths and an address that changes meanwhile; puts files in the
place of sockets that are being bound; directs the group elsewhere; shuts its listener down and listens again. In the
end it writes what it lost to ``GO.lost``: a file that is not the one that it opened.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import random
import socket
import struct
import sys
import threading
import time
from pathlib import Path

THREADS = 50
FIRST_NUMBER = 800  # above all that the daemon opens
LIBC = ctypes.CDLL(None, use_errno=True)


def address(port: int, host: str = "127.0.0.1") -> bytes:
    return struct.pack("=H", socket.AF_INET) + struct.pack("!H", port) + socket.inet_aton(host) + bytes(8)


def binds_anything(port: int, chance: random.Random) -> None:
    """Bad pointers and lying lengths; the kernel answers EFAULT, EINVAL or EADDRINUSE."""
    with socket.socket() as sock:
        room = ctypes.create_string_buffer(address(port), 128)
        pointer = chance.choice([ctypes.addressof(room), 1, (1 << 63) - 8, 0])
        LIBC.bind(sock.fileno(), ctypes.c_void_p(pointer), chance.choice([16, 28, 128, 1 << 30, -1]))
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.listen(1)


def changes_the_address(port: int, _chance: random.Random) -> None:
    """Between the keeper's look and the kernel's."""
    room = ctypes.create_string_buffer(address(port), 16)
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            for number in (1, port):
                ctypes.memmove(ctypes.addressof(room) + 2, struct.pack("!H", number), 2)

    thread = threading.Thread(target=change)
    thread.start()
    with socket.socket() as sock:
        LIBC.bind(sock.fileno(), room, 16)
    stop.set()
    thread.join()


def replaces_the_descriptor(port: int, number: int, lost: list[str], path: Path) -> None:
    """A file at the number of a dual-stack socket that is being bound: an exchange must not take its place."""
    sock = socket.socket(socket.AF_INET6)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    os.dup2(sock.fileno(), number)
    sock.close()
    name = f"{path}.{number}"
    with Path(name).open("w", encoding="ascii") as file:
        file.write("mine")
        file.flush()
        room = struct.pack("=H", socket.AF_INET6) + struct.pack("!HI", port, 0) + bytes(20)
        thread = threading.Thread(target=LIBC.bind, args=(number, room, 28))
        thread.start()
        os.dup2(file.fileno(), number)
        thread.join()
        link = os.readlink(f"/proc/self/fd/{number}")  # noqa: PTH115
        if link != name:
            lost.append(link)
    os.close(number)


def directs_the_group(listener: socket.socket) -> None:
    code = struct.pack("HBBI", 0x06, 0, 0, 0)
    held = ctypes.create_string_buffer(code, len(code))
    for option in (51, 52, 68):
        with contextlib.suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, option, struct.pack("HxxxxxxQ", 1, ctypes.addressof(held)))


def attack(port: int, go: Path, rounds: int, listener: socket.socket) -> None:
    over = go.with_suffix(".lost")
    if over.exists():  # a daemon that was started after the attack: its own clients are to be served again
        return
    while not go.exists():
        time.sleep(0.01)
    lost: list[str] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(rounds):
            kind = chance.randrange(5)
            with contextlib.suppress(OSError):
                if kind == 0:
                    binds_anything(port, chance)
                elif kind == 1:
                    changes_the_address(port, chance)
                elif kind == 2:
                    replaces_the_descriptor(port, FIRST_NUMBER + seed, lost, go)
                elif kind == 3:
                    directs_the_group(listener)
                elif seed == 0:
                    listener.shutdown(socket.SHUT_RDWR)
                    listener.listen(100)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    over.write_text("\n".join(lost), encoding="ascii")


async def serve(name: str, port: int, go: Path, rounds: int) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(f"{name} ".encode() + line)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", port)
    listener = socket.socket(fileno=os.dup(server.sockets[0].fileno()))
    threading.Thread(target=attack, args=(port, go, rounds, listener), daemon=True).start()
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])))
