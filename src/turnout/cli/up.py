"""``turnout up``: make it so."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from turnout.cli.options import choice, foretold, open_lifecycle, resolve, shaping, watched_file
from turnout.cli.report import tell
from turnout.config import scrape_flag
from turnout.foresight import Intent
from turnout.keeper_client import tell_service_manager
from turnout.verdict import await_verdict

EXAMPLES = """
\b
Examples:
  turnout up -- redis-server --port {port} --save ''
  turnout up                        what turnout.toml says, or the command of the last time
  turnout up --listen 127.0.0.1:6379 --dry-run
  turnout up --metrics 127.0.0.1:9477      and http://127.0.0.1:9477/metrics for Prometheus
"""


@click.command(epilog=EXAMPLES)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("--version", "version", default="", help="What this build calls itself.")
@click.option("--supersede", is_flag=True, help="Also when the last rollout is still observed.")
@click.option("--automatic", is_flag=True, help="For programs: never back to an older version, never in turns.")
@click.option(
    "--metrics", envvar="TURNOUT_METRICS", metavar="ADDR", help="Serve metrics for Prometheus there; none: nowhere."
)
@click.option("--from-router", is_flag=True, hidden=True, help="The router asks, by the file that it watches.")
@shaping
def up(
    command: tuple[str, ...],
    version: str,
    *,
    supersede: bool,
    automatic: bool,
    metrics: str | None,
    from_router: bool,
    **options: Any,
) -> None:
    """Have the service running: keeper, router, and a daemon of the configured build.

    What runs already is left alone; another build is deployed. {port} in the command is where the daemon must listen
    (it is in $PORT too).

    With --automatic a build is deployed if its version is newer, or the configuration has changed; nothing is deployed
    that was rolled back, and what was stopped stays so. It returns after the switch.
    """
    chosen = watched_file(choice(options)) if from_router else choice(options)
    wanted = resolve(chosen, command, version=version, creates=True)
    if metrics:
        wanted = msgspec.structs.replace(wanted, scrape=scrape_flag(metrics))
    if foretold(chosen, wanted, Intent("up", supersede=supersede)):
        return
    reporter = chosen.reporter
    with open_lifecycle(
        chosen, wanted, "up", reporter, automatic=automatic or from_router, from_router=from_router
    ) as lifecycle:
        done = lifecycle.up(supersede=supersede, expected_generation=chosen.if_generation)
        lifecycle.unlock()
        tell_service_manager(lifecycle.home)
        if done.switched and done.switched.observed and not automatic:
            reporter.say(f"observing for {wanted.settings.observe_s:g} s")
            await_verdict(lifecycle.service, done.switched)
    tell(done)
