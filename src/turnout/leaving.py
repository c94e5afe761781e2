"""How a router that was replaced lets its clients go: as those of an old daemon, by the same settings of each service.

It accepts nothing and decides nothing about daemons. What it had accepted it serves: held clients still get the daemon
that is active then, and connections stay until they end, are quiet after the grace, or meet the deadline.
"""

from __future__ import annotations

from collections.abc import Callable

from turnout.config import Settings
from turnout.core.drain import DrainPolicy, decide
from turnout.core.model import DrainCause, Snapshot
from turnout.drainer import Drain
from turnout.planes.plane import Plane


class Leaving:
    """One service of a router that leaves. Owns nothing: the plane is the service's.

    Args:
        plane: what carries its connections.
        settings: answers the settings as they are now.
        since: when the router began to leave, monotonic seconds.
    """

    def __init__(self, plane: Plane, settings: Callable[[], Settings], since: float) -> None:
        self._plane = plane
        self._settings = settings
        self._since = since
        self._drains: dict[str, Drain] = {}

    def step(self, snapshot: Snapshot, now: float) -> int:
        """Cut what is to be cut now; answers how many connections are left, held ones included.

        Args:
            snapshot: the registry, which may say that a daemon's drain is hastened.
            now: monotonic seconds.
        """
        settings = self._settings()
        policy = DrainPolicy(settings.drain_grace_s, settings.drain_deadline_s)
        for boot_id in self._plane.census():
            carried = self._plane.carried(boot_id)
            if not carried:  # none, or nobody can tell: the daemon's end, or the clients', is theirs
                continue
            drain = self._drains.setdefault(boot_id, Drain(self._since))
            drain.decision = decide(
                policy,
                self._cause(snapshot, boot_id),
                since=drain.since,
                now=now,
                remaining=drain.look(carried, now),
                most=drain.most,
                healthy=True,
            )
            if drain.decision.cut != ():
                self._plane.cut(boot_id, drain.decision.cut)
        return self._plane.connections() + self._plane.waiting()

    @staticmethod
    def _cause(snapshot: Snapshot, boot_id: str) -> DrainCause:
        """The daemon's own where it drains; one that goes on serving is left by us as if it had been replaced."""
        daemon = snapshot.daemons.get(boot_id)
        drains = daemon is not None and daemon.draining and boot_id not in snapshot.deployment.named
        return daemon.drain_cause if daemon and drains else DrainCause.REPLACED
