"""``turnout bench``: what the fixed address costs a daemon's clients, and what they see of a switch."""

from __future__ import annotations

import codecs
import sys
from dataclasses import asdict

import click

from turnout.cli.formatting import examples
from turnout.cli.options import CommonOptions, reading, shown_service
from turnout.config.keys import KEYS
from turnout.config.settings import Address, PlaneName, parse_address
from turnout.core.json_text import json_text
from turnout.demo.comparison import SideBySide, table
from turnout.errors import NoSuchServiceError, UsageError


@click.command(
    epilog=examples(
        "turnout bench                     the active daemon of the service; without one, the bundled daemon",
        "turnout bench --against 127.0.0.1:6379 --send 'PING\\r\\n'",
    )
)
@click.option("--against", metavar="HOST:PORT", help="A daemon that listens there; default: the service's active one.")
@click.option("--send", "text", metavar="TEXT", default="", help=r"What the daemon answers (\r, \n, \xNN are known).")
@click.option("--plane", metavar="P", help="The plane to measure; default: the service's.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable, stable.")
@reading
def bench(*, against: str | None, text: str, as_json: bool, common: CommonOptions) -> None:
    """Time a daemon direct and through turnout, in turn, and switch under load; 30 seconds at most.

    It runs in a router of its own: nothing that runs already is switched, paused or stopped, but the daemon gets the
    load. Where there is no service, the bundled daemon is measured. A text that the daemon answers is taken from the
    service's probe (expect) unless --send gives one.
    """
    target, send, used = _of_service(common) if against is None else (parse_address(against), b"", "auto")
    if text:
        send = _unescaped(text)
    if common.plane:
        used = KEYS["plane"].read(common.plane, what="--plane")
    result = SideBySide(target, send=send, plane=used, say=lambda line: print(line, file=sys.stderr, flush=True)).run()
    click.echo(json_text({"schema": 1, **asdict(result)}) if as_json else table(result))


def _of_service(common: CommonOptions) -> tuple[Address | None, bytes, PlaneName]:
    """The active daemon of the service that is meant, what its probe sends, and its plane; None: nothing runs."""
    try:
        service = shown_service(common)
    except NoSuchServiceError:
        if common.service:
            raise
        return None, b"", "auto"
    settings, active = service.settings, service.registry.read().snapshot.active
    target = Address(active.host, active.port) if active else None
    return target, settings.health.send.encode() if target else b"", settings.plane


def _unescaped(text: str) -> bytes:
    r"""What a shell cannot hold: ``\r``, ``\n``, ``\xNN``; everything else as UTF-8."""
    try:
        return codecs.escape_decode(text.encode())[0]
    except ValueError as error:
        raise UsageError(f"--send {text!r}: {error}", hint=r"for example --send 'PING\r\n'") from None
