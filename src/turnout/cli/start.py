"""``turnout start``: the daemon only."""

from __future__ import annotations

from typing import Any

import click

from turnout.cli.options import changing, choice, foretold, open_lifecycle, resolve
from turnout.cli.report import tell
from turnout.foresight import Intent

EXAMPLES = """
\b
Examples:
  turnout start
  turnout start --service cache --dry-run
"""


@click.command(epilog=EXAMPLES)
@click.option("--automatic", is_flag=True, hidden=True, help="The router asks, with the settings that it runs on.")
@click.option("--unwell", default="", metavar="ID", hidden=True, help="Replace this one, if it still fails its probe.")
@changing
def start(*, automatic: bool, unwell: str, **options: Any) -> None:
    """Start the daemon of the build that was active last; never deploys another."""
    chosen = choice(options)
    wanted = resolve(chosen, remembered_only=automatic)
    if foretold(chosen, wanted, Intent("start")):
        return
    with open_lifecycle(
        chosen, wanted, "start", chosen.reporter, automatic=automatic, from_router=automatic
    ) as lifecycle:
        done = lifecycle.start(unwell=unwell)
    tell(done)
