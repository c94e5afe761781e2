"""Makes a router slower, to show that the guard notices: on PYTHONPATH of a router, with BENCH_EXTRA_LOOPS set.

Python imports a module of this name when it starts (site). Each time the router takes bytes from a socket it goes
through an empty loop so many times.
"""

from __future__ import annotations

import os
import socket
import sys
from typing import Any

EXTRA_LOOPS = os.environ.get("BENCH_EXTRA_LOOPS")
turns = range(int(EXTRA_LOOPS or "0"))


class SlowSocket(socket.socket):
    """What ``socket.socket`` is in such a router."""

    def recv_into(self, buffer: Any, plain: Any = socket.socket.recv_into) -> int:  # type: ignore[override]
        for _ in turns:
            pass
        size: int = plain(self, buffer)
        return size


if EXTRA_LOOPS and "turnout.router" in sys.orig_argv:
    socket.socket = SlowSocket  # type: ignore[misc]  # that is the point
