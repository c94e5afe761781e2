"""What is wrong with a service, and what to type: decided from its status alone. Nothing here touches the world."""

from __future__ import annotations

from turnout.config import DEFAULT_SERVICE
from turnout.core.model import Desired, State
from turnout.telemetry import DaemonStatus, Problem, ServiceStatus

IN_FLIGHT = frozenset({State.STARTING, State.ROLLING_BACK, State.READY})


def problems_of(status: ServiceStatus, *, failures: int, abandoned: bool) -> list[Problem]:
    """Everything that a person should know of, the gravest first.

    Args:
        status: how the service is.
        failures: consecutive failed checks that roll back.
        abandoned: the process that carries the unfinished rollout is provably dead.
    """
    if status.desired is Desired.STOPPED:
        return []
    found = [*_serving(status, failures), *_rollout(status, abandoned)]
    if status.desired is Desired.PAUSED:
        held = "" if status.held is None else f", {status.held} now"
        found.append(_warn(f"paused: new connections are held{held}", _type("resume", status)))
    found.extend(
        _warn(f"{daemon.boot_id} cannot drain: it is suspended", f"kill -CONT {daemon.pid}")
        for daemon in status.daemons
        if daemon.role == "draining" and daemon.suspended
    )
    return sorted(found, key=lambda problem: problem.severity != "bad")


def _serving(status: ServiceStatus, failures: int) -> list[Problem]:
    """Whether clients are answered."""
    block, router, restart = status.deployment, status.router, status.restart
    active = next((daemon for daemon in status.daemons if daemon.role == "active"), None)
    running = any(daemon.alive for daemon in status.daemons)
    if not router.alive:
        what = "no router answers" if running else "nothing runs, and it should"
        return [_bad(f"{what}: {' and '.join(status.listen)} is not served", _type("up", status))]
    if restart:
        word = "hangs" if restart.hung else "died"
        what = f"the daemon {word} ({restart.reason}): restart {restart.attempt} of {restart.most}"
        return [_bad(f"{what} in {restart.in_s:.0f} s", _type("logs", status))]
    if active is None:
        if block.state in IN_FLIGHT or block.generation == 0:
            return []
        why = f": {block.rollback_reason}" if block.rollback_reason else ""
        return [_bad(f"nothing is active{why}", _type("up", status))]
    return _active(status, active, failures)


def _active(status: ServiceStatus, active: DaemonStatus, failures: int) -> list[Problem]:
    block = status.deployment
    if not active.alive:
        return [_bad(f"the active daemon (pid {active.pid}) is dead", _type("up", status))]
    if active.suspended:
        return [_bad(f"the active daemon (pid {active.pid}) is suspended", f"kill -CONT {active.pid}")]
    if status.unwell:
        since = f"{status.unwell.failures} in a row, for {status.unwell.for_s:.0f} s"
        return [_bad(f"the active daemon fails its checks, {since}: {status.unwell.reason}", _type("refresh", status))]
    if active.healthy is False:
        what = f"the active daemon fails its checks: {active.reason}"
        if block.state is State.SWITCHED:
            return [_bad(f"{what} ({block.health_fail_streak} of {failures} in a row)", _type("rollback", status))]
        return [_bad(what, _type("refresh", status))]
    return []


def _rollout(status: ServiceStatus, abandoned: bool) -> list[Problem]:
    block, router = status.deployment, status.router
    found = [_warn(trouble, _type("status -v", status)) for trouble in status.troubles or ()]
    if status.settings and status.settings.error:
        found.append(_warn(f"the configuration was not taken over: {status.settings.error}", _type("config", status)))
    if abandoned:
        found.append(
            _bad(f"generation {block.generation} was left {block.state} by a verb that died", _type("up", status))
        )
    if router.alive and router.applied_revision != block.revision:
        found.append(
            _warn(f"the router is at revision {router.applied_revision} of {block.revision}", "turnout logs --router")
        )
    return found


def _type(verb: str, status: ServiceStatus) -> str:
    return f"turnout {verb}" if status.name == DEFAULT_SERVICE else f"turnout {verb} --service {status.name}"


def _bad(what: str, mend: str) -> Problem:
    return Problem(severity="bad", what=what, mend=mend)


def _warn(what: str, mend: str) -> Problem:
    return Problem(severity="warn", what=what, mend=mend)
