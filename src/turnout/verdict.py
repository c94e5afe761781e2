"""How a rollout ended: what a verb waits for once it has let go of the lock."""

from __future__ import annotations

import time
from typing import Final

from turnout.core.model import Snapshot, State
from turnout.errors import ConflictError, RolledBackError, TimedOutError
from turnout.rollout import Switched, daemon_name, log_tail
from turnout.service import Service
from turnout.system.watcher import Watcher

POLL_S: Final = 0.02
WINDOW_SLACK_S: Final = 60.0


def await_verdict(service: Service, switched: Switched, *, timeout_s: float | None = None) -> None:
    """Wait, without the lock, until the router has ended the observe window.

    Raises:
        RolledBackError: the previous daemon serves again.
        ConflictError: another rollout took over meanwhile.
        TimedOutError: no verdict in time; the window goes on.
    """
    limit_s = service.settings.observe_s + WINDOW_SLACK_S if timeout_s is None else timeout_s
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
    back = f": {daemon_name(snapshot.active)} serves again" if snapshot.active else ""
    raise RolledBackError(
        f"generation {block.generation} was rolled back ({block.rollback_reason}){back}",
        hint=f"see {service.home.log(daemon.boot_id)}",
        detail=log_tail(service.home.log(daemon.boot_id)),
    )
