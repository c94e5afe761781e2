"""A stream plane in a process of its own, to be killed: PORT of its daemon in, the port of its listener out."""

from __future__ import annotations

import asyncio
import socket
import sys

import uvloop

from turnout.planes.plane import Upstream
from turnout.planes.stream.plane import Stream


async def serve(port: int) -> None:
    plane = Stream(asyncio.get_running_loop())
    front = socket.create_server(("127.0.0.1", 0))
    plane.set_upstream(Upstream("v1", "127.0.0.1", port), patience_s=1.0)
    plane.add_listener(front)
    print(front.getsockname()[1], flush=True)
    await asyncio.sleep(600)


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
