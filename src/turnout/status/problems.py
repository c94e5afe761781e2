"""What is wrong with a service, and what to type: decided from its status alone; pure."""

from __future__ import annotations

from turnout.config.settings import DEFAULT_SERVICE, Address
from turnout.core.model import Desired, State
from turnout.status.schema import DaemonStatus, Problem, ServiceStatus

OF_ANOTHER_HOME = "a process of the home that this one was copied from"  # a daemon's reason
BY_HAND = frozenset({"", "stopped", "down", "detached"})  # the reasons of an operator's verbs
IN_FLIGHT = frozenset({State.STARTING, State.ROLLING_BACK, State.READY})


def problems_of(status: ServiceStatus, *, failures: int, abandoned: bool, startable: bool) -> list[Problem]:
    """Everything that a person should know of, the gravest first.

    Args:
        status: how the service is.
        failures: consecutive failed checks that roll back.
        abandoned: the process that carries the unfinished rollout is provably dead.
        startable: a build or a configuration file is known, so that ``up`` needs no command.
    """
    if status.desired is Desired.STOPPED:
        return []
    found = [*_serving(status, failures, startable), *_rollout(status, abandoned)]
    if status.desired is Desired.PAUSED:
        held = "" if status.held is None else f", {status.held} now"
        found.append(warn(f"paused: new connections are held{held}", _type("resume", status)))
    found.extend(
        warn(f"{daemon.boot_id} cannot drain: it is suspended", f"kill -CONT {daemon.pid}")
        for daemon in status.daemons
        if daemon.role == "draining" and daemon.suspended
    )
    return sorted(found, key=lambda problem: problem.severity != "bad")


def failed_start_of(status: ServiceStatus) -> Problem | None:
    """The last start of a stopped service, if it failed and no operator stopped the service since.

    No problem of a service that is to be stopped: neither ``doctor`` nor an alert asks for it.
    """
    block = status.deployment
    if status.desired is not Desired.STOPPED or block.active_boot_id or block.rollback_reason in BY_HAND:
        return None
    start = f"generation {block.generation}, a {block.cause}," if block.switch_ts else "the first start"
    verb = f"why {block.generation}" if block.generation else "doctor"
    return warn(f"{start} failed: {block.rollback_reason}", _type(verb, status))


def start_with_of(status: ServiceStatus, *, startable: bool) -> str:
    """What to type to start a stopped service; empty: it is not stopped.

    Args:
        status: how the service is.
        startable: a build or a configuration file is known, so that the verb needs no command.
    """
    if status.desired is not Desired.STOPPED:
        return ""
    return _up(status, startable=startable, verb="start" if status.router.alive else "up")


def _serving(status: ServiceStatus, failures: int, startable: bool) -> list[Problem]:
    """Whether clients are answered."""
    block, router, restart = status.deployment, status.router, status.restart
    active = next((daemon for daemon in status.daemons if daemon.role == "active"), None)
    running = any(daemon.alive for daemon in status.daemons)
    if not router.alive:
        reason = "no router answers" if running else "nothing runs, and it should"
        return [bad(f"{reason}: {' and '.join(status.listen)} is not served", _type("up", status))]
    if restart:
        if restart.rolls_back:
            fault, step = f"the active daemon failed its observe window ({restart.reason})", "the rollback cannot begin"
            attempt = f"the build before is started, attempt {restart.attempt} of {restart.most}"
        else:
            fault, step = f"the daemon {'hangs' if restart.hung else 'died'} ({restart.reason})", "cannot be started"
            attempt = f"restart {restart.attempt} of {restart.most}"
        if restart.blocked:
            blocked = f"{fault}, and {step}: {restart.blocked}; turnout tries again in {restart.in_s:.0f} s"
            return [bad(blocked, _type("doctor", status))]
        return [bad(f"{fault}: {attempt} in {restart.in_s:.0f} s", _type("logs", status))]
    if active is None:
        if block.state in IN_FLIGHT or block.generation == 0:
            return []
        why = f": {block.rollback_reason}" if block.rollback_reason else ""
        return [bad(f"nothing is active{why}", _up(status, startable=startable))]
    return _active(status, active, failures)


def _active(status: ServiceStatus, active: DaemonStatus, failures: int) -> list[Problem]:
    block = status.deployment
    if not active.alive and active.reason == OF_ANOTHER_HOME:
        return [bad(f"the active daemon (pid {active.pid}) is {OF_ANOTHER_HOME}", _type("up", status))]
    if not active.alive and active.attached:
        ended = f"the attached daemon (pid {active.pid}) has ended, and whatever started it has to start it again"
        return [bad(ended, _renew(active, status))]
    if not active.alive:
        return [bad(f"the active daemon (pid {active.pid}) is dead", _type("up", status))]
    if active.suspended:
        return [bad(f"the active daemon (pid {active.pid}) is suspended", f"kill -CONT {active.pid}")]
    if status.unwell:
        since = f"{status.unwell.failures} in a row, for {status.unwell.for_s:.0f} s"
        return [bad(f"the active daemon fails its checks, {since}: {status.unwell.reason}", _renew(active, status))]
    if active.healthy is False:
        fails = f"the active daemon fails its checks: {active.reason}"
        if block.state is State.SWITCHED:
            return [bad(f"{fails} ({block.health_fail_streak} of {failures} in a row)", _type("rollback", status))]
        return [bad(fails, _renew(active, status))]
    return []


def _renew(active: DaemonStatus, status: ServiceStatus) -> str:
    """What replaces the daemon by a new process; an attached one has to be started by its owner first."""
    return _type(f"attach {Address(active.host, active.port)}" if active.attached else "refresh", status)


def _rollout(status: ServiceStatus, abandoned: bool) -> list[Problem]:
    block, router = status.deployment, status.router
    found = [warn(trouble, _type("status -v", status)) for trouble in status.troubles or ()]
    if status.settings and status.settings.error:
        found.append(warn(f"the configuration was not taken over: {status.settings.error}", _type("config", status)))
    if abandoned:
        left = f"generation {block.generation} was left {block.state} by a verb that died"
        found.append(bad(left, _type("up", status)))
    if router.alive and router.applied_revision != block.revision:
        behind = f"the router is at revision {router.applied_revision} of {block.revision}"
        found.append(warn(behind, "turnout logs --router"))
    return found


def _up(status: ServiceStatus, *, startable: bool, verb: str = "up") -> str:
    return _type(verb, status) if startable else f"{_type('up', status)} -- COMMAND --port {{port}}"


def _type(verb: str, status: ServiceStatus) -> str:
    return f"turnout {verb}" if status.name == DEFAULT_SERVICE else f"turnout {verb} --service {status.name}"


def bad(what: str, hint: str) -> Problem:
    return Problem(severity="bad", what=what, hint=hint)


def warn(what: str, hint: str) -> Problem:
    return Problem(severity="warn", what=what, hint=hint)
