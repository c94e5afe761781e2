"""``turnout status``: who serves, and how it is."""

from __future__ import annotations

import json
from typing import Any

import click

from turnout.admin import RouterClient
from turnout.cli.options import choice, reading, resolve
from turnout.errors import NotRunningError, TimedOutError
from turnout.service import Service, remembered
from turnout.status import service_status
from turnout.system.home import Home


@click.command(name="status")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable, stable.")
@click.option("-v", "--verbose", is_flag=True, help="Also what each daemon's last check said, and the counters.")
@reading
def status(*, as_json: bool, verbose: bool, **options: Any) -> None:
    """Show services, their deployment and their daemons. Works with nothing running, too."""
    home = Home.find()
    chosen = choice(options)
    names = [resolve(chosen).settings.name] if chosen.service or chosen.config else home.service_names()
    try:
        router: dict[str, Any] | None = RouterClient(home).status()
    except (NotRunningError, TimedOutError, OSError):
        router = None
    services: list[dict[str, Any]] = []
    for name in names:
        settings = remembered(home.service(name))
        if settings is not None:
            services.append(service_status(Service.open(home.service(name), settings), router))
    if as_json:
        click.echo(json.dumps({"schema": 1, "services": services}))
        return
    if not services:
        raise NotRunningError(f"no service has been here ({home.root})", hint="turnout up -- COMMAND --port {port}")
    for service in services:
        _print(service, verbose=verbose)


def _print(service: dict[str, Any], *, verbose: bool) -> None:
    router, block = service["router"], service["deployment"]
    state = "router up" if router["alive"] else "no router"
    click.echo(
        f"{service['name']}  {', '.join(service['listen'])}  {service['desired']}  {state}  {router['plane'] or ''}"
    )
    line = f"  generation {block['generation']}, {block['state']}, revision {block['revision']}"
    if router["alive"] and router["applied_revision"] != block["revision"]:
        line += f" (router at {router['applied_revision']})"
    if block["observe_remaining_s"] is not None:
        line += (
            f", observed for {block['observe_remaining_s']:.0f} s more, {block['health_fail_streak']} failed in a row"
        )
    click.echo(line)
    if router["leaving"]:
        pids = ", ".join(str(pid) for pid in router["leaving"])
        click.echo(f"  a router that was replaced still carries what it had accepted: pid {pids}")
    if block["rollback_reason"]:
        click.echo(f"  last rollout ended: {block['rollback_reason']}")
    for what in _unsettled(service["settings"] or {}):
        click.echo(f"  not taken over: {what}")
    unwell, restart = service["unwell"], service["restart"]
    if unwell:
        since = f"{unwell['failures']} in a row, for {unwell['for_s']:.0f} s"
        click.echo(f"  the active daemon runs and fails its checks, {since}: {unwell['reason']}")
    if restart:
        what = "hangs" if restart.get("hung") else "died"
        click.echo(
            f"  the daemon {what} ({restart['reason']}): restart {restart['attempt']} of {restart['most']}"
            f" in {restart['in_s']:.0f} s"
        )
    if service["held"]:
        click.echo(f"  {service['held']} connections are held")
    for trouble in service["troubles"] or ():
        click.echo(f"  {trouble}")
    if verbose and service["counters"]:
        told = ", ".join(f"{name} {count}" for name, count in service["counters"].items() if count)
        click.echo(f"  counted: {told or 'nothing yet'}")
    for daemon in service["daemons"]:
        health = {True: "healthy", False: "UNHEALTHY", None: ""}[daemon["healthy"]] if daemon["alive"] else "DEAD"
        count = "" if daemon["connections"] is None else f"{daemon['connections']} connections"
        version = daemon["version"] or "-"
        click.echo(
            f"  {daemon['role']:9} {daemon['boot_id']}  {version}  pid {daemon['pid']}"
            f"  {daemon['host']}:{daemon['port']}  {health}  {count}".rstrip()
        )
        if verbose and daemon["reason"]:
            click.echo(f"            {daemon['reason']}")


def _unsettled(settings: dict[str, Any]) -> list[str]:
    """What the configuration file says that does not count yet."""
    return [*settings.get("later", []), *([settings["error"]] if settings.get("error") else [])]
