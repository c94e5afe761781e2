"""A line server on the socket that it is given: sd_listen_fds(3), or the descriptor after ``--fd``. ``… NAME``."""

from __future__ import annotations

import asyncio
import os
import socket
import sys


async def serve(name: str, sock: socket.socket) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(f"{name} ".encode() + line)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, sock=sock, backlog=1024)
    print(f"{name} serves {sock.getsockname()}", flush=True)
    await server.serve_forever()


def main() -> None:
    name, *rest = sys.argv[1:]
    fd = int(rest[1]) if rest[:1] == ["--fd"] else 3
    if not rest:
        assert os.environ["LISTEN_PID"] == str(os.getpid())
        assert os.environ["LISTEN_FDS"] == "1"
    asyncio.run(serve(name, socket.socket(fileno=fd)))


if __name__ == "__main__":
    main()
