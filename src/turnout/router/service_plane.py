"""The plane that one service has in this router, with what the plane asks and what it was made of."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from turnout.planes.direct.bpf_pins import Pins
from turnout.planes.direct.doors import Doors
from turnout.planes.plane import Plane, Upstream, UpstreamChecks, UpstreamDoors
from turnout.router.exit_watch import ExitWatch
from turnout.router.group_view import GroupView
from turnout.router.kernel_view import KernelView


class ServicePlane(msgspec.Struct, frozen=True):
    """One service's plane. The service's runtime owns the plane and the exit watch.

    Args:
        reason: why it is this plane, for people.
        doors: connections that reach a daemon of the group, whichever is active.
        exits: watches the processes of the daemons that the plane sends clients to.
        pins: what is pinned for the sk_lookup plane; None: nothing can be.
    """

    plane: Plane
    reason: str
    group: GroupView
    doors: Doors
    exits: ExitWatch
    pins: Pins | None


@dataclass(frozen=True, slots=True)
class DaemonChecks(UpstreamChecks):
    """The checks of one service's plane. Owns nothing."""

    kernel: KernelView
    exits: ExitWatch
    doors: UpstreamDoors | None

    def is_there(self, upstream: Upstream) -> bool:
        return self.kernel.is_there(upstream)

    def has_ended(self, upstream: Upstream) -> bool:
        return self.exits.has_ended(upstream.boot_id)

    def room(self, upstream: Upstream) -> int | None:
        return self.kernel.room(upstream)
