"""``turnout refresh``: the same build, a new process."""

from __future__ import annotations

from typing import Any

import click

from turnout.cli.options import changing, choice, open_lifecycle, resolve
from turnout.cli.report import Reporter


@click.command()
@changing
def refresh(**options: Any) -> None:
    """Start the running build again and switch to the new process; no observe window."""
    chosen = choice(options)
    wanted = resolve(chosen)
    with open_lifecycle(chosen, wanted, "refresh", Reporter(quiet=chosen.quiet)) as lifecycle:
        done = lifecycle.refresh()
    click.echo(done.text)
