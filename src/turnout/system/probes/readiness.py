"""Asks a daemon that listens whether it is ready: databases listen before they have read their data."""

from __future__ import annotations

import re
from typing import Final

from turnout.core.model import Daemon
from turnout.system.probes.connect import Door, connect, shut

MAX_ANSWER_BYTES: Final = 4096
SHOWN_CHARS: Final = 80


def says_not_ready(daemon: Daemon, asks: bytes, not_ready: bytes, *, timeout_s: float, door: Door = shut) -> str:
    """Ask once; why the daemon is not ready: no answer in time, or an answer that matches ``not_ready``. Else empty.

    Args:
        daemon: which.
        asks: what is sent.
        not_ready: a regular expression (re), with the dot matching everything.
        timeout_s: seconds for the connect and again for the answer, above 0. A connection that it ends does not
            count: it may speak TLS only.
        door: how a connection reaches a daemon that shares the fixed address.
    """
    try:
        with connect(daemon, timeout_s, door) as sock:
            sock.sendall(asks)
            received = sock.recv(MAX_ANSWER_BYTES)
    except TimeoutError:
        return f"it did not answer within {timeout_s:g} s"
    except OSError:
        return ""
    if not re.search(not_ready, received, re.DOTALL):
        return ""
    words = re.sub(r"[^ -~]+", " ", received.decode(errors="replace")).strip()
    return f"it answers that it is not ready: {words[:SHOWN_CHARS]}"
