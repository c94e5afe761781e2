"""``turnout refresh``: the same build, a new process."""

from __future__ import annotations

import click

from turnout.cli.formatting import examples
from turnout.cli.options import CommonOptions, carry_out, changing, recorded_option, resolve


@click.command(
    epilog=examples(
        "turnout refresh                        after its configuration changed",
        "turnout refresh --dry-run",
        "turnout refresh --if-generation 7      only if no rollout has begun since",
    )
)
@recorded_option
@changing
def refresh(common: CommonOptions) -> None:
    """Start the running build again and switch to the new process; no observe window."""
    carry_out(common, resolve(common), common.request("refresh"))
