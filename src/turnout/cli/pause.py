"""``turnout pause`` and ``resume``: hold new connections, and let them go."""

from __future__ import annotations

from typing import Any

import click

from turnout.cli.options import changing, choice, foretold, open_lifecycle, resolve
from turnout.cli.report import tell
from turnout.foresight import Intent

PAUSE = """
\b
Examples:
  turnout pause && ./migrate.sh && turnout resume
  turnout pause --dry-run
"""
RESUME = """
\b
Example:
  turnout resume
"""


@click.command(epilog=PAUSE)
@changing
def pause(**options: Any) -> None:
    """Hold new connections, unread, until ``turnout resume``; those that exist go on.

    The hold is bounded (hold.max, hold.timeout): who waits longer is reset.
    """
    chosen = choice(options)
    wanted = resolve(chosen)
    if foretold(chosen, wanted, Intent("pause")):
        return
    with open_lifecycle(chosen, wanted, "pause", chosen.reporter) as lifecycle:
        done = lifecycle.pause()
    tell(done)


@click.command(epilog=RESUME)
@changing
def resume(**options: Any) -> None:
    """Let held connections go, first in first out, and serve new ones again."""
    chosen = choice(options)
    wanted = resolve(chosen)
    if foretold(chosen, wanted, Intent("resume")):
        return
    with open_lifecycle(chosen, wanted, "resume", chosen.reporter) as lifecycle:
        done = lifecycle.resume()
    tell(done)
