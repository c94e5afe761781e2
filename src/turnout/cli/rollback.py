"""``turnout rollback``: back to what ran before."""

from __future__ import annotations

from typing import Any

import click

from turnout.cli.options import changing, choice, foretold, open_lifecycle, resolve
from turnout.cli.report import tell
from turnout.foresight import Intent
from turnout.verdict import await_verdict

EXAMPLES = """
\b
Examples:
  turnout rollback                  in the observe window: at once
  turnout rollback 4                the build of generation 4 again, as a new rollout
  turnout rollback 4 --dry-run
"""


@click.command(epilog=EXAMPLES)
@click.argument("generation", type=int, required=False)
@click.option("--detach", is_flag=True, help="Return after the switch; the router watches on.")
@click.option("--automatic", is_flag=True, hidden=True, help="The router asks: a failed daemon, and nobody warm.")
@changing
def rollback(generation: int | None, *, detach: bool, automatic: bool, **options: Any) -> None:
    """Go back: inside the observe window at once to the warm daemon, else by a new rollout of the earlier build.

    GENERATION names a rollout whose build is to run again; without it, the one before.
    """
    chosen = choice(options)
    wanted = resolve(chosen, remembered_only=automatic)
    if foretold(chosen, wanted, Intent("rollback", generation=generation)):
        return
    reporter = chosen.reporter
    with open_lifecycle(chosen, wanted, "rollback", reporter, automatic=automatic, from_router=automatic) as lifecycle:
        done = lifecycle.rollback(generation)
        lifecycle.unlock()
        if done.switched and done.switched.observed and not detach and not automatic:
            reporter.say(f"observing for {wanted.settings.observe_s:g} s")
            await_verdict(lifecycle.service, done.switched)
    tell(done)
