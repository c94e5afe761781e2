"""``turnout attach`` and ``detach``: a daemon that something else started and owns."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from turnout.cli.options import changing, choice, foretold, listening, open_lifecycle, resolve, shaping
from turnout.cli.report import tell
from turnout.config import DEFAULT_LISTEN, Settings, Wanted, parse_address
from turnout.config_check import check
from turnout.errors import NoSuchServiceError
from turnout.foresight import Intent
from turnout.verdict import await_verdict

ATTACH = """
\b
Examples:
  turnout attach 127.0.0.1:6380     what systemd started, behind the fixed address from now on
  turnout attach 127.0.0.1:6380 --listen 127.0.0.1:6379 --dry-run
"""
DETACH = """
\b
Example:
  turnout detach
"""


@click.command(epilog=ATTACH)
@click.argument("address")
@click.option("--detach", "return_early", is_flag=True, help="Return after the switch; the router watches on.")
@shaping
def attach(address: str, *, return_early: bool, **options: Any) -> None:
    """Switch to the daemon that listens on ADDRESS: probed and watched, but never stopped by turnout."""
    chosen = choice(options)
    target = parse_address(address)
    try:
        wanted = resolve(chosen)
    except NoSuchServiceError:  # attaching is a way to begin, too
        settings = Settings(name=chosen.service or "default", listen=listening(chosen.listen or DEFAULT_LISTEN))
        check(settings)
        wanted = Wanted(settings=settings)
    wanted = msgspec.structs.replace(wanted, command=())
    if foretold(chosen, wanted, Intent("attach", address=target)):
        return
    with open_lifecycle(chosen, wanted, "attach", reporter := chosen.reporter) as lifecycle:
        done = lifecycle.attach(target)
        lifecycle.unlock()
        if done.switched and done.switched.observed and not return_early:
            reporter.say(f"observing for {wanted.settings.observe_s:g} s")
            await_verdict(lifecycle.service, done.switched)
    tell(done)


@click.command(epilog=DETACH)
@changing
def detach(**options: Any) -> None:
    """Let an attached daemon go; it runs on, and the fixed address resets what comes."""
    chosen = choice(options)
    wanted = msgspec.structs.replace(resolve(chosen), command=())
    if foretold(chosen, wanted, Intent("detach")):
        return
    with open_lifecycle(chosen, wanted, "detach", chosen.reporter) as lifecycle:
        done = lifecycle.detach()
    tell(done)
