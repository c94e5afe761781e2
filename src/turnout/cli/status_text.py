"""``status`` for people: five lines a service, the first of which says what is wrong and what to type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click

from turnout.cli.formatting import counted, moment, size, span
from turnout.core.addresses import format_address
from turnout.core.model import Desired, State
from turnout.core.printable import clean
from turnout.status.schema import DaemonStatus, MetricsStatus, ServiceStatus

COLOURS = {"bad": "red", "warn": "yellow", "ok": "green"}
Rates = Mapping[str, tuple[float, float]]  # of each boot: bytes a second in and out


def five_lines(service: ServiceStatus, *, now: float, rates: Rates | None = None) -> list[str]:
    """What an operator needs in ten seconds; ``now``: wall-clock seconds."""
    return [
        _headline(service),
        f"  active     {_active(service, rates or {})}",
        f"  others     {_others(service)}",
        f"  rollout    {_rollout(service, now)}",
        f"  router     {_router(service)}",
    ]


def more_lines(service: ServiceStatus, *, now: float, rates: Rates | None = None) -> list[str]:
    """What ``-v`` adds: every problem, and every daemon with its counts and its last check."""
    lines = [
        f"  {click.style(f'{problem.severity:10}', fg=COLOURS[problem.severity])} {clean(problem.what)}"
        f"{_arrow(problem.hint)}"
        for problem in service.problems[1:]
    ]
    for daemon in service.daemons:
        counts = "bytes not counted"
        if daemon.bytes_in is not None and daemon.bytes_out is not None:
            counts = f"{size(daemon.bytes_in)} in, {size(daemon.bytes_out)} out{_rate(daemon, rates or {})}"
        age = f"started {moment(daemon.started_ts)}, {span(now - daemon.started_ts)} ago" if daemon.started_ts else ""
        lines.append(f"  {daemon.role:10} {_daemon(daemon)}")
        lines.append(f"             {', '.join(part for part in (counts, age) if part)}")
        if daemon.reason:
            lines.append(f"             last check: {clean(daemon.reason)}")
    if service.counters:
        text = ", ".join(f"{name} {count}" for name, count in service.counters.items() if count)
        lines.append(f"  counted    {text or 'nothing yet'}")
    lines += [f"  later      {clean(what)}" for what in (service.settings.later if service.settings else ())]
    lines.append(f"  strategy   {service.strategy}")
    return lines


def metrics_line(metrics: MetricsStatus | None) -> str:
    """The home's last line of ``-v``: where its metrics are, and why they are not served, if so."""
    if metrics is None:
        return "metrics  off"
    where = f"http://{metrics.listen}/metrics" if metrics.listen else "unknown"
    if metrics.served:
        return f"metrics  {where}"
    text = click.style(f"not served: {clean(metrics.error or '')}", fg=COLOURS["warn"])
    return f"metrics  {where}, {text}{_arrow('turnout doctor')}"


def _headline(service: ServiceStatus) -> str:
    head = f"{service.name}  {', '.join(service.listen)}  {service.desired.value}"
    if service.problems:
        first = service.problems[0]
        more = f" (+{len(service.problems) - 1} more: -v)" if len(service.problems) > 1 else ""
        text = click.style(f"{first.severity.upper()}: {clean(first.what)}", fg=COLOURS[first.severity], bold=True)
        return f"{head}  {text}{_arrow(first.hint)}{more}"
    if service.failed_start:
        text = click.style(f": {clean(service.failed_start.what)}", fg=COLOURS["warn"], bold=True)
        return f"{head}{text}{_arrow(service.failed_start.hint)}"
    if service.desired is Desired.STOPPED:
        return f"{head} by hand{_arrow(service.start_with)}"
    active = next((daemon for daemon in service.daemons if daemon.role == "active"), None)
    word = "healthy" if active and active.healthy else "serving" if active else service.deployment.state.value
    return f"{head}  {click.style(f'OK: {word}', fg=COLOURS['ok'], bold=True)}{_last(service)}"


def _last(service: ServiceStatus) -> str:
    """The last rollout did not stay: nothing is wrong now, but somebody will want to know."""
    block = service.deployment
    if not block.rollback_reason or block.state is not State.IDLE:
        return ""
    return f", generation {block.generation} did not stay{_arrow(f'turnout why {block.generation}')}"


def _arrow(command: str) -> str:
    return f"  -> {clean(command)}" if command else ""


def _active(service: ServiceStatus, rates: Rates) -> str:
    active = next((daemon for daemon in service.daemons if daemon.role == "active"), None)
    boot_id = service.deployment.active_boot_id
    if active is None:
        return f"{clean(boot_id)}, of which nothing is known" if boot_id else "none"
    return f"{_daemon(active)}{_rate(active, rates)}"


def _daemon(daemon: DaemonStatus) -> str:
    parts = [
        f"{clean(daemon.boot_id)} {clean(daemon.version)}".rstrip(),
        f"pid {daemon.pid}" if daemon.pid else "pid unknown",
        f"{format_address(clean(daemon.host), daemon.port)}{_own_port(daemon)}",
        _health(daemon),
    ]
    if daemon.connections is not None:
        parts.append(counted(daemon.connections, "connection"))
    return ", ".join(part for part in parts if part)


def _own_port(daemon: DaemonStatus) -> str:
    return f" for its own port {daemon.own_port}" if daemon.own_port else ""


def _health(daemon: DaemonStatus) -> str:
    if not daemon.alive:
        return click.style("dead", fg="red")
    if daemon.suspended:
        return click.style("suspended", fg="red")
    words = {True: click.style("healthy", fg="green"), False: click.style("unhealthy", fg="red"), None: ""}
    return words[daemon.healthy]


def _rate(daemon: DaemonStatus, rates: Rates) -> str:
    if daemon.boot_id not in rates:
        return ""
    rate_in, rate_out = rates[daemon.boot_id]
    return f", {size(rate_in)}/s in, {size(rate_out)}/s out"


def _others(service: ServiceStatus) -> str:
    block = service.deployment
    parts = [
        f"candidate {_named(block.candidate_boot_id, service.daemons)}",
        f"old {_named(block.old_boot_id, service.daemons)}",
    ]
    draining = [daemon for daemon in service.daemons if daemon.role == "draining"]
    if draining:
        left = sum(daemon.connections or 0 for daemon in draining)
        parts.append(f"{len(draining)} draining with {counted(left, 'connection')} (turnout drain --explain)")
    return ", ".join(parts)


def _named(boot_id: str, daemons: Sequence[DaemonStatus]) -> str:
    if not boot_id:
        return "none"
    daemon = next((daemon for daemon in daemons if daemon.boot_id == boot_id), None)
    if daemon is None:
        return f"{clean(boot_id)} (not started yet)"
    known = [clean(daemon.version), f"pid {daemon.pid}" if daemon.alive else "dead"]
    if daemon.connections:
        known.append(counted(daemon.connections, "connection"))
    return f"{clean(boot_id)} ({', '.join(part for part in known if part)})"


def _rollout(service: ServiceStatus, now: float) -> str:
    block = service.deployment
    if block.observe_remaining_s is not None:
        window = f"observed for {block.observe_remaining_s:.0f} s more"
    else:
        window = "observed by nobody" if block.state is State.SWITCHED else "no window"
    switched = f"{moment(block.switch_ts)}, {span(now - block.switch_ts)} ago" if block.switch_ts else "never"
    return (
        f"generation {block.generation}, {block.state.value}, {window}, {block.health_fail_streak} failed in a row;"
        f" switched {switched}; rollback reason: {clean(block.rollback_reason) or 'none'}"
    )


def _router(service: ServiceStatus) -> str:
    router, block = service.router, service.deployment
    if not router.alive:
        return f"none, revision {block.revision}"
    behind = "" if router.applied_revision == block.revision else f" (applied {router.applied_revision})"
    uptime = f", up {span(router.uptime_s)}" if router.uptime_s is not None else ""
    held = "" if service.held is None else f", {service.held} held"
    leaving = f", still leaving: pid {', '.join(map(str, router.leaving))}" if router.leaving else ""
    relays = f" (relays: {clean(router.plane_trouble)})" if router.plane_trouble else ""
    return f"pid {router.pid}, {router.plane}{relays}, revision {block.revision}{behind}{uptime}{held}{leaving}"
