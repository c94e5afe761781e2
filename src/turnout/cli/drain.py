"""``turnout drain``: what old daemons still have, why, and an end to it."""

from __future__ import annotations

import json
from typing import Any

import click

from turnout.admin import RouterClient
from turnout.cli.options import changing, choice, foretold, open_lifecycle, resolve
from turnout.cli.report import tell
from turnout.core.printable import clean
from turnout.foresight import Intent
from turnout.system.home import Home

EXAMPLES = """
\b
Examples:
  turnout drain --explain           who is still connected to an old daemon, and why
  turnout drain                     cut each connection at its next quiet moment
  turnout drain --now               do not wait: stop the old daemons
"""


@click.command(epilog=EXAMPLES)
@click.option("--explain", is_flag=True, help="Only look: each connection, and why it was not cut yet.")
@click.option("--now", is_flag=True, help="Do not wait for quiet moments: stop the old daemons at once.")
@click.option("--json", "as_json", is_flag=True, help="With --explain: machine-readable.")
@changing
def drain(*, explain: bool, now: bool, as_json: bool, **options: Any) -> None:
    """Hasten draining: connections of old daemons are cut at their next quiet moment, without the grace.

    Quiet is one whose last bytes went to the client a second ago or more, with nothing half-sent.
    """
    chosen = choice(options)
    wanted = resolve(chosen)
    if explain or as_json:
        drains = RouterClient(Home.find()).drains(wanted.settings.name)
        if as_json:
            click.echo(json.dumps(drains))
        else:
            _print(drains)
        return
    if foretold(chosen, wanted, Intent("drain", now=now)):
        return
    with open_lifecycle(chosen, wanted, "drain", chosen.reporter) as lifecycle:
        done = lifecycle.drain(now=now)
    tell(done)


def _print(drains: list[dict[str, Any]]) -> None:
    if not drains:
        click.echo("nothing drains")
    for one in drains:
        end = "never cut" if one["deadline_in_s"] is None else f"cut in {one['deadline_in_s']:.0f} s at the latest"
        who = clean(f"{one['boot_id']}  {one['version'] or '-'}  {one['cause']}")
        click.echo(f"{who}, draining for {one['age_s']:.0f} s, {end}")
        for link in one["connections"] or ():
            idle = "" if link["idle_s"] is None else f", idle {link['idle_s']:.1f} s"
            click.echo(
                f"  {link['peer']}  {link['age_s']:.0f} s old{idle}"
                f", {link['bytes_in']} bytes in, {link['bytes_out']} out: {link['why']}"
            )
