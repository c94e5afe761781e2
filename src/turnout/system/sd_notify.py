"""Notifies a service manager: the protocol of sd_notify(3), in a few lines. Standard library only."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Final

MOST_BYTES: Final = 4096


def notify(*words: str, environ: Mapping[str, str] | None = None) -> bool:
    """Send assignments like ``READY=1`` in one datagram to the socket that NOTIFY_SOCKET names.

    Args:
        words: the assignments; a line break in one becomes a space, for it separates them.
        environ: where the variable is looked up; None: this process's environment.

    Returns:
        Whether it was sent. A manager that is not there is no error: nothing depends on it.
    """
    name = (os.environ if environ is None else environ).get("NOTIFY_SOCKET", "")
    # sd_notify(3): an absolute path, or a name in the abstract namespace, written with a leading @ (unix(7))
    if not name.startswith(("/", "@")):
        return False
    address = "\0" + name[1:] if name.startswith("@") else name
    data = "\n".join(word.replace("\n", " ") for word in words).encode()[:MOST_BYTES]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.settimeout(1.0)
            sock.sendto(data, address)
    except OSError:
        return False
    return True
