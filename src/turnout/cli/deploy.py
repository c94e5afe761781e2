"""``turnout deploy``: a new candidate, watched after the switch."""

from __future__ import annotations

from typing import Any

import click

from turnout.cli.options import choice, foretold, open_lifecycle, resolve, shaping
from turnout.cli.report import tell
from turnout.config import duration
from turnout.foresight import Intent
from turnout.verdict import await_verdict

EXAMPLES = """
\b
Examples:
  turnout deploy --version 2 -- ./server --port {port}
  turnout deploy                    the configured build, once more
  turnout deploy --detach && turnout wait --for idle
  turnout deploy --dry-run
"""


@click.command(epilog=EXAMPLES)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("--version", "version", default="", help="What this build calls itself.")
@click.option("--force", is_flag=True, help="Also a build that is quarantined.")
@click.option("--supersede", is_flag=True, help="Also when the last rollout is still observed.")
@click.option("--detach", is_flag=True, help="Return after the switch; the router watches on.")
@click.option("--timeout", metavar="D", help="How long to wait for the verdict (default: the window and a minute).")
@shaping
def deploy(
    command: tuple[str, ...],
    version: str,
    *,
    force: bool,
    supersede: bool,
    detach: bool,
    timeout: str | None,
    **options: Any,
) -> None:
    """Start a new candidate, switch to it once it is healthy, and wait until its observe window is over.

    Exit code 5: it was switched to, failed three checks in a row, and the previous daemon serves again.
    """
    chosen = choice(options)
    timeout_s = duration(timeout, what="--timeout") if timeout else None
    wanted = resolve(chosen, command, version=version, creates=True)
    if foretold(chosen, wanted, Intent("deploy", force=force, supersede=supersede)):
        return
    with open_lifecycle(chosen, wanted, "deploy", reporter := chosen.reporter) as lifecycle:
        done = lifecycle.deploy(force=force, supersede=supersede, expected_generation=chosen.if_generation)
        lifecycle.unlock()
        if done.switched and done.switched.observed and not detach:
            reporter.say(f"observing for {wanted.settings.observe_s:g} s")
            await_verdict(lifecycle.service, done.switched, timeout_s=timeout_s)
    tell(done)
