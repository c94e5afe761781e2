"""Which plane runs here, and why not a better one."""

from __future__ import annotations

import asyncio
import os
import select
from dataclasses import dataclass
from typing import TYPE_CHECKING

from turnout.errors import ConfigError
from turnout.planes.attention import Attention
from turnout.planes.plane import Plane
from turnout.planes.policy import Policy
from turnout.planes.stream import Stream

if TYPE_CHECKING:
    from turnout.planes.poller import Poller


@dataclass(frozen=True, slots=True)
class Chosen:
    """A plane by its name, and why it is that one, for people."""

    name: str
    reason: str


def lacking() -> str:
    """What of the relay's needs this system does not have; empty where it can run."""
    needs = {"epoll(7)": hasattr(select, "epoll"), "splice(2)": hasattr(os, "splice")}
    return " and ".join(name for name, there in needs.items() if not there)


def choose(wanted: str, *, lacks: str) -> Chosen:
    """The plane for what the settings want.

    Args:
        wanted: auto, relay or stream.
        lacks: as :func:`lacking` says.

    Raises:
        ConfigError: it was named, and cannot run here.
    """
    if wanted == "stream":
        return Chosen("stream", "it was named")
    if wanted == "relay":
        if lacks:
            raise ConfigError(f"plane relay cannot run here: no {lacks}", hint='plane = "stream" or "auto"')
        return Chosen("relay", "it was named")
    if lacks:
        return Chosen("stream", f"no {lacks} here, which the relay needs")
    return Chosen("relay", "the fastest that runs here")


class Planes:
    """Makes the planes of one router. Owns the epoll that its relays share: none of them waits for another's events.

    ``attention`` is how the rest of the router keeps that epoll from staying when there is something urgent. What only
    Linux has is imported where a relay is made.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._poller: Poller | None = None
        self.attention = Attention()

    def make(self, name: str, policy: Policy) -> Plane:
        """A plane by the name that was chosen."""
        if name == "stream":
            self.attention.urgent += 1  # its connections are on the loop's own epoll, and must not wait for a relay's
            return Stream(self._loop, policy=policy)
        from turnout.planes.poller import Poller  # noqa: PLC0415
        from turnout.planes.relay import Relay  # noqa: PLC0415

        self._poller = self._poller or Poller(self._loop, attention=self.attention)
        return Relay(self._loop, poller=self._poller, policy=policy)

    def close(self) -> None:
        """Give the epoll back; every relay has closed before."""
        if self._poller:
            self._poller.close()
