"""``turnout router``: keeper and router in the foreground, for a container; or a new router for the old one."""

from __future__ import annotations

import os
from collections.abc import Sequence

import click

from turnout.cli.formatting import examples
from turnout.cli.unit import plan_of
from turnout.config.file import find_file
from turnout.control.keeper_client import KeeperClient
from turnout.errors import ConflictError, NotRunningError, TurnoutError, UsageError
from turnout.keeper.keeper import Keeper
from turnout.state.home import Home
from turnout.state.keeper_lock import keeper_pid
from turnout.system.own_log import log_line
from turnout.system.sd_notify import notify
from turnout.system.verb_process import start_verb


@click.command(
    epilog=examples(
        "TURNOUT_HOME=/var/lib/turnout turnout router --up     in a container",
        "turnout router --replace                              after an upgrade of turnout",
    )
)
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
    if not dry_run:
        home.check_owner()
    if replace:
        with _running(home) as keeper:
            before = keeper.hello().router_pid
            if dry_run:
                beside = f"beside router {before}, which then lets its connections go"
                click.echo(f"would start a router {beside}" if before else "would start a router: none runs")
                return
            click.echo(_replaced(before, keeper.replace_router(), keeper.hello().router_pid, home))
        return
    plan = plan_of(home, find_file(config), "") if up else None
    if dry_run:
        if pid := keeper_pid(home):
            raise ConflictError(f"a keeper already runs for {home.root}: pid {pid}", hint="turnout status")
        click.echo(f"would run the keeper of {home.root} in this terminal, with a router as its child")
        for name in plan.services if plan else ():
            click.echo(f"would run turnout up --service {name}")
        return
    home.create()
    Keeper(home).run(lambda: _ready(home, plan.commands(recorded=False) if plan else ()))


def _replaced(before: int, successor: int, leads: int, home: Home) -> str:
    """The answer to a replacement. An older keeper that cannot start another router answers with the present one.

    Raises:
        TurnoutError: the router that led before still leads.
    """
    if successor == before:
        raise TurnoutError(
            f"no other router could be started: router {before} still leads", hint=f"see {home.keeper_log}"
        )
    goes = f"; router {before} lets its connections go" if before else ""
    return f"router {leads or successor} leads{goes}"


def _running(home: Home) -> KeeperClient:
    try:
        return KeeperClient.connect(home)
    except NotRunningError as error:
        raise NotRunningError(f"no keeper runs for {home.root}", hint="turnout up") from error


def _ready(home: Home, commands: Sequence[Sequence[str]]) -> None:
    for argv in commands:
        try:  # one that fails says why, and the keeper goes on: it may serve other services
            start_verb(argv, home.root)
        except OSError as error:
            log_line(f"cannot run turnout up: {error.strerror}")
    notify("READY=1", f"MAINPID={os.getpid()}", f"STATUS=keeper of {home.root}")
