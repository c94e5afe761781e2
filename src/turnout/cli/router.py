"""``turnout router``: keeper and router in the foreground, for a container; or a new router for the old one."""

from __future__ import annotations

import os
from collections.abc import Sequence

import click

from turnout.bringing_up import bring_up
from turnout.config_file import find_file
from turnout.errors import ConflictError, NotRunningError, UsageError
from turnout.keeper import Keeper
from turnout.keeper_client import KeeperClient
from turnout.logfile import log_line
from turnout.notify import notify
from turnout.system.flock import holder_pid
from turnout.system.home import Home
from turnout.unit import plan_of

EXAMPLES = """
\b
Examples:
  TURNOUT_HOME=/var/lib/turnout turnout router --up     in a container
  turnout router --replace                              after an upgrade of turnout
"""


@click.command(epilog=EXAMPLES)
@click.option("--replace", is_flag=True, help="Have the running keeper start a new router, and the old one leave.")
@click.option("--up", is_flag=True, help="Bring up every service of the file or, without one, of the last time.")
@click.option("-c", "--config", envvar="TURNOUT_CONFIG", metavar="FILE", help="Configuration file, for --up.")
@click.option("--dry-run", is_flag=True, help="Say what would happen, and change nothing.")
def router(*, replace: bool, up: bool, config: str | None, dry_run: bool) -> None:
    """Run the keeper in this terminal, with the router as its child; verbs then use it.

    Ends with everything it started at Ctrl-C or SIGTERM. A second one for the same home refuses and names the first.

    With --replace: after an upgrade of turnout. The new router takes the listeners over, and no connection is refused;
    the old one keeps those that it has until they end, by each service's drain settings.
    """
    home = Home.find()
    if replace and up:
        raise UsageError("--replace takes a running keeper, and --up starts one", hint="leave one of them out")
    if replace:
        with _running(home) as keeper:
            before = keeper.hello().router_pid
            if dry_run:
                click.echo(f"would {_replacement(before)}")
                return
            click.echo(f"router {keeper.replace_router()} leads; router {before} lets its connections go")
        return
    plan = plan_of(home, find_file(config), "") if up else None
    if dry_run:
        _must_be_free(home)
        click.echo(f"would run the keeper of {home.root} in this terminal, with a router as its child")
        for name in plan.services if plan else ():
            click.echo(f"would run turnout up --service {name}")
        return
    home.create()
    Keeper(home).run(lambda: _ready(home, plan.commands() if plan else ()))


def _replacement(before: int) -> str:
    if not before:
        return "start a router: none runs"
    return f"start a router beside router {before}, which then lets its connections go"


def _must_be_free(home: Home) -> None:
    """Raises ConflictError: a keeper has this home; it is named."""
    pid = holder_pid(home.keeper_lock)
    if pid:
        raise ConflictError(f"a keeper already runs for {home.root}: pid {pid}", hint="turnout status")


def _running(home: Home) -> KeeperClient:
    try:
        return KeeperClient.connect(home)
    except NotRunningError as error:
        raise NotRunningError(f"no keeper runs for {home.root}", hint="turnout up") from error


def _ready(home: Home, commands: Sequence[Sequence[str]]) -> None:
    bring_up(commands, home, log_line)
    notify("READY=1", f"MAINPID={os.getpid()}", f"STATUS=keeper of {home.root}")
