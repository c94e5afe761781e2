"""``turnout up``: make it so."""

from __future__ import annotations

from typing import Any

import click

from turnout.cli.options import choice, open_lifecycle, resolve, shaping
from turnout.cli.report import Reporter
from turnout.keeper_client import tell_service_manager
from turnout.verdict import await_verdict


@click.command(epilog="Example: turnout up -- redis-server --port {port} --save ''")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("--version", "version", default="", help="What this build calls itself.")
@click.option("--supersede", is_flag=True, help="Also when the last rollout is still observed.")
@click.option("--if-generation", type=int, metavar="N", help="Only if the deployment stands at generation N.")
@shaping
def up(command: tuple[str, ...], version: str, *, supersede: bool, if_generation: int | None, **options: Any) -> None:
    """Have the service running: keeper, router, and a daemon of the configured build.

    What runs already is left alone; another build is deployed. {port} in the command is where the daemon must listen is
    in $PORT too).
    """
    chosen = choice(options)
    wanted = resolve(chosen, command, version=version, creates=True)
    with open_lifecycle(chosen, wanted, "up", reporter := Reporter(quiet=chosen.quiet)) as lifecycle:
        done = lifecycle.up(supersede=supersede, expected_generation=if_generation)
        lifecycle.unlock()
        tell_service_manager(lifecycle.home)
        if done.switched and done.switched.observed:
            reporter.say(f"observing for {wanted.settings.observe_s:g} s")
            await_verdict(lifecycle.service, done.switched)
    click.echo(done.text)
