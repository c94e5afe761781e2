"""What the router tells of one service when it is asked, for ``turnout status`` and ``turnout drain``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from turnout.core.model import Snapshot
from turnout.core.policy import RESTART_DELAYS_S
from turnout.core.rollout_times import RolloutTimes
from turnout.drainer import Drainer
from turnout.following import Following
from turnout.live_settings import LiveSettings
from turnout.metrics import DAEMONS_MOST, DaemonReading, ServiceReading
from turnout.planes.plane import Census, Plane
from turnout.status import deployment_status
from turnout.supervision import Supervision
from turnout.troubles import Troubles


class ServiceReport:
    """Only looks. Owns nothing.

    Args:
        loop: the router's.
        plane: the service's, for counters and census.
        plane_reason: why it is that one.
        live: its settings, and what of them is not in force.
        following: the registry.
        supervision: health, and what is due to be restarted.
        drainer: what drains.
        elsewhere: answers how many connections of a daemon a router that leaves still has; None: unknown.
        troubles: what the plane met lately.
        times: what its rollouts came to.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        plane: Plane,
        plane_reason: str,
        live: LiveSettings,
        following: Following,
        supervision: Supervision,
        drainer: Drainer,
        elsewhere: Callable[[str], int | None],
        troubles: Troubles,
        times: RolloutTimes,
    ) -> None:
        self._loop = loop
        self._plane = plane
        self._plane_reason = plane_reason
        self._live = live
        self._following = following
        self._supervision = supervision
        self._drainer = drainer
        self._elsewhere = elsewhere
        self._troubles = troubles
        self._times = times

    def status(self) -> Mapping[str, Any]:
        """The service as it is now, for ``turnout status``."""
        census = self._plane.census()
        return {
            "applied_revision": self._following.applied_revision,
            "plane": self._plane.name,
            "plane_reason": self._plane_reason,
            "plane_trouble": self._plane.trouble,
            "held": self._plane.counters.held_now,
            "counters": self._plane.counters.integers(),
            "troubles": self._troubles.lately(self._loop.time()),
            "restart": self._restart(),
            "settings": {"later": list(self._live.last.later), "error": self._live.last.error},
            "unwell": self._unwell(),
            "observe_remaining_s": (remaining_s := self._supervision.supervisor.observe_remaining_s),
            "desired": self._following.snapshot.deployment.desired.value,
            "deployment": msgspec.to_builtins(deployment_status(self._following.snapshot.deployment, remaining_s)),
            "healthy": dict(self._supervision.supervisor.healthy),
            "reasons": dict(self._supervision.supervisor.reasons),
            "census": {
                boot_id: {"connections": c.connections, "bytes_in": c.bytes_in, "bytes_out": c.bytes_out}
                for boot_id, c in census.items()
            },
            "elsewhere": {boot_id: self._elsewhere(boot_id) for boot_id in self._following.snapshot.daemons},
        }

    def reading(self) -> ServiceReading:
        """The service as it is now, for a scrape; what it holds is a copy."""
        snapshot, census, times = self._following.snapshot, self._plane.census(), self._times
        return ServiceReading(
            name=self._live.service.name,
            plane=self._plane.name,
            strategy=self._live.settings.strategy,
            deployment=snapshot.deployment,
            applied_revision=self._following.applied_revision,
            observe_remaining_s=self._supervision.supervisor.observe_remaining_s,
            counters=self._plane.counters.integers(),
            connections=self._plane.connections(),
            bytes_in=_sum(one.bytes_in for one in census.values()),
            bytes_out=_sum(one.bytes_out for one in census.values()),
            connect_s=self._plane.counters.connect_s.copy(),
            switches=times.switches,
            rollbacks=times.rollbacks,
            aborted=times.aborted,
            switch_s=times.switch_s.copy(),
            rollout_s=times.rollout_s.copy(),
            daemons=self._daemons(snapshot, census),
        )

    def _daemons(self, snapshot: Snapshot, census: Mapping[str, Census]) -> list[DaemonReading]:
        """Those that take part, the deployment's own first: it names them, they drain, or they have connections."""
        block = snapshot.deployment
        roles = {block.candidate_boot_id: "candidate", block.active_boot_id: "active"}
        if snapshot.old and not snapshot.old.draining:
            roles[block.old_boot_id] = "warm"
        open_of = (boot_id for boot_id, one in census.items() if one.connections)
        taking_part = dict.fromkeys([*roles, *self._drainer.drains, *open_of])
        known = [one for boot_id in taking_part if (one := snapshot.daemons.get(boot_id))]
        nothing = Census(0, 0, 0)  # it has seen no connection of that boot, and so has counted none
        found: list[DaemonReading] = []
        for daemon in known[:DAEMONS_MOST]:
            counted = census.get(daemon.boot_id, nothing)
            own, elsewhere = counted.connections, self._elsewhere(daemon.boot_id)
            found.append(
                DaemonReading(
                    boot_id=daemon.boot_id,
                    version=daemon.version,
                    role=roles.get(daemon.boot_id, "draining"),
                    connections=None if own is None or elsewhere is None else own + elsewhere,
                    bytes_in=counted.bytes_in,
                    bytes_out=counted.bytes_out,
                    healthy=self._supervision.supervisor.healthy.get(daemon.boot_id),
                )
            )
        return found

    def drains(self) -> Sequence[Mapping[str, Any]]:
        """Each daemon that drains, with what it still has and why, for ``turnout drain``."""
        now = self._loop.time()
        policy = self._drainer.policy
        told: list[Mapping[str, Any]] = []
        for boot_id in list(self._drainer.drains):
            found = self._drainer.explain(boot_id)
            daemon = self._following.snapshot.daemons.get(boot_id)
            if found is None or daemon is None:
                continue
            drain, idle = found
            carried = self._plane.carried(boot_id, peers=True)
            age_s = now - drain.since
            told.append(
                {
                    "boot_id": boot_id,
                    "version": daemon.version,
                    "cause": "hastened" if drain.hastened else daemon.drain_cause.value,
                    "age_s": age_s,
                    "deadline_in_s": None if policy.deadline_s is None else max(0.0, policy.deadline_s - age_s),
                    "elsewhere": self._elsewhere(boot_id),
                    "connections": None
                    if carried is None
                    else [
                        {
                            "peer": one.peer,
                            "age_s": one.age_s,
                            "idle_s": idle.get(one.id),
                            "bytes_in": one.bytes_in,
                            "bytes_out": one.bytes_out,
                            "why": drain.decision.why.get(one.id, ""),
                        }
                        for one in carried
                    ],
                }
            )
        return told

    def _restart(self) -> Mapping[str, Any] | None:
        due = self._supervision.restarter.due
        if due is None:
            return None
        return {
            "attempt": due.attempt,
            "most": len(RESTART_DELAYS_S),
            "in_s": max(0.0, due.at - self._loop.time()),
            "reason": due.reason,
            "hung": due.hung,
        }

    def _unwell(self) -> Mapping[str, Any] | None:
        unwell = self._supervision.supervisor.unwell
        if unwell is None or unwell.failures < self._live.settings.health.failures:
            return None
        return {
            "boot_id": unwell.boot_id,
            "failures": unwell.failures,
            "for_s": self._loop.time() - unwell.since,
            "reason": unwell.reason,
        }


def _sum(counts: Iterable[int | None]) -> int | None:
    """All together; None where one of them is not known."""
    known = list(counts)
    return None if None in known else sum(count for count in known if count is not None)
