"""``turnout history`` and ``turnout why``: what was decided, when, and on what evidence."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress

import click

from turnout.cli.formatting import examples, moment
from turnout.cli.journal_text import sentence, verdict
from turnout.cli.options import CommonOptions, reading, shown_service
from turnout.core.json_text import json_text
from turnout.errors import NotRunningError, TurnoutError, UsageError
from turnout.lifecycle.build_selection import start_hint
from turnout.state.journal import JournalEvent, Position
from turnout.state.service import Service

POLL_S = 0.1
EXAMPLES = examples(
    "turnout history                 the last 50 decisions, oldest first",
    "turnout history 7               what belongs to generation 7",
    "turnout why 7                   the same, and how it went in one line",
    "turnout history -f --json       NDJSON, as it is decided",
)


@click.command(epilog=EXAMPLES)
@click.argument("generation", type=click.IntRange(0), required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on as more is decided.")
@click.option("-n", "--events", type=click.IntRange(0), default=50, show_default=True, help="The newest N at most.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@reading
def history(generation: int | None, *, follow: bool, events: int, as_json: bool, common: CommonOptions) -> None:
    """Tell every decision and repair with its evidence, oldest first.

    GENERATION: only what belongs to that rollout.
    """
    service = shown_service(common)
    so_far, position = service.journal.since(Position())
    if not follow and not so_far:
        raise NotRunningError(f"nothing was decided for {service.name} yet", hint=start_hint(service, "up"))
    if generation is not None and not follow:
        _must_be_known(service, generation, so_far)
    selected = [event for event in so_far if generation in {None, event.generation}]
    for event in selected[max(0, len(selected) - events) :]:
        _print(event, as_json=as_json)
    while follow:
        more, position = service.journal.since(position)
        for event in more:
            if generation in {None, event.generation}:
                _print(event, as_json=as_json)
        if not more:
            time.sleep(POLL_S)


@click.command(epilog=EXAMPLES)
@click.argument("generation", type=click.IntRange(0), required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, without the verdict.")
@reading
def why(generation: int | None, *, as_json: bool, common: CommonOptions) -> None:
    """Tell the story of one rollout: how it went, then each decision with its evidence.

    GENERATION: which; without it, the newest.
    """
    service = shown_service(common)
    so_far, _ = service.journal.since(Position())
    if not so_far:
        raise NotRunningError(f"nothing was decided for {service.name} yet", hint=start_hint(service, "up"))
    number = max(event.generation for event in so_far) if generation is None else generation
    _must_be_known(service, number, so_far)
    selected = [event for event in so_far if event.generation == number]
    if not as_json:
        click.echo(verdict(number, selected))
    for event in selected:
        _print(event, as_json=as_json)


def _must_be_known(service: Service, generation: int, events: Sequence[JournalEvent]) -> None:
    known = sorted({event.generation for event in events})
    if generation in known:
        return
    newest = known[-1]
    with suppress(TurnoutError):  # the journal can be told without the registry
        newest = max(newest, service.registry.read().snapshot.deployment.generation)
    if generation > newest:
        raise UsageError(
            f"there is no generation {generation} of {service.name}: the newest is {newest}", hint="turnout history"
        )
    raise UsageError(
        f"nothing is recorded of generation {generation} of {service.name}: the journal has {known[0]} to {known[-1]}",
        hint="turnout history",
    )


def _print(event: JournalEvent, *, as_json: bool) -> None:
    if as_json:
        stamp = {"ts": event.ts, "event": event.event, "generation": event.generation, "revision": event.revision}
        click.echo(json_text({**stamp, **event.evidence}))
        return
    click.echo(f"{moment(event.ts)}  gen {event.generation}  {sentence(event)}")
