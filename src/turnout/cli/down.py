"""``turnout down``: drain and stop all of it."""

from __future__ import annotations

from typing import Any

import click

from turnout.cli.options import changing, choice, foretold, open_lifecycle, resolve
from turnout.cli.report import tell
from turnout.foresight import Intent

EXAMPLES = """
\b
Examples:
  turnout down
  turnout down --dry-run              what would be drained and ended
"""


@click.command(epilog=EXAMPLES)
@click.option("--automatic", is_flag=True, hidden=True, help="The keeper was told to end, and asks.")
@changing
def down(*, automatic: bool, **options: Any) -> None:
    """Drain and stop the service: daemon, listener and, with the last service, router and keeper."""
    chosen = choice(options)
    wanted = resolve(chosen, remembered_only=automatic)
    if foretold(chosen, wanted, Intent("down")):
        return
    reporter = chosen.reporter
    with open_lifecycle(chosen, wanted, "down", reporter, automatic=automatic, from_router=automatic) as lifecycle:
        done = lifecycle.down()
    tell(done)
