"""Which plane runs here, and why not a better one."""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from turnout.core.connection_policy import DIRECT, Policy
from turnout.errors import ConfigError
from turnout.planes.loop_priority import LoopPriority
from turnout.planes.plane import Plane, PlaneOptions, UpstreamChecks
from turnout.planes.stream.plane import Stream

if TYPE_CHECKING:
    from turnout.planes.direct.steering import Kernel, Steering
    from turnout.planes.poller import Poller


class SelectedPlane(msgspec.Struct, frozen=True):
    """A plane by its name, and why it is that one, for people."""

    name: str
    reason: str


def lacking() -> str:
    """What of the relay's needs this system does not have; empty where it can run."""
    needs = {"epoll(7)": hasattr(select, "epoll"), "splice(2)": hasattr(os, "splice")}
    return " and ".join(name for name, there in needs.items() if not there)


def select_plane(
    wanted: str,
    *,
    lacks: str,
    demands: Sequence[str] = (),
    takes_part: bool = False,
    tried: Callable[[], str] = lambda: "",
) -> SelectedPlane:
    """The plane for what the settings want.

    Args:
        wanted: auto, or the name of a plane.
        lacks: what :func:`lacking` answers.
        demands: the settings that only a relay can enforce.
        takes_part: whether the daemon shares the fixed address with the router, by a socket that it is given or by
            itself; only then it can be reached without a proxy and without privileges.
        tried: makes a group of listeners and a connection to it; answers why that does not work here, empty where it
            does. Asked only where it matters. A daemon that takes part has no port of its own: without a group it would
            not even start, named or not, and behind a relay it is given one.

    Raises:
        ConfigError: the plane that was named cannot run here, or not with these demands.
    """
    if wanted == "stream":
        return SelectedPlane("stream", "it was named")
    if wanted in {"relay", *DIRECT}:
        if lacks:
            raise ConfigError(f"plane {wanted} cannot run here: no {lacks}", hint='plane = "stream" or "auto"')
        if wanted in DIRECT and demands:
            raise ConfigError(
                f"{' and '.join(demands)}: only a relay can enforce that, and plane {wanted} has none in the way",
                hint='plane = "relay" or "auto"',
            )
        selected = SelectedPlane(wanted, "it was named")
    elif lacks:
        return SelectedPlane("stream", f"no {lacks} here, which the relay needs")
    elif not takes_part:
        return SelectedPlane("relay", "the fastest for a daemon that listens on a port of its own")
    elif demands:
        return SelectedPlane("relay", f"only a relay can enforce {' and '.join(demands)}")
    else:
        selected = SelectedPlane("reuseport", "the daemon takes part in it, and it works here")
    why = tried() if selected.name == "reuseport" else ""
    return SelectedPlane("relay", f"reuseport does not work here: {why}") if why else selected


class Planes:
    """Makes the planes of one router. Owns the epoll that its relays share: none of them waits for another's events.

    ``loop_priority`` is how the rest of the router keeps that epoll from staying when there is something urgent. What
    the relay needs is imported where a relay is made.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._poller: Poller | None = None
        self.loop_priority = LoopPriority()

    def make(self, name: str, policy: Policy, checks: UpstreamChecks) -> Plane:
        """A relay or a stream, by the name that was selected."""
        options = PlaneOptions(policy, checks)
        if name == "stream":
            return Stream(self._loop, options, loop_priority=self.loop_priority)
        from turnout.planes.poller import Poller  # noqa: PLC0415
        from turnout.planes.relay import Relay  # noqa: PLC0415

        self._poller = self._poller or Poller(self._loop, loop_priority=self.loop_priority)
        return Relay(self._loop, options, poller=self._poller)

    def direct(self, steering: Steering, kernel: Kernel, policy: Policy, checks: UpstreamChecks) -> Plane:
        """A relay with this steering, which the plane owns from here on, before it."""
        from turnout.planes.direct.plane import Direct  # noqa: PLC0415

        return Direct(self._loop, self.make("relay", policy, checks), steering, kernel, policy=policy)

    def close(self) -> None:
        """Give the epoll back; every relay has closed before."""
        if self._poller:
            self._poller.close()
