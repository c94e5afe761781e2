"""``turnout bench``: what the fixed address costs a daemon's clients, and what they see of a switch."""

from __future__ import annotations

import codecs
import sys
from dataclasses import asdict
from typing import Any

import click
import msgspec

from turnout.cli.options import choice, reading, resolve
from turnout.config import Address, PlaneName, parse_address, plane_name
from turnout.demo.side_by_side import SideBySide, table
from turnout.errors import NoSuchServiceError, UsageError
from turnout.service import Service
from turnout.system.home import Home

EXAMPLES = """
\b
Examples:
  turnout bench                     the active daemon of the service; without one, the bundled daemon
  turnout bench --against 127.0.0.1:6379 --send 'PING\\r\\n'
"""


@click.command(epilog=EXAMPLES)
@click.option("--against", metavar="HOST:PORT", help="A daemon that listens there; default: the service's active one.")
@click.option("--send", "text", metavar="TEXT", default="", help=r"What the daemon answers (\r, \n, \xNN are known).")
@click.option("--plane", metavar="P", help="The plane to measure; default: the service's.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable, stable.")
@reading
def bench(*, against: str | None, text: str, plane: str | None, as_json: bool, **options: Any) -> None:
    """Time a daemon direct and through turnout, in turn, and switch under load; 30 seconds at most.

    It runs in a router of its own: nothing that runs already is switched, paused or stopped, but the daemon gets the
    load. Where there is no service, the bundled daemon is measured. A text that the daemon answers is taken from the
    service's probe (expect) unless --send gives one.
    """
    target, send, used = _of_service(options) if against is None else (parse_address(against), b"", "auto")
    if text:
        send = _unescaped(text)
    if plane:
        used = plane_name(plane)
    said = SideBySide(target, send=send, plane=used, say=lambda line: print(line, file=sys.stderr, flush=True)).run()
    click.echo(msgspec.json.encode({"schema": 1, **asdict(said)}).decode() if as_json else table(said))


def _of_service(options: dict[str, Any]) -> tuple[Address | None, bytes, PlaneName]:
    """The active daemon of the service that is meant, what its probe sends, and its plane; None: nothing runs."""
    chosen = choice(options)
    try:
        settings = resolve(chosen).settings
    except NoSuchServiceError:
        if chosen.service:
            raise
        return None, b"", "auto"
    service = Service.open(Home.find().service(settings.name), settings)
    active = service.registry.read().snapshot.active
    target = Address(active.host, active.port) if active else None
    return target, settings.health.send.encode() if target else b"", settings.plane


def _unescaped(text: str) -> bytes:
    r"""What a shell cannot hold: ``\r``, ``\n``, ``\xNN``; everything else as UTF-8."""
    try:
        return codecs.escape_decode(text.encode())[0]
    except ValueError as error:
        raise UsageError(f"--send {text!r}: {error}", hint=r"for example --send 'PING\r\n'") from None
