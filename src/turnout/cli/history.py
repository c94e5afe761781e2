"""``turnout history``: what was decided, and on what evidence."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from turnout.cli.options import choice, reading, resolve
from turnout.errors import NotRunningError
from turnout.service import Service
from turnout.system.home import Home
from turnout.system.journal import Event, Position

POLL_S = 0.1


@click.command()
@click.argument("generation", type=click.IntRange(0), required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on as more is decided.")
@click.option("-n", "--events", type=click.IntRange(0), default=50, show_default=True, help="The newest N at most.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@reading
def history(generation: int | None, *, follow: bool, events: int, as_json: bool, **options: Any) -> None:
    """Print the journal: every decision and repair with its evidence, oldest first.

    GENERATION: only what belongs to that rollout.
    """
    settings = resolve(choice(options)).settings
    journal = Service.open(Home.find().service(settings.name), settings).journal
    if not follow and not journal.path.exists():
        raise NotRunningError(f"nothing was decided for {settings.name} yet", hint="turnout up")
    so_far, position = journal.since(Position())
    told = [event for event in so_far if generation in {None, event.generation}]
    for event in told[max(0, len(told) - events) :]:
        _print(event, as_json=as_json)
    while follow:
        more, position = journal.since(position)
        for event in more:
            if generation in {None, event.generation}:
                _print(event, as_json=as_json)
        if not more:
            time.sleep(POLL_S)


def _print(event: Event, *, as_json: bool) -> None:
    if as_json:
        stamp = {"ts": event.ts, "event": event.event, "generation": event.generation, "revision": event.revision}
        click.echo(json.dumps({**stamp, **event.evidence}))
        return
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.ts))
    evidence = "  ".join(f"{key}={value}" for key, value in event.evidence.items() if value not in {"", None})
    click.echo(f"{when}  gen {event.generation}  rev {event.revision}  {event.event}  {evidence}".rstrip())
