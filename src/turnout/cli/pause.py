"""``turnout pause`` and ``resume``: hold new connections, and let them go."""

from __future__ import annotations

import click

from turnout.cli.formatting import examples
from turnout.cli.options import CommonOptions, carry_out, changing, resolve


@click.command(epilog=examples("turnout pause && ./migrate.sh && turnout resume", "turnout pause --dry-run"))
@changing
def pause(common: CommonOptions) -> None:
    """Hold new connections, unread, until ``turnout resume``; those that exist go on.

    The hold is bounded (hold.max, hold.timeout): who waits longer is reset.
    """
    carry_out(common, resolve(common), common.request("pause"))


@click.command(epilog=examples("turnout resume"))
@changing
def resume(common: CommonOptions) -> None:
    """Let held connections go, first in first out, and serve new ones again."""
    carry_out(common, resolve(common), common.request("resume"))
