"""``turnout attach`` and ``detach``: a daemon that something else started and owns."""

from __future__ import annotations

import click
import msgspec

from turnout.cli.formatting import examples
from turnout.cli.options import CommonOptions, apply_flags, carry_out, changing, resolve, settings_options
from turnout.config.keys import default
from turnout.config.settings import DEFAULT_SERVICE, ServiceRequest, Settings, parse_address
from turnout.config.validation import check
from turnout.errors import NoSuchServiceError
from turnout.state.definition import typed_here


@click.command(
    epilog=examples(
        "turnout attach 127.0.0.1:6380     what systemd started, behind the fixed address from now on",
        "turnout attach 127.0.0.1:6380 --listen 127.0.0.1:6379 --dry-run",
    )
)
@click.argument("address")
@click.option("--detach", "return_early", is_flag=True, help="Return after the switch; the router watches on.")
@settings_options
@changing
def attach(address: str, *, return_early: bool, common: CommonOptions) -> None:
    """Switch to the daemon that listens on ADDRESS: probed and watched, but never stopped by turnout."""
    target = parse_address(address)
    try:
        wanted = resolve(common)
    except NoSuchServiceError:  # attaching is a way to begin, too
        settings = apply_flags(Settings(name=common.service or DEFAULT_SERVICE, listen=default("listen")), common)
        check(settings)
        wanted = ServiceRequest(settings=settings, definition=typed_here())
    wanted = msgspec.structs.replace(wanted, command=())
    carry_out(common, wanted, common.request("attach", address=target), waits=not return_early)


@click.command(epilog=examples("turnout detach"))
@changing
def detach(common: CommonOptions) -> None:
    """Let an attached daemon go; it runs on, and the fixed address resets what comes."""
    wanted = msgspec.structs.replace(resolve(common), command=())
    carry_out(common, wanted, common.request("detach"))
