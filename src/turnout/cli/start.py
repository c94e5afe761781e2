"""``turnout start``: the daemon only."""

from __future__ import annotations

import click

from turnout.cli.formatting import examples
from turnout.cli.options import CommonOptions, carry_out, changing, recorded_option, resolve


@click.command(epilog=examples("turnout start", "turnout start --service cache --dry-run"))
@click.option("--automatic", is_flag=True, hidden=True, help="The router asks, with the settings that it runs on.")
@click.option("--unwell", default="", metavar="ID", hidden=True, help="Replace this one, if it still fails its probe.")
@recorded_option
@changing
def start(*, automatic: bool, unwell: str, common: CommonOptions) -> None:
    """Start the daemon of the build that was active last; never deploys another."""
    carry_out(
        common,
        resolve(common, remembered_only=automatic),
        common.request("start", automatic=automatic, from_router=automatic, unwell=unwell),
    )
