"""``turnout rollback``: back to what ran before."""

from __future__ import annotations

import click

from turnout.cli.formatting import examples
from turnout.cli.options import CommonOptions, carry_out, changing, resolve


@click.command(
    epilog=examples(
        "turnout rollback                  in the observe window: at once",
        "turnout rollback 4                the build of generation 4 again, as a new rollout",
        "turnout rollback 4 --dry-run",
    )
)
@click.argument("generation", type=int, required=False)
@click.option("--detach", is_flag=True, help="Return after the switch; the router watches on.")
@click.option("--automatic", is_flag=True, hidden=True, help="The router asks: a failed daemon, and nobody warm.")
@changing
def rollback(generation: int | None, *, detach: bool, automatic: bool, common: CommonOptions) -> None:
    """Go back: inside the observe window at once to the warm daemon, else by a new rollout of the earlier build.

    GENERATION names a rollout whose build is to run again; without it, the one before.
    """
    wanted = resolve(common, remembered_only=automatic)
    carry_out(
        common,
        wanted,
        common.request("rollback", generation=generation, automatic=automatic, from_router=automatic),
        waits=not (detach or automatic),
    )
