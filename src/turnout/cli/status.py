"""``turnout status``: who serves, how it is, and what to type if it is not well."""

from __future__ import annotations

import time
from typing import Any

import click
import msgspec

from turnout.cli.options import Choice, choice, reading, resolve
from turnout.cli.status_text import five_lines, metrics_line, more_lines
from turnout.cli.terminal import coloured
from turnout.config import duration
from turnout.errors import NotRunningError, TurnoutError, UsageError
from turnout.service import Service, remembered
from turnout.status import ask_router, metrics_status, service_status
from turnout.system.home import Home
from turnout.telemetry import ServiceStatus, Status

EXAMPLES = """
\b
Examples:
  turnout status                          every service, five lines each
  turnout status -v --service cache       one service, with each daemon
  turnout status --watch                  live, with rates and drains
  turnout status --json | jq '.services[].deployment.state'
"""


@click.command(name="status", epilog=EXAMPLES)
@click.option("--json", "as_json", is_flag=True, help="Machine-readable, stable (turnout schema status).")
@click.option("-v", "--verbose", is_flag=True, help="Also each daemon, its counts and its last check; metrics.")
@click.option("-w", "--watch", is_flag=True, help="Go on, with rates; NDJSON with --json. Ctrl-C ends it.")
@click.option("--every", metavar="D", default="1s", show_default=True, help="With --watch: how often.")
@click.option("--all", "everything", is_flag=True, help="Every service of this home, whatever --service says.")
@coloured
@reading
def status(*, as_json: bool, verbose: bool, watch: bool, every: str, everything: bool, **options: Any) -> None:
    """Show services, their deployment and their daemons. Works with nothing running, too.

    The first line of a service says what is wrong with it and, behind the arrow, what to type.
    """
    chosen = choice(options)
    if watch:
        from turnout.cli.watch import watch_status  # noqa: PLC0415  # only where somebody watches

        every_s = duration(every, what="--every")
        if not 0.05 <= every_s <= 3600:
            raise UsageError("--every must lie in 50ms..1h")
        watch_status(lambda: look(chosen, everything=everything), every_s=every_s, as_json=as_json, verbose=verbose)
        return
    seen = look(chosen, everything=everything)
    if as_json:
        click.echo(msgspec.json.encode(seen))
        return
    if not seen.services:
        raise NotRunningError(
            f"no service has been here ({Home.find().root})", hint="turnout up -- COMMAND --port {port}"
        )
    now = time.time()
    for service in seen.services:
        for line in [*five_lines(service, now=now), *(more_lines(service, now=now) if verbose else ())]:
            click.echo(line)
    if verbose:
        click.echo(metrics_line(seen.metrics))


def look(chosen: Choice, *, everything: bool = False) -> Status:
    """Every service that is meant, as it is now.

    Raises:
        TurnoutError: the registry of one cannot be read; nothing is made up for it.
    """
    home = Home.find()
    one = not everything and (chosen.service or chosen.config)
    names = [resolve(chosen).settings.name] if one else home.service_names()
    router = ask_router(home)
    found: list[ServiceStatus] = []
    for name in names:
        settings = remembered(home.service(name))
        if settings is None:
            continue
        try:
            found.append(service_status(Service.open(home.service(name), settings), router))
        except TurnoutError as error:
            error.hint = f"turnout doctor --service {name}"
            raise
    return Status(schema=1, metrics=metrics_status(home, router), services=found)
