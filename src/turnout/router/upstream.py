"""Selects the daemon to which one service's plane sends its clients, by the registry and the settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from turnout.core.model import Daemon, Desired, State
from turnout.core.proxy_protocol import expects_header
from turnout.planes.plane import Plane, Upstream
from turnout.router.exit_watch import ExitWatch
from turnout.router.follow.registry import RegistryFollower
from turnout.router.follow.settings import SettingsFollower

# A daemon that refuses while nothing is on its way is dead, and its clients are reset; but the switch away from it
# may have been written this very moment, so one poll of the registry is waited out.
REFUSED_PATIENCE_S: Final = 0.25


@dataclass(slots=True)
class UpstreamSelector:
    """Points one service's plane. Owns nothing: the plane is the service's.

    Args:
        exits: watches the process of the active daemon.
        source_of: answers the source address that reaches a daemon at the shared address; empty: it does not share it.
    """

    plane: Plane
    live: SettingsFollower
    registry: RegistryFollower
    exits: ExitWatch
    source_of: Callable[[Daemon], str]
    _protocols: dict[str, str] = field(default_factory=dict[str, str])  # by boot, where its entry does not say
    _unproven: set[str] = field(default_factory=set[str])  # boots at whose address no listener of theirs was found

    def apply(self, *, coming: bool) -> None:
        """Point the plane, and set its patience with a daemon that is not there.

        ``coming``: a daemon is on its way of which the registry says nothing.
        """
        snapshot, block = self.registry.snapshot, self.registry.snapshot.deployment
        hold_s = self.live.settings.hold_timeout_s
        active = snapshot.active
        verified = self.live.settings.health.verify_owner
        self.exits.follow((active,) if active and verified else ())
        self._unproven &= snapshot.daemons.keys() if verified else set()
        coming = coming or block.in_flight
        if block.desired is Desired.PAUSED:
            self.plane.set_upstream(None, patience_s=hold_s)
        elif active and not self.is_proven(active):
            coming = coming or block.state is not State.IDLE or self._may_return(active)
            self.plane.set_upstream(None, patience_s=hold_s if coming else REFUSED_PATIENCE_S)
        elif active:
            daemon = self.as_started(active)
            introduces = expects_header(daemon, self.live.settings.proxy_protocol)
            upstream = Upstream(
                daemon.boot_id, daemon.host, daemon.port, proxy_protocol=introduces, source=daemon.source
            )
            coming = coming or block.state is not State.IDLE
            self.plane.set_upstream(upstream, patience_s=hold_s if coming else REFUSED_PATIENCE_S)
        else:
            coming = coming or block.generation == 0
            self.plane.set_upstream(None, patience_s=hold_s if coming else 0.0)

    def is_proven(self, daemon: Daemon) -> bool:
        """Whether what listens at the daemon's address is the daemon, as far as turnout can tell.

        It is not once its process has ended, or a look found that no listener there is its own: the port may be another
        program's by then. With ``verify_owner`` False the address is trusted, whichever program has it.
        """
        return daemon.boot_id not in self._unproven and not self.exits.has_ended(daemon.boot_id)

    def listener_seen(self, daemon: Daemon, *, proven: bool) -> bool:
        """Note what a look at the daemon's listener found; answers whether that changes where clients go."""
        if proven is not (daemon.boot_id in self._unproven):
            return False
        self._unproven ^= {daemon.boot_id}
        return daemon.boot_id == self.registry.snapshot.deployment.active_boot_id

    def _may_return(self, active: Daemon) -> bool:
        """Whether an active daemon that is not proven is expected back: it lives, or turnout starts it again."""
        if self.registry.snapshot.deployment.desired is not Desired.RUNNING:
            return False
        return active.owned or not self.exits.has_ended(active.boot_id)

    def located(self, daemon: Daemon) -> Daemon:
        """The daemon as it can be reached now: its index in the group may not be the one that it registered."""
        return replace(daemon, source=self.source_of(daemon))

    def as_started(self, daemon: Daemon) -> Daemon:
        """The daemon as it can be reached now, with the PROXY protocol that it was started to expect.

        A changed setting applies to the daemons that start after it; the previous one may become active again. A
        daemon whose entry does not say expects what the settings had when this router first asked.
        """
        if not daemon.proxy_protocol:
            if daemon.boot_id not in self._protocols:
                known = self.registry.snapshot.daemons
                self._protocols = {boot: protocol for boot, protocol in self._protocols.items() if boot in known}
                self._protocols[daemon.boot_id] = self.live.settings.proxy_protocol
            daemon = replace(daemon, proxy_protocol=self._protocols[daemon.boot_id])
        return self.located(daemon)
