"""Where a daemon that is about to be started will listen, and what it is told of that."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from turnout.admin import RouterClient
from turnout.config import Address, Settings, takes_listener
from turnout.core.listen import reachable
from turnout.errors import NotRunningError, TimedOutError
from turnout.system.builds import Build
from turnout.system.spawn import clean_environment, fill_port

Listener = Literal["shared", "itself"] | tuple[str, int] | None


@dataclass(frozen=True, slots=True)
class Place:
    """Where it listens; ``listener``: the socket that it has for that, as :meth:`KeeperClient.spawn` takes it."""

    at: Address
    argv: tuple[str, ...]
    env: dict[str, str]
    listener: Listener


def shares_address(build: Build, settings: Settings, router: RouterClient, *, timeout_s: float) -> bool:
    """Whether this build's daemon is to listen at the fixed address itself: the router's plane must be made for that.

    Args:
        build: what is started.
        settings: the service's.
        router: the line to the router.
        timeout_s: seconds for its answer.
    """
    if not (settings.shares_port or takes_listener(build.command, build.env, settings.plane)):
        return False
    try:
        plane = str(router.status(timeout_s=timeout_s)["services"][settings.name]["plane"])
    except (NotRunningError, TimedOutError, OSError, KeyError):
        return False
    return plane == "reuseport"


def place(build: Build, settings: Settings, port: int | None) -> Place:
    """Have it listen on a port of its own; None: at the fixed address, in the group there."""
    fixed = settings.listen[0]
    at = Address("127.0.0.1", port) if port else Address(reachable(fixed.host), fixed.port)
    listen_port = at.port if settings.shares_port else fixed.port  # where it shares, it listens on what it is told
    told = fill_port(tuple(build.env.values()), at.port, listen_port=listen_port)
    listener: Listener = None
    if takes_listener(build.command, build.env, settings.plane, shares_port=settings.shares_port):
        listener = (at.host, at.port) if port else "shared"
    elif settings.shares_port and not port:
        listener = "itself"
    return Place(
        at,
        fill_port(build.command, at.port, listen_port=listen_port),
        clean_environment(os.environ, dict(zip(build.env, told, strict=True)), port=at.port),
        listener,
    )
