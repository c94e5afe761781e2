"""``turnout stop``: the daemon only."""

from __future__ import annotations

from typing import Any

import click

from turnout.cli.options import changing, choice, foretold, open_lifecycle, resolve
from turnout.cli.report import tell
from turnout.foresight import Intent

EXAMPLES = """
\b
Examples:
  turnout stop
  turnout stop --service cache --dry-run
"""


@click.command(epilog=EXAMPLES)
@changing
def stop(**options: Any) -> None:
    """Stop the daemon. The fixed address stays, and resets what comes until start or deploy."""
    chosen = choice(options)
    wanted = resolve(chosen)
    if foretold(chosen, wanted, Intent("stop")):
        return
    with open_lifecycle(chosen, wanted, "stop", chosen.reporter) as lifecycle:
        done = lifecycle.stop()
    tell(done)
