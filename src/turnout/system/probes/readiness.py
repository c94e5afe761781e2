"""Asks a daemon that listens whether it is ready: databases listen before they have read their data."""

from __future__ import annotations

import re
import socket
from typing import Final

MAX_ANSWER_BYTES: Final = 4096
SHOWN_CHARS: Final = 80


def says_not_ready(host: str, port: int, asks: bytes, not_ready: bytes, *, timeout_s: float) -> str:
    """Ask once; why the daemon is not ready: no answer in time, or an answer that matches ``not_ready``. Else empty.

    Args:
        host: numeric.
        port: where it listens.
        asks: what is sent.
        not_ready: a regular expression (re), with the dot matching everything.
        timeout_s: seconds for the connect and again for the answer, above 0. A connection that it ends does not
            count: it may speak TLS only.
    """
    try:
        with socket.create_connection((host, port), timeout_s) as sock:
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
