"""``turnout logs``: what the daemon printed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from turnout.candidate_error import log_tail
from turnout.cli.options import choice, reading, resolve
from turnout.errors import NotRunningError, UsageError
from turnout.service import Service
from turnout.system.home import Home

POLL_S = 0.1
EXAMPLES = """
\b
Examples:
  turnout logs -f                   the active daemon, over every switch
  turnout logs --router -n 20
"""


@click.command(epilog=EXAMPLES)
@click.option("-f", "--follow", is_flag=True, help="Go on as more comes; moves to the new daemon at a switch.")
@click.option("-n", "--lines", type=click.IntRange(0), default=50, show_default=True, help="How many lines at first.")
@click.option("--boot", metavar="ID", help="The log of this boot instead of the active daemon's.")
@click.option("--router", "which", flag_value="router", help="The router's own log.")
@click.option("--keeper", "which", flag_value="keeper", help="The keeper's own log.")
@reading
def logs(*, follow: bool, lines: int, boot: str | None, which: str | None, **options: Any) -> None:
    """Print the active daemon's log."""
    home = Home.find()
    if which:
        path = home.router_log if which == "router" else home.keeper_log
        _print(path, lines, (lambda: path) if follow else None)
        return
    settings = resolve(choice(options)).settings
    service = Service.open(home.service(settings.name), settings)

    def current() -> Path | None:
        boot_id = boot or service.registry.read().snapshot.deployment.active_boot_id
        return service.home.log(boot_id) if boot_id else None

    path_now = current()
    if path_now is None or not path_now.exists():
        found = sorted(service.home.logs.glob("*.log"), key=lambda path: path.stat().st_mtime)
        if not found:
            raise NotRunningError(f"there is no log of {settings.name} yet", hint="turnout up")
        if boot:
            raise UsageError(f"there is no log of boot {boot}", hint="turnout status --all")
        path_now = found[-1]
    _print(path_now, lines, current if follow else None)


def _print(path: Path, lines: int, current: Any) -> None:
    if not path.exists():
        raise NotRunningError(f"there is no {path}", hint="turnout up")
    tail = log_tail(path, lines=lines, bound_bytes=max(65536, lines * 512)) if lines else ""
    click.echo(tail, nl=bool(tail))
    offset = path.stat().st_size
    while current:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(65536)
        if data:
            offset += len(data)
            click.echo(data.decode(errors="replace"), nl=False)
            continue
        if path.stat().st_size < offset:  # it was cut at its bound: what comes now stands at its beginning
            offset = 0
            continue
        path_now = current()
        if path_now and path_now != path and path_now.exists():
            click.echo(f"-- {path_now.stem} --", err=True)
            path, offset = path_now, 0
            continue
        time.sleep(POLL_S)
