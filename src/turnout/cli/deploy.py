"""``turnout deploy``: a new candidate, watched after the switch."""

from __future__ import annotations

import click

from turnout.cli.formatting import examples
from turnout.cli.options import CommonOptions, carry_out, changing, recorded_option, resolve, settings_options
from turnout.config.settings import duration


@click.command(
    epilog=examples(
        "turnout deploy --version 2 -- ./server --port {port}",
        "turnout deploy                    the configured build, once more",
        "turnout deploy --detach && turnout wait --for idle",
        "turnout deploy --dry-run",
    )
)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("--version", "version", default="", help="What this build calls itself.")
@click.option("--force", is_flag=True, help="Also a build that is quarantined.")
@click.option("--supersede", is_flag=True, help="Also when the last rollout is still observed.")
@click.option("--detach", is_flag=True, help="Return after the switch; the router watches on.")
@click.option("--timeout", metavar="D", help="How long to wait for the verdict (default: the window and a minute).")
@recorded_option
@settings_options
@changing
def deploy(
    command: tuple[str, ...],
    version: str,
    *,
    force: bool,
    supersede: bool,
    detach: bool,
    timeout: str | None,
    common: CommonOptions,
) -> None:
    """Start a new candidate, switch to it once it is healthy, and wait until its observe window is over.

    Exit code 5: it was switched to, failed three checks in a row, and the previous daemon serves again.
    """
    timeout_s = duration(timeout, what="--timeout") if timeout else None
    wanted = resolve(common, command, version=version, creates=True)
    carry_out(
        common,
        wanted,
        common.request("deploy", force=force, supersede=supersede),
        waits=not detach,
        timeout_s=timeout_s,
    )
