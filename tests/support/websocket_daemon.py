"""A websocket server that says its name and then sends back what it is sent: ``websocket_daemon.py PORT NAME``."""

from __future__ import annotations

import asyncio
import sys

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed


async def echo(connection: ServerConnection) -> None:
    try:
        await connection.send(sys.argv[2])
        async for message in connection:
            await connection.send(message)
    except ConnectionClosed:
        return


async def main() -> None:
    async with serve(echo, "127.0.0.1", int(sys.argv[1])) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
