"""How a daemon is named: its boot id, and what messages call it."""

from __future__ import annotations

import os
import time

from turnout.core.model import Daemon, Identity


def daemon_name(daemon: Daemon | None) -> str:
    """A daemon as messages name it."""
    if daemon is None:
        return "nothing"
    version = f"{daemon.version}, " if daemon.version else ""
    return f"{daemon.boot_id} ({version}pid {daemon.pid}, port {daemon.port})"


def new_boot_id() -> str:
    """A name for one boot of a daemon: sorts by time, never repeats."""
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{os.urandom(4).hex()}"


def attached_boot_id(identity: Identity, port: int) -> str:
    return f"attached-{identity.pid or 'x'}-{port}-{os.urandom(2).hex()}"
