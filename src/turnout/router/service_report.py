"""Status, metrics and drains of one service, for ``turnout status``, a scrape and ``turnout drain``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import msgspec

from turnout.core.backoff import RESTART_DELAYS_S
from turnout.core.model import Snapshot
from turnout.planes.plane import TrafficStats
from turnout.router.drain.drainer import Drainer
from turnout.router.followed_service import FollowedService
from turnout.router.health.actions import HealthActions
from turnout.router.plane_warnings import PlaneWarnings
from turnout.router.rollout_metrics import RolloutTimes
from turnout.router.service_plane import ServicePlane
from turnout.status.collect import deployment_status
from turnout.status.metrics import DAEMONS_MOST, DaemonReading, ServiceReading


class ServiceReport(msgspec.Struct, frozen=True):
    """Read-only: builds status and metrics for one service.

    ``elsewhere`` answers how many connections of a daemon a router that drains still has; None: unknown.
    """

    service: FollowedService
    plane: ServicePlane
    health: HealthActions
    drainer: Drainer
    elsewhere: Callable[[str], int | None]
    warnings: PlaneWarnings
    times: RolloutTimes = msgspec.field(default_factory=RolloutTimes)

    def status(self) -> Mapping[str, Any]:
        """The service as it is now, for ``turnout status``."""
        plane, monitor, snapshot = self.plane.plane, self.health.monitor, self.service.registry.snapshot
        remaining_s, named = monitor.observe_remaining_s, snapshot.deployment.named
        return {
            "applied_revision": self.service.registry.applied_revision,
            "plane": plane.name,
            "plane_reason": self.plane.reason,
            "plane_trouble": plane.degraded_reason,
            "held": plane.counters.held_now,
            "counters": plane.counters.integers(),
            "troubles": self.warnings.recent(self.service.loop.time()),
            "restart": self._restart(),
            "settings": {"later": list(self.service.live.last.later), "error": self.service.live.last.error},
            "unwell": self._unwell(),
            "observe_remaining_s": remaining_s,
            "desired": snapshot.deployment.desired.value,
            "deployment": msgspec.to_builtins(deployment_status(snapshot.deployment, remaining_s)),
            "healthy": dict(monitor.healthy),
            "reasons": dict(monitor.reasons),
            "census": {boot_id: asdict(counted) for boot_id, counted in plane.traffic().items()},
            # asked of the kernel on the loop, so not for the thousands of daemons that a shared registry may name
            "elsewhere": {
                boot_id: self.elsewhere(boot_id)
                for boot_id, daemon in snapshot.daemons.items()
                if daemon.draining or boot_id in named
            },
            "drained": self.drainer.drained(),
        }

    def reading(self) -> ServiceReading:
        """The service as it is now, for a scrape; what it holds is a copy."""
        snapshot, census, times = self.service.registry.snapshot, self.plane.plane.traffic(), self.times
        return ServiceReading(
            name=self.service.name,
            plane=self.plane.plane.name,
            strategy=self.service.live.settings.strategy,
            deployment=snapshot.deployment,
            applied_revision=self.service.registry.applied_revision,
            observe_remaining_s=self.health.monitor.observe_remaining_s,
            counters=self.plane.plane.counters.integers(),
            connections=self.plane.plane.connections(),
            bytes_in=_sum(daemon.bytes_in for daemon in census.values()),
            bytes_out=_sum(daemon.bytes_out for daemon in census.values()),
            connect_s=self.plane.plane.counters.connect_s.copy(),
            switches=times.switches,
            rollbacks=times.rollbacks,
            aborted=times.aborted,
            switch_s=times.switch_s.copy(),
            rollout_s=times.rollout_s.copy(),
            daemons=self._daemons(snapshot, census),
        )

    def _daemons(self, snapshot: Snapshot, census: Mapping[str, TrafficStats]) -> list[DaemonReading]:
        """Those that take part, the deployment's own first: it names them, they drain, or they have connections."""
        block = snapshot.deployment
        roles = {block.candidate_boot_id: "candidate", block.active_boot_id: "active"}
        if snapshot.old and not snapshot.old.draining:
            roles[block.old_boot_id] = "warm"
        open_of = (boot_id for boot_id, counted in census.items() if counted.connections)
        taking_part = dict.fromkeys([*roles, *self.drainer.drains, *open_of])
        daemons = [daemon for boot_id in taking_part if (daemon := snapshot.daemons.get(boot_id))]
        nothing = TrafficStats(0, 0, 0)  # it has seen no connection of that boot, and so has counted none
        found: list[DaemonReading] = []
        for daemon in daemons[:DAEMONS_MOST]:
            counted = census.get(daemon.boot_id, nothing)
            own, elsewhere = counted.connections, self.elsewhere(daemon.boot_id)
            found.append(
                DaemonReading(
                    boot_id=daemon.boot_id,
                    version=daemon.version,
                    role=roles.get(daemon.boot_id, "draining"),
                    connections=None if own is None or elsewhere is None else own + elsewhere,
                    bytes_in=counted.bytes_in,
                    bytes_out=counted.bytes_out,
                    healthy=self.health.monitor.healthy.get(daemon.boot_id),
                )
            )
        return found

    def drains(self) -> Sequence[Mapping[str, Any]]:
        """Each daemon that drains, with what it still has and why, for ``turnout drain``."""
        now = self.service.loop.time()
        policy = self.drainer.policy
        drains: list[Mapping[str, Any]] = []
        for boot_id in list(self.drainer.drains):
            found = self.drainer.explain(boot_id)
            daemon = self.service.registry.snapshot.daemons.get(boot_id)
            if found is None or daemon is None:
                continue
            drain, idle = found
            carried = self.plane.plane.open_connections(boot_id, peers=True)
            age_s = now - drain.since
            drains.append(
                {
                    "boot_id": boot_id,
                    "version": daemon.version,
                    "cause": "hastened" if drain.hastened else daemon.drain_cause.value,
                    "age_s": age_s,
                    "deadline_in_s": None if policy.deadline_s is None else max(0.0, policy.deadline_s - age_s),
                    "elsewhere": self.elsewhere(boot_id),
                    "connections": None
                    if carried is None
                    else [
                        {
                            "peer": connection.peer,
                            "age_s": connection.age_s,
                            "idle_s": idle.get(connection.id),
                            "bytes_in": connection.bytes_in,
                            "bytes_out": connection.bytes_out,
                            "why": drain.decision.why.get(connection.id, ""),
                        }
                        for connection in carried
                    ],
                }
            )
        return drains

    def _restart(self) -> Mapping[str, Any] | None:
        rollback = self.health.cold_rollback.pending
        due = rollback or self.health.restarter.pending
        if due is None:
            return None
        return {
            "attempt": due.attempt,
            "most": len(RESTART_DELAYS_S),
            "in_s": max(0.0, due.at - self.service.loop.time()),
            "reason": due.reason,
            "hung": due.hung,
            "rolls_back": rollback is not None,
            "blocked": due.blocked.reason if due.blocked else "",
        }

    def _unwell(self) -> Mapping[str, Any] | None:
        unwell = self.health.monitor.unwell
        if unwell is None or unwell.failures < self.service.live.settings.health.failures:
            return None
        return {
            "boot_id": unwell.boot_id,
            "failures": unwell.failures,
            "for_s": self.service.loop.time() - unwell.since,
            "reason": unwell.reason,
        }


def _sum(counts: Iterable[int | None]) -> int | None:
    """The sum; None where a count is unknown."""
    known = list(counts)
    return None if None in known else sum(count for count in known if count is not None)
