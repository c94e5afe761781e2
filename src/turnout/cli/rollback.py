"""``turnout rollback``: back to what ran before."""

from __future__ import annotations

from typing import Any

import click

from turnout.cli.options import changing, choice, open_lifecycle, resolve
from turnout.cli.report import Reporter
from turnout.verdict import await_verdict


@click.command()
@click.argument("generation", type=int, required=False)
@click.option("--detach", is_flag=True, help="Return after the switch; the router watches on.")
@changing
def rollback(generation: int | None, *, detach: bool, **options: Any) -> None:
    """Go back: inside the observe window at once to the warm daemon, else by a new rollout of the earlier build.

    GENERATION names a rollout whose build is to run again; without it, the one before.
    """
    chosen = choice(options)
    wanted = resolve(chosen)
    with open_lifecycle(chosen, wanted, "rollback", reporter := Reporter(quiet=chosen.quiet)) as lifecycle:
        done = lifecycle.rollback(generation)
        lifecycle.unlock()
        if done.switched and done.switched.observed and not detach:
            reporter.say(f"observing for {wanted.settings.observe_s:g} s")
            await_verdict(lifecycle.service, done.switched)
    click.echo(done.text)
