"""``turnout stop``: the daemon only."""

from __future__ import annotations

from typing import Any

import click

from turnout.cli.options import changing, choice, open_lifecycle, resolve
from turnout.cli.report import Reporter


@click.command()
@changing
def stop(**options: Any) -> None:
    """Stop the daemon. The fixed address stays, and resets what comes until start or deploy."""
    chosen = choice(options)
    wanted = resolve(chosen)
    with open_lifecycle(chosen, wanted, "stop", Reporter(quiet=chosen.quiet)) as lifecycle:
        done = lifecycle.stop()
    click.echo(done.text)
