"""``turnout status --watch``: the same lines again and again, with rates and what drains."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import click

from turnout.cli.formatting import counted, span
from turnout.cli.status_text import five_lines, metrics_line, more_lines
from turnout.cli.streams import drawn_on
from turnout.control.router_client import RouterClient
from turnout.core.json_text import json_text
from turnout.core.printable import clean, for_terminal
from turnout.errors import TurnoutError
from turnout.state.home import Home
from turnout.status.schema import ServiceStatus, Status


class Rates:
    """Bytes a second of each daemon, from one look to the next. A new router starts from nothing."""

    def __init__(self) -> None:
        self._before: dict[tuple[str, str], tuple[float, int, int]] = {}

    def of(self, service: ServiceStatus, now: float) -> dict[str, tuple[float, float]]:
        """Rates in and out by boot id, since the last look at this service; ``now``: monotonic seconds."""
        found: dict[str, tuple[float, float]] = {}
        for daemon in service.daemons:
            if daemon.bytes_in is None or daemon.bytes_out is None:
                continue
            key = (service.name, daemon.boot_id)
            before = self._before.get(key)
            self._before[key] = (now, daemon.bytes_in, daemon.bytes_out)
            if before and now > before[0] and daemon.bytes_in >= before[1] and daemon.bytes_out >= before[2]:
                took_s = now - before[0]
                found[daemon.boot_id] = (daemon.bytes_in - before[1]) / took_s, (daemon.bytes_out - before[2]) / took_s
        return found


def watch_status(look: Callable[[], Status], *, every_s: float, as_json: bool, verbose: bool) -> None:
    """Look every ``every_s`` seconds until interrupted: in place on a terminal, one below the other elsewhere."""
    if as_json:
        while True:
            click.echo(json_text(look()))
            time.sleep(every_s)
    rates = Rates()

    def lines() -> list[str]:
        output: list[str] = []
        seen = look()
        for service in seen.services:
            now, known = time.time(), rates.of(service, time.monotonic())
            output += five_lines(service, now=now, rates=known)
            output += drain_lines(_drains(service.name))
            output += more_lines(service, now=now, rates=known) if verbose else ()
        if output and verbose:
            output.append(metrics_line(seen.metrics))
        return output or ["no service has been here"]

    if sys.stdout.isatty():
        _draw(lines, every_s)
        return
    while True:
        click.echo("\n".join([f"-- {time.strftime('%H:%M:%S')}", *lines()]))
        time.sleep(every_s)


def drain_lines(drains: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each daemon that drains."""
    output: list[str] = []
    for drain in drains:
        left = drain["connections"]
        count = "connections not counted" if left is None else f"{counted(len(left), 'connection')} left"
        end = "never cut" if drain["deadline_in_s"] is None else f"cut in {span(drain['deadline_in_s'])} at the latest"
        output.append(
            f"  draining   {clean(drain['boot_id'])}, {drain['cause']}, for {span(drain['age_s'])}, {count}, {end}"
        )
    return output


def _drains(service: str) -> list[dict[str, Any]]:
    try:
        return RouterClient(Home.find()).drains(service)
    except (TurnoutError, OSError):
        return []


def _draw(lines: Callable[[], list[str]], every_s: float) -> None:
    from rich.console import Console  # noqa: PLC0415  # only where it draws
    from rich.live import Live  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    colour = click.get_current_context().color

    def screen() -> Text:
        text = for_terminal("\n".join(lines()))
        return Text.from_ansi(text if colour else click.unstyle(text), no_wrap=True, overflow="ellipsis")

    with (
        drawn_on(sys.stdout) as terminal,
        Live(screen(), console=Console(file=terminal, no_color=not colour), auto_refresh=False, screen=True) as live,
    ):
        while True:
            time.sleep(every_s)
            live.update(screen(), refresh=True)
