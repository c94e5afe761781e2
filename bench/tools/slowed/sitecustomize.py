"""Makes a router slower, to show that the guard notices: on PYTHONPATH of a run that BENCH_EXTRA_NS asks for it.

Python imports a module of this name when it starts (site). Each time the router takes bytes from a socket it then burns
so many nanoseconds of CPU time more.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from typing import Any

EXTRA_NS = int(os.environ.get("BENCH_EXTRA_NS", "0"))


def burn() -> None:
    end = time.thread_time_ns() + EXTRA_NS
    while time.thread_time_ns() < end:
        pass


class SlowSocket(socket.socket):
    """What ``socket.socket`` is in such a router."""

    def recv_into(self, *args: Any, **more: Any) -> int:
        burn()
        return super().recv_into(*args, **more)


if EXTRA_NS and "turnout.router" in sys.orig_argv:
    plain_splice = os.splice

    def splice(*args: Any, **more: Any) -> int:
        burn()
        return plain_splice(*args, **more)

    os.splice = splice
    socket.socket = SlowSocket  # type: ignore[misc]  # that is the point
