"""How a rollout ended: what a verb waits for once it has let go of the lock."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Final

from turnout.core.addresses import format_address
from turnout.core.backoff import RESTART_DELAYS_S
from turnout.core.model import Cause, Daemon, Snapshot, State
from turnout.errors import CandidateError, ConflictError, RolledBackError, StateUnwritableError, TimedOutError
from turnout.lifecycle.failure_report import log_tail
from turnout.lifecycle.naming import daemon_name
from turnout.lifecycle.rollout import Switched
from turnout.state.builds import Rollout
from turnout.state.service import Service
from turnout.system.file_watcher import Watcher
from turnout.system.process import is_alive

POLL_S: Final = 0.02
WINDOW_SLACK_S: Final = 60.0


def serving(service: Service) -> str:
    """Who serves after a rollout that failed, for its message."""
    active = service.registry.read().snapshot.active
    if active is None or (active.owned and not is_alive(active.identity)):
        return "nothing is serving"
    rollouts: tuple[Rollout, ...] = ()
    with suppress(StateUnwritableError):  # the message is of another failure
        rollouts = service.builds.rollouts()
    for rollout in reversed(rollouts):
        if rollout.result == "active" and rollout.build == active.build:
            return f"still serving generation {rollout.generation}" + (f" ({active.version})" if active.version else "")
    return f"still serving {daemon_name(active)}"


def await_verdict(service: Service, switched: Switched, *, timeout_s: float | None = None) -> None:
    """Wait, without the lock, until the router has ended the observe window.

    Raises:
        RolledBackError: the previous daemon serves again, or its build does.
        CandidateError: it failed, and could not be rolled back.
        ConflictError: another rollout took over meanwhile.
        TimedOutError: no verdict in time; the window goes on.
    """
    settings = service.settings
    checks_s = settings.health.failures * (settings.health.interval_s + settings.health.timeout_s)
    # a cold rollback takes a stop and a start more, and is tried as often as a restart
    cold_s = settings.stop_grace_s + settings.start_timeout_s + sum(RESTART_DELAYS_S)
    longest_s = settings.observe_s + checks_s + cold_s + WINDOW_SLACK_S
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
    if block.active_boot_id == daemon.boot_id and block.rollback_reason:
        hint, detail = _log_of(service, daemon)
        reason = f"generation {switched.generation} failed ({block.rollback_reason}); nothing could be restored"
        raise CandidateError(reason, hint=hint, detail=detail)
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
    reason = ""
    with suppress(StateUnwritableError):  # the verdict does not depend on it
        reason = service.builds.quarantined(daemon.build) or ""
    reason = reason or "by hand"
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
    hint, detail = _log_of(service, switched.daemon)
    return RolledBackError(
        f"generation {switched.generation} was rolled back ({reason}){back}", hint=hint, detail=detail
    )


def _log_of(service: Service, daemon: Daemon) -> tuple[str, str]:
    """A hint for a daemon that failed, with the last lines of its log; turnout has no log of an attached daemon."""
    if not daemon.owned:
        return f"turnout attach {format_address(daemon.host, daemon.port)}", ""
    log = service.home.log(daemon.boot_id)
    return f"see {log}", log_tail(log)
