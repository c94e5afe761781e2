"""``turnout down``: drain and stop all of it."""

from __future__ import annotations

import click

from turnout.cli.formatting import examples
from turnout.cli.options import CommonOptions, carry_out, changing, resolve


@click.command(epilog=examples("turnout down", "turnout down --dry-run              what would be drained and ended"))
@click.option("--automatic", is_flag=True, hidden=True, help="The keeper was told to end, and asks.")
@changing
def down(*, automatic: bool, common: CommonOptions) -> None:
    """Drain and stop the service: daemon, listener and, with the last service, router and keeper."""
    carry_out(
        common,
        resolve(common, remembered_only=automatic),
        common.request("down", automatic=automatic, from_router=automatic),
    )
