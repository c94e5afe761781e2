"""``turnout up``: make it so."""

from __future__ import annotations

import click
import msgspec

from turnout.cli.formatting import examples
from turnout.cli.options import (
    CommonOptions,
    carry_out,
    changing,
    recorded_option,
    resolve,
    settings_options,
    watched_file,
)
from turnout.config.settings import scrape_flag


@click.command(
    epilog=examples(
        "turnout up -- redis-server --port {port} --save ''",
        "turnout up                        what turnout.toml says, or the command of the last time",
        "turnout up --listen 127.0.0.1:6379 --dry-run",
        "turnout up --metrics 127.0.0.1:9477      and http://127.0.0.1:9477/metrics for Prometheus",
    )
)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("--version", "version", default="", help="What this build calls itself.")
@click.option("--supersede", is_flag=True, help="Also when the last rollout is still observed.")
@click.option("--automatic", is_flag=True, help="For programs: never back to an older version, never in turns.")
@click.option(
    "--metrics", envvar="TURNOUT_METRICS", metavar="ADDR", help="Serve metrics for Prometheus there; none: nowhere."
)
@click.option("--from-router", is_flag=True, hidden=True, help="The router asks, by the file that it watches.")
@recorded_option
@settings_options
@changing
def up(
    command: tuple[str, ...],
    version: str,
    *,
    supersede: bool,
    automatic: bool,
    metrics: str | None,
    from_router: bool,
    common: CommonOptions,
) -> None:
    """Have the service running: keeper, router, and a daemon of the configured build.

    What runs already is left alone; another build is deployed. {port} in the command is where the daemon must listen
    (it is in $PORT too).

    With --automatic a build is deployed if its version is newer, or the configuration has changed; nothing is deployed
    that was rolled back, and what was stopped stays so. It returns after the switch.
    """
    common = watched_file(common) if from_router else common
    wanted = resolve(common, command, version=version, creates=True, automatic=automatic, recorded=from_router)
    if from_router:  # the file is the one that the service names; there is nothing to record
        wanted = msgspec.structs.replace(wanted, definition=None)
    if metrics:
        wanted = msgspec.structs.replace(wanted, scrape=scrape_flag(metrics))
    carry_out(
        common,
        wanted,
        common.request("up", supersede=supersede, automatic=automatic or from_router, from_router=from_router),
        waits=not automatic,
    )
