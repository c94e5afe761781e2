"""``turnout drain``: what old daemons still have, why, and an end to it."""

from __future__ import annotations

from typing import Any

import click

from turnout.cli.formatting import examples
from turnout.cli.options import CommonOptions, carry_out, changing, resolve, shown
from turnout.control.router_client import RouterClient
from turnout.core.json_text import json_text
from turnout.core.printable import clean
from turnout.state.home import Home


@click.command(
    epilog=examples(
        "turnout drain --explain           who is still connected to an old daemon, and why",
        "turnout drain                     cut each connection at its next quiet moment",
        "turnout drain --now               do not wait: stop the old daemons",
    )
)
@click.option("--explain", is_flag=True, help="Only look: each connection, and why it was not cut yet.")
@click.option("--now", is_flag=True, help="Do not wait for quiet moments: stop the old daemons at once.")
@click.option("--json", "as_json", is_flag=True, help="With --explain: machine-readable.")
@changing
def drain(*, explain: bool, now: bool, as_json: bool, common: CommonOptions) -> None:
    """Hasten draining: connections of old daemons are cut at their next quiet moment, without the grace.

    Quiet is one whose last bytes went to the client a second ago or more, with nothing half-sent.
    """
    if explain or as_json:
        drains = RouterClient(Home.find()).drains(shown(common).name)
        if as_json:
            click.echo(json_text(drains))
        else:
            _print(drains)
        return
    carry_out(common, resolve(common), common.request("drain", now=now))


def _print(drains: list[dict[str, Any]]) -> None:
    if not drains:
        click.echo("nothing drains")
    for drained in drains:
        end = (
            "never cut"
            if drained["deadline_in_s"] is None
            else f"cut in {drained['deadline_in_s']:.0f} s at the latest"
        )
        who = clean(f"{drained['boot_id']}  {drained['version'] or '-'}  {drained['cause']}")
        click.echo(f"{who}, draining for {drained['age_s']:.0f} s, {end}")
        for link in drained["connections"] or ():
            idle = "" if link["idle_s"] is None else f", idle {link['idle_s']:.1f} s"
            click.echo(
                f"  {link['peer']}  {link['age_s']:.0f} s old{idle}"
                f", {link['bytes_in']} bytes in, {link['bytes_out']} out: {link['why']}"
            )
