"""The contract of every plane: how the router tells it where connections go, and what it answers."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Target:
    """Where new connections go: a daemon, by its boot and its address (a numeric host)."""

    boot_id: str
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Census:
    """What one boot has and had. ``connections``: open now; bytes since the plane began; None: cannot be counted.

    ``bytes_in`` goes from clients to the daemon, ``bytes_out`` back.
    """

    connections: int
    bytes_in: int | None
    bytes_out: int | None


@dataclass(slots=True)
class Counters:
    """Plain integers, since the plane began; ``held_now`` is a gauge."""

    accepted: int = 0
    closed: int = 0
    connect_failed: int = 0
    held_now: int = 0
    held_total: int = 0
    hold_overflow: int = 0
    hold_timeout: int = 0
    reset_unrouted: int = 0
    fd_exhausted: int = 0
    cut: int = 0
    pipes_denied: int = 0
    copied_bytes: int = 0
    spliced_bytes: int = 0


class Plane(Protocol):
    """Moves connections from the fixed address to the daemon it is pointed at. Owns every descriptor it was given."""

    counters: Counters

    def point_at(self, target: Target | None, *, patience_s: float) -> None:
        """Send connections that come from now on to ``target``; those that exist stay.

        Args:
            target: None: nobody serves at the moment.
            patience_s: how long a connection may be held while nobody serves or the target refuses; 0: it is reset.
        """
        ...

    def census(self) -> Mapping[str, Census]: ...

    def connections(self) -> int: ...

    def cut(self, boot_id: str) -> int:
        """Reset every connection of that boot, both ways; answers how many there were."""
        ...

    def add_listener(self, sock: socket.socket) -> None:
        """Accept from a listening socket; the plane keeps a descriptor of its own."""
        ...

    def stop_accepting(self) -> None: ...

    def close(self) -> None: ...
