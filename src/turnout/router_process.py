"""One router process, as the keeper sees it. Standard library only."""

from __future__ import annotations

import os
import resource
import secrets
import sys
from dataclasses import dataclass
from typing import Final

from turnout.children import Child
from turnout.system.control import Channel
from turnout.system.home import Home
from turnout.system.spawn import SpawnRequest

PREFIX: Final = "router-"  # of a router's boot id


@dataclass(slots=True)
class Router:
    """One router process. Its channel belongs to the keeper's loop."""

    child: Child
    started_at: float
    channel: Channel | None = None
    leads: bool = False
    told: bool = False  # to leave, which it does whatever becomes of its successor
    heard: bool = False  # it said that it knows
    left: bool = False  # it has let the lead go
    leaving: bool = False  # it only carries what it has

    @property
    def pid(self) -> int:
        return self.child.identity.pid


def router_request(home: Home, nofile: tuple[int, int]) -> SpawnRequest:
    """How a router is started: with a boot id of its own, and all the descriptors that the hard limit allows.

    Args:
        home: the state directory.
        nofile: the keeper's own limits, soft and hard (getrlimit(2)).
    """
    boot_id = PREFIX + secrets.token_hex(4)
    soft, hard = nofile
    return SpawnRequest(
        boot_id=boot_id,
        service="",
        argv=(sys.executable, "-P", "-m", "turnout.router", str(home.root)),
        cwd=str(home.root),
        env=dict(os.environ),
        log_path=home.router_log,
        record_path=home.router_record(boot_id),
        nofile=(hard if hard != resource.RLIM_INFINITY else max(soft, 1 << 20), hard),
    )
