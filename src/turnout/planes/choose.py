"""Which plane runs here, and why not a better one."""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from turnout.errors import ConfigError
from turnout.planes.attention import Attention
from turnout.planes.front import IsThere
from turnout.planes.plane import Plane
from turnout.planes.policy import DIRECT, Policy
from turnout.planes.stream import Stream

if TYPE_CHECKING:
    from turnout.planes.poller import Poller
    from turnout.planes.steering import Kernel, Steering


@dataclass(frozen=True, slots=True)
class Chosen:
    """A plane by its name, and why it is that one, for people."""

    name: str
    reason: str


def lacking() -> str:
    """What of the relay's needs this system does not have; empty where it can run."""
    needs = {"epoll(7)": hasattr(select, "epoll"), "splice(2)": hasattr(os, "splice")}
    return " and ".join(name for name, there in needs.items() if not there)


def choose(
    wanted: str,
    *,
    lacks: str,
    demands: Sequence[str] = (),
    takes_part: bool = False,
    tried: Callable[[], str] = lambda: "",
) -> Chosen:
    """The plane for what the settings want.

    Args:
        wanted: auto, or the name of a plane.
        lacks: as :func:`lacking` says.
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
        return Chosen("stream", "it was named")
    if wanted in {"relay", *DIRECT}:
        if lacks:
            raise ConfigError(f"plane {wanted} cannot run here: no {lacks}", hint='plane = "stream" or "auto"')
        if wanted in DIRECT and demands:
            raise ConfigError(
                f"{' and '.join(demands)}: only a relay can enforce that, and plane {wanted} has none in the way",
                hint='plane = "relay" or "auto"',
            )
        why = tried() if wanted == "reuseport" else ""
        return Chosen("relay", f"reuseport does not work here: {why}") if why else Chosen(wanted, "it was named")
    if lacks:
        return Chosen("stream", f"no {lacks} here, which the relay needs")
    if not takes_part:
        return Chosen("relay", "the fastest for a daemon that listens on a port of its own")
    if demands:
        return Chosen("relay", f"only a relay can enforce {' and '.join(demands)}")
    why = tried()
    if why:
        return Chosen("relay", f"reuseport does not work here: {why}")
    return Chosen("reuseport", "the daemon takes part in it, and it works here")


class Planes:
    """Makes the planes of one router. Owns the epoll that its relays share: none of them waits for another's events.

    ``attention`` is how the rest of the router keeps that epoll from staying when there is something urgent. What only
    Linux has is imported where a relay is made.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._poller: Poller | None = None
        self.attention = Attention()

    def make(self, name: str, policy: Policy, is_there: IsThere) -> Plane:
        """A relay or a stream, by the name that was chosen.

        Args:
            name: that.
            policy: see there.
            is_there: whether a daemon that shares the fixed address still listens there.
        """
        if name == "stream":
            self.attention.urgent += 1  # its connections are on the loop's own epoll, and must not wait for a relay's
            return Stream(self._loop, policy=policy, is_there=is_there)
        from turnout.planes.poller import Poller  # noqa: PLC0415
        from turnout.planes.relay import Relay  # noqa: PLC0415

        self._poller = self._poller or Poller(self._loop, attention=self.attention)
        return Relay(self._loop, poller=self._poller, policy=policy, is_there=is_there)

    def direct(self, steering: Steering, kernel: Kernel, policy: Policy, is_there: IsThere) -> Plane:
        """A relay with this steering before it.

        Args:
            steering: tells the kernel where new connections go; the plane owns it from here on.
            kernel: tells who has which connections.
            policy: see there.
            is_there: as for :meth:`make`.
        """
        from turnout.planes.direct import Direct  # noqa: PLC0415

        return Direct(self._loop, self.make("relay", policy, is_there), steering, kernel, policy=policy)

    def close(self) -> None:
        """Give the epoll back; every relay has closed before."""
        if self._poller:
            self._poller.close()
