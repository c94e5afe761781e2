"""``turnout logs``: what the daemon printed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import click

from turnout.cli.formatting import examples
from turnout.cli.log_reader import LogReader, SpelledOut
from turnout.cli.options import CommonOptions, reading, shown_service
from turnout.errors import NotRunningError, UsageError
from turnout.lifecycle.build_selection import start_hint
from turnout.state.home import Home
from turnout.system.files import unwritable

POLL_S = 0.1


@click.command(
    epilog=examples(
        "turnout logs -f                   the active daemon, over every switch", "turnout logs --router -n 20"
    )
)
@click.option("-f", "--follow", is_flag=True, help="Go on as more comes; moves to the new daemon at a switch.")
@click.option("-n", "--lines", type=click.IntRange(0), default=50, show_default=True, help="How many lines at first.")
@click.option("--boot", metavar="ID", help="The log of this boot instead of the active daemon's.")
@click.option("--router", "which", flag_value="router", help="The router's own log.")
@click.option("--keeper", "which", flag_value="keeper", help="The keeper's own log.")
@reading
def logs(*, follow: bool, lines: int, boot: str | None, which: str | None, common: CommonOptions) -> None:
    """Print the active daemon's log.

    On a terminal its control characters are spelled out; a pipe or a file gets its bytes as they are.
    """
    home = Home.find()
    if which:
        path = home.router_log if which == "router" else home.keeper_log
        _print(path, lines, (lambda: path) if follow else None)
        return
    service = shown_service(common)

    def current() -> Path | None:
        boot_id = boot or service.registry.read().snapshot.deployment.active_boot_id
        return service.home.log(boot_id) if boot_id else None

    path_now = current()
    if path_now is None or not path_now.exists():
        found = sorted(service.home.logs.glob("*.log"), key=_written)
        if not found:
            raise NotRunningError(
                f"there is no log of {service.name}: turnout has started no daemon of it",
                hint=start_hint(service, "up"),
            )
        if boot:
            raise UsageError(f"there is no log of boot {boot}", hint="turnout status --all")
        path_now = found[-1]
    _print(path_now, lines, current if follow else None)


def _print(path: Path, lines: int, current: Callable[[], Path | None] | None) -> None:
    if not path.exists():
        raise NotRunningError(f"there is no {path}", hint="turnout up")
    try:
        reader = LogReader(path)
    except OSError as error:
        raise unwritable("read", path, error) from error
    decode: Callable[[bytes], bytes | str] = SpelledOut().feed if sys.stdout.isatty() else bytes
    with reader:
        if lines:
            tail = reader.tail(lines, bound_bytes=max(65536, lines * 512))
            ends = current or not tail or tail.endswith(b"\n")
            click.echo(decode(tail if ends else tail + b"\n"), nl=False)
        else:
            reader.skip()
        while current:
            if data := reader.read():
                click.echo(decode(data), nl=False)
                continue
            path_now = current()
            if path_now and path_now != reader.path and path_now.exists():
                click.echo(f"-- {path_now.stem} --", err=True)
                reader.move(path_now)
                continue
            time.sleep(POLL_S)


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # pruned this moment
        return 0.0
