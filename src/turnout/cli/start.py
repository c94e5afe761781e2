"""``turnout start``: the daemon only."""

from __future__ import annotations

from typing import Any

import click

from turnout.cli.options import changing, choice, open_lifecycle, resolve
from turnout.cli.report import Reporter


@click.command()
@changing
def start(**options: Any) -> None:
    """Start the daemon of the build that was active last; never deploys another."""
    chosen = choice(options)
    wanted = resolve(chosen)
    with open_lifecycle(chosen, wanted, "start", Reporter(quiet=chosen.quiet)) as lifecycle:
        done = lifecycle.start()
    click.echo(done.text)
