"""How a rollout ended: what a verb waits for once it has let go of the lock."""

from __future__ import annotations

import time
from typing import Final

from turnout.candidate_error import log_tail
from turnout.core.model import Cause, Snapshot, State
from turnout.daemon_naming import daemon_name
from turnout.errors import CandidateError, ConflictError, RolledBackError, TimedOutError
from turnout.rollout import Switched
from turnout.service import Service
from turnout.system.process import is_alive
from turnout.system.watcher import Watcher

POLL_S: Final = 0.02
WINDOW_SLACK_S: Final = 60.0


def serving(service: Service) -> str:
    """Who serves after a rollout that failed, for its message."""
    active = service.registry.read().snapshot.active
    if active is None or (active.owned and not is_alive(active.identity)):
        return "nothing is serving"
    for rollout in reversed(service.builds.rollouts()):
        if rollout.result == "active" and rollout.build == active.build:
            return f"still serving generation {rollout.generation}" + (f" ({active.version})" if active.version else "")
    return f"still serving {daemon_name(active)}"


def await_verdict(service: Service, switched: Switched, *, timeout_s: float | None = None) -> None:
    """Wait, without the lock, until the router has ended the observe window.

    Raises:
        RolledBackError: the previous daemon serves again, or its build does.
        CandidateError: it was to be rolled back, and that failed.
        ConflictError: another rollout took over meanwhile.
        TimedOutError: no verdict in time; the window goes on.
    """
    settings = service.settings
    # a cold rollback takes a stop and a start more
    longest_s = settings.observe_s + settings.stop_grace_s + settings.start_timeout_s + WINDOW_SLACK_S
    limit_s = longest_s if timeout_s is None else timeout_s
    deadline = time.monotonic() + limit_s
    watcher = Watcher(service.registry.path)
    while True:
        if watcher.poll():
            snapshot = service.registry.read().snapshot
            if _is_over(service, snapshot, switched):
                return
        if time.monotonic() > deadline:
            raise TimedOutError(
                f"generation {switched.generation} is still observed after {limit_s:g} s", hint="turnout status"
            )
        time.sleep(POLL_S)


def _is_over(service: Service, snapshot: Snapshot, switched: Switched) -> bool:
    block, daemon = snapshot.deployment, switched.daemon
    if block.generation > switched.generation and block.cause is Cause.ROLLBACK:
        return _is_back(service, snapshot, switched)
    if block.generation != switched.generation:
        raise ConflictError(
            f"generation {switched.generation} was superseded by generation {block.generation}",
            hint="turnout status",
        )
    if block.state is State.SWITCHED:
        return False
    if block.active_boot_id == daemon.boot_id:
        return True
    if not block.rollback_reason or not block.active_boot_id:
        raise ConflictError(f"generation {block.generation} was stopped meanwhile", hint="turnout status")
    raise _rolled_back(service, snapshot, switched, block.rollback_reason)


def _is_back(service: Service, snapshot: Snapshot, switched: Switched) -> bool:
    """A new rollout of an earlier build has taken over: a cold rollback, by the router or by hand."""
    block, daemon = snapshot.deployment, switched.daemon
    if block.in_flight:
        return False
    reason = service.builds.quarantined(daemon.build) or "by hand"
    came_back = block.generation == switched.generation + 1 and not block.rollback_reason
    if came_back and snapshot.active and snapshot.active.boot_id != daemon.boot_id:
        raise _rolled_back(service, snapshot, switched, reason)
    raise CandidateError(
        f"generation {switched.generation} failed ({reason}), and so did its rollback"
        f" ({block.rollback_reason or 'it was started again'}); {serving(service)}",
        hint="turnout status",
        detail=log_tail(service.home.log(daemon.boot_id)),
    )


def _rolled_back(service: Service, snapshot: Snapshot, switched: Switched, reason: str) -> RolledBackError:
    back = f": {daemon_name(snapshot.active)} serves again" if snapshot.active else ""
    log = service.home.log(switched.daemon.boot_id)
    return RolledBackError(
        f"generation {switched.generation} was rolled back ({reason}){back}", hint=f"see {log}", detail=log_tail(log)
    )
