"""``turnout status``: who serves, how it is, and what to type if it is not well."""

from __future__ import annotations

import time

import click

from turnout.cli.formatting import examples
from turnout.cli.options import CommonOptions, reading, shown
from turnout.cli.status_text import COLOURS, five_lines, metrics_line, more_lines
from turnout.cli.streams import coloured
from turnout.config.settings import duration
from turnout.core.json_text import json_text
from turnout.core.printable import clean
from turnout.errors import NotRunningError, TurnoutError, UsageError
from turnout.state.home import Home
from turnout.state.service import Service, remembered
from turnout.status.collect import ask_router, metrics_status, service_status
from turnout.status.schema import ServiceStatus, Status


@click.command(
    name="status",
    epilog=examples(
        "turnout status                          every service, five lines each",
        "turnout status -v --service cache       one service, with each daemon",
        "turnout status --watch                  live, with rates and drains",
        "turnout status --json | jq '.services[].deployment.state'",
    ),
)
@click.option("--json", "as_json", is_flag=True, help="Machine-readable, stable (turnout schema status).")
@click.option("-v", "--verbose", is_flag=True, help="Also each daemon, its counts and its last check; metrics.")
@click.option("-w", "--watch", is_flag=True, help="Go on, with rates; NDJSON with --json. Ctrl-C ends it.")
@click.option("--every", metavar="D", default="1s", show_default=True, help="With --watch: how often.")
@click.option("--all", "everything", is_flag=True, help="Every service of this home, whatever --service says.")
@coloured
@reading
def status(*, as_json: bool, watch: bool, every: str, everything: bool, common: CommonOptions) -> None:
    """Show services, their deployment and their daemons. Works with nothing running, too.

    The first line of a service says what is wrong with it and, behind the arrow, what to type.
    """
    if watch:
        from turnout.cli.watch import watch_status  # noqa: PLC0415  # only where somebody watches

        every_s = duration(every, what="--every")
        if not 0.05 <= every_s <= 3600:
            raise UsageError("--every must lie in 50ms..1h")
        watch_status(
            lambda: look(common, everything=everything), every_s=every_s, as_json=as_json, verbose=common.verbose
        )
        return
    seen = look(common, everything=everything)
    lost = Home.find().services_without_settings()
    if as_json:
        click.echo(json_text(seen))
        _say_lost(lost, err=True)
        return
    if lost and not (common.service or common.config):
        _say_lost(lost, err=False)
    elif not seen.services:
        raise NotRunningError(
            f"no service has been here ({Home.find().root})", hint="turnout up -- COMMAND --port {port}"
        )
    now = time.time()
    for service in seen.services:
        for line in [*five_lines(service, now=now), *(more_lines(service, now=now) if common.verbose else ())]:
            click.echo(line)
    if common.verbose:
        click.echo(metrics_line(seen.metrics))


def _say_lost(names: list[str], *, err: bool) -> None:
    """Name each service whose settings were removed: nothing else is known of it."""
    if not names:
        return
    from turnout.control.removed_settings import removed_settings, restoring_command  # noqa: PLC0415  # seldom needed

    home = Home.find()
    for name in names:
        bad = click.style(f"BAD: {clean(removed_settings(home.service(name)))}", fg=COLOURS["bad"], bold=True)
        click.echo(f"{name}  {bad}  -> {clean(restoring_command(home, name))}", err=err)


def look(common: CommonOptions, *, everything: bool = False) -> Status:
    """Every service that is meant, as it is now.

    Raises:
        TurnoutError: the registry of one cannot be read; nothing is made up for it.
    """
    home = Home.find()
    only = not everything and (common.service or common.config)
    names = [shown(common).name] if only else home.service_names()
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
