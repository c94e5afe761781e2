"""``turnout deploy``: a new candidate, watched after the switch."""

from __future__ import annotations

from typing import Any

import click

from turnout.cli.options import choice, open_lifecycle, resolve, shaping
from turnout.cli.report import Reporter
from turnout.config import duration
from turnout.verdict import await_verdict


@click.command(epilog="Example: turnout deploy --version 2 -- ./server --port {port}")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("--version", "version", default="", help="What this build calls itself.")
@click.option("--force", is_flag=True, help="Also a build that is quarantined.")
@click.option("--supersede", is_flag=True, help="Also when the last rollout is still observed.")
@click.option("--detach", is_flag=True, help="Return after the switch; the router watches on.")
@click.option("--timeout", metavar="D", help="How long to wait for the verdict (default: the window and a minute).")
@click.option("--if-generation", type=int, metavar="N", help="Only if the deployment stands at generation N.")
@shaping
def deploy(
    command: tuple[str, ...],
    version: str,
    *,
    force: bool,
    supersede: bool,
    detach: bool,
    timeout: str | None,
    if_generation: int | None,
    **options: Any,
) -> None:
    """Start a new candidate, switch to it once it is healthy, and wait until its observe window is over.

    Exit code 5: it was switched to, failed three checks in a row, and the previous daemon serves again.
    """
    chosen = choice(options)
    timeout_s = duration(timeout, what="--timeout") if timeout else None
    wanted = resolve(chosen, command, version=version, creates=True)
    with open_lifecycle(chosen, wanted, "deploy", reporter := Reporter(quiet=chosen.quiet)) as lifecycle:
        done = lifecycle.deploy(force=force, supersede=supersede, expected_generation=if_generation)
        lifecycle.unlock()
        if done.switched and done.switched.observed and not detach:
            reporter.say(f"observing for {wanted.settings.observe_s:g} s")
            await_verdict(lifecycle.service, done.switched, timeout_s=timeout_s)
    click.echo(done.text)
