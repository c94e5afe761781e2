"""``turnout refresh``: the same build, a new process."""

from __future__ import annotations

from typing import Any

import click

from turnout.cli.options import changing, choice, foretold, open_lifecycle, resolve
from turnout.cli.report import tell
from turnout.foresight import Intent

EXAMPLES = """
\b
Examples:
  turnout refresh                        after its configuration changed
  turnout refresh --dry-run
  turnout refresh --if-generation 7      only if nobody has rolled out since
"""


@click.command(epilog=EXAMPLES)
@changing
def refresh(**options: Any) -> None:
    """Start the running build again and switch to the new process; no observe window."""
    chosen = choice(options)
    wanted = resolve(chosen)
    if foretold(chosen, wanted, Intent("refresh")):
        return
    with open_lifecycle(chosen, wanted, "refresh", chosen.reporter) as lifecycle:
        done = lifecycle.refresh()
    tell(done)
