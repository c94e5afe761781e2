"""Where one service's plane sends its clients, as the registry and the settings have it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from turnout.core.model import Daemon, Desired, State
from turnout.following import Following
from turnout.live_settings import LiveSettings
from turnout.planes.plane import Plane, Target

# A daemon that refuses while nothing is on its way is dead, and its clients are told so; but the switch away from it
# may have been written this very moment, so one poll of the registry is waited out.
REFUSED_PATIENCE_S: Final = 0.25


class Pointing:
    """Points one service's plane. Owns nothing: the plane is the service's.

    Args:
        plane: that.
        live: its settings.
        following: its registry.
        source_of: from where one reaches a daemon that shares the fixed address; empty: it does not.
        is_joining: whether a daemon, by its boot, joins the group there by itself and has no place at the moment.
    """

    def __init__(
        self,
        plane: Plane,
        live: LiveSettings,
        following: Following,
        source_of: Callable[[Daemon], str],
        is_joining: Callable[[str], bool],
    ) -> None:
        self._plane = plane
        self._live = live
        self._following = following
        self._source_of = source_of
        self._is_joining = is_joining
        self._headers: dict[str, bool] = {}  # by boot

    def point(self, *, coming: bool) -> None:
        """Tell the plane where to go, and how patient to be with a daemon that is not there.

        Args:
            coming: a daemon is on its way of which the registry says nothing.
        """
        snapshot, block = self._following.snapshot, self._following.snapshot.deployment
        hold_s = self._live.settings.hold_timeout_s
        active = snapshot.active
        if block.desired is Desired.PAUSED:
            self._plane.point_at(None, patience_s=hold_s)
        elif active:
            target = Target(
                active.boot_id,
                active.host,
                active.port,
                proxy_protocol=self.expects_header(active.boot_id),
                source=self._source_of(active),
            )
            coming = coming or block.state is not State.IDLE or self._is_joining(active.boot_id)
            self._plane.point_at(target, patience_s=hold_s if coming else REFUSED_PATIENCE_S)
        else:
            coming = coming or block.in_flight or block.generation == 0
            self._plane.point_at(None, patience_s=hold_s if coming else 0.0)

    def located(self, daemon: Daemon) -> Daemon:
        """The daemon as it can be reached now: one that joined the group anew has another place than it registered."""
        return replace(daemon, source=self._source_of(daemon))

    def expects_header(self, boot_id: str) -> bool:
        """Whether a daemon is told its clients' addresses: as it was started, whatever the settings say now.

        A changed setting goes with the daemons that come after it; the old one may be gone back to. Of one whose entry
        does not tell, it is as the settings had it when it first came to be active.
        """
        daemon = self._following.snapshot.daemons.get(boot_id)
        if daemon and daemon.proxy_protocol:
            return daemon.proxy_protocol == "v2"
        expects = self._headers.get(boot_id)
        if expects is None:
            known = self._following.snapshot.daemons
            self._headers = {boot: told for boot, told in self._headers.items() if boot in known}
            expects = self._headers[boot_id] = self._live.settings.proxy_protocol == "v2"
        return expects
