"""Where a daemon that is about to be started will listen, and the command and environment that say so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from turnout.config.settings import Address, Settings, takes_listener
from turnout.control.router_client import RouterClient
from turnout.core.addresses import reachable
from turnout.errors import NotRunningError, TimedOutError
from turnout.state.builds import Build
from turnout.system.command import clean_environment, fill_port


class LaunchSpec(msgspec.Struct, frozen=True):
    """A daemon's address, command and environment.

    ``listener``, ``activation``: as :meth:`KeeperClient.spawn` takes them.
    """

    address: Address
    argv: tuple[str, ...]
    env: dict[str, str]
    listener: Literal["shared"] | tuple[str, int] | None
    activation: tuple[int, int] | None = None


def shares_fixed_address(build: Build, settings: Settings, router: RouterClient, *, timeout_s: float) -> bool:
    """Whether the build's daemon is to listen at the fixed address itself, since the router's plane is made for that.

    ``timeout_s``: seconds for the router's answer.
    """
    if not takes_listener(build.command, build.env, settings) and settings.activation != "on":
        return False
    try:
        plane = str(router.status(timeout_s=timeout_s)["services"][settings.name]["plane"])
    except (NotRunningError, TimedOutError, OSError, KeyError):
        return False
    return plane == "reuseport"


def build_launch_spec(
    build: Build, settings: Settings, port: int | None, environ: Mapping[str, str], *, shares: bool = False
) -> LaunchSpec:
    """Have the daemon listen on a port of its own; None: on a listener at the fixed address, in the group there.

    ``environ``: the environment below the build's own. ``shares``: its own port becomes the fixed address where that
    can be, else the port that it is given.
    """
    fixed = settings.listen[0]
    address = Address("127.0.0.1", port) if port else Address(reachable(fixed.host), fixed.port)
    values = fill_port(tuple(build.env.values()), address.port, listen_port=fixed.port)
    listener: Literal["shared"] | tuple[str, int] | None = None
    if takes_listener(build.command, build.env, settings):
        listener = (address.host, address.port) if port else "shared"
    activation: tuple[int, int] | None = None
    if settings.activation == "on" and listener is None:
        takes_port = any("{port}" in word for word in (*build.command, *build.env.values()))
        activation = address.port, settings.port or (address.port if takes_port else 0)
        listener = "shared" if shares else None
    own = dict(zip(build.env, values, strict=True))
    return LaunchSpec(
        address,
        fill_port(build.command, address.port, listen_port=fixed.port),
        clean_environment({**environ, "PWD": build.cwd}, own, port=address.port),
        listener,
        activation,
    )
