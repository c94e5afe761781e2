"""``turnout stop``: the daemon only."""

from __future__ import annotations

import click

from turnout.cli.formatting import examples
from turnout.cli.options import CommonOptions, carry_out, changing, resolve


@click.command(epilog=examples("turnout stop", "turnout stop --service cache --dry-run"))
@changing
def stop(common: CommonOptions) -> None:
    """Stop the daemon. The fixed address stays, and resets what comes until start or deploy."""
    carry_out(common, resolve(common), common.request("stop"))
