"""Drains a router that was replaced, as old daemons are drained: by the drain settings of each service.

It accepts nothing and decides nothing about daemons. What it had accepted it serves: held clients still get the daemon
that is active then, and connections stay until they end, are quiet after the grace, or meet the deadline.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from turnout.config.settings import Settings
from turnout.core.drain import DrainPolicy, decide
from turnout.core.model import DrainCause, Snapshot
from turnout.planes.plane import Plane
from turnout.router.drain.drainer import MANY, POLL_S, Drain


@dataclass(slots=True)
class RouterDrain:
    """One service of a router that drains, since ``since`` (monotonic seconds). Owns nothing."""

    plane: Plane
    settings: Callable[[], Settings]
    since: float
    drains: dict[str, Drain] = field(default_factory=dict[str, Drain])
    look_at: float = 0.0

    def step(self, snapshot: Snapshot, now: float) -> int:
        """Cut what is to be cut now (monotonic seconds); answers how many clients are left, held clients included."""
        if now >= self.look_at:
            self._look(snapshot, now)
        return self.plane.connections() + self.plane.waiting()

    def _look(self, snapshot: Snapshot, now: float) -> None:
        """Walk all connections: less often where there are many."""
        settings = self.settings()
        policy = DrainPolicy(settings.drain_grace_s, settings.drain_deadline_s)
        for boot_id in self.plane.traffic():
            carried = self.plane.open_connections(boot_id)
            if not carried:  # none, or the kernel does not tell: they end with the daemon or the clients
                continue
            if len(carried) > MANY:
                self.look_at = now + 5 * POLL_S
            drain = self.drains.setdefault(boot_id, Drain(self.since))
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
                self.plane.cut(boot_id, drain.decision.cut)

    @staticmethod
    def _cause(snapshot: Snapshot, boot_id: str) -> DrainCause:
        """The cause of the daemon's own drain; a daemon that goes on serving is left as if it had been replaced."""
        daemon = snapshot.daemons.get(boot_id)
        drains = daemon is not None and daemon.draining and boot_id not in snapshot.deployment.named
        return daemon.drain_cause if daemon and drains else DrainCause.REPLACED
