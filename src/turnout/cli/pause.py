"""``turnout pause`` and ``resume``: hold new connections, and let them go."""

from __future__ import annotations

from typing import Any

import click

from turnout.cli.options import changing, choice, open_lifecycle, resolve
from turnout.cli.report import Reporter


@click.command()
@changing
def pause(**options: Any) -> None:
    """Hold new connections, unread, until ``turnout resume``; those that exist go on.

    The hold is bounded (hold.max, hold.timeout): who waits longer is reset.
    """
    chosen = choice(options)
    with open_lifecycle(chosen, resolve(chosen), "pause", Reporter(quiet=chosen.quiet)) as lifecycle:
        done = lifecycle.pause()
    click.echo(done.text)


@click.command()
@changing
def resume(**options: Any) -> None:
    """Let held connections go, first in first out, and serve new ones again."""
    chosen = choice(options)
    with open_lifecycle(chosen, resolve(chosen), "resume", Reporter(quiet=chosen.quiet)) as lifecycle:
        done = lifecycle.resume()
    click.echo(done.text)
