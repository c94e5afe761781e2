"""``turnout dashboard``: everything on one page, in a browser on this machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import click

from turnout.cli.options import Choice, choice, reading
from turnout.cli.status import look
from turnout.cli.story import sentence, verdict
from turnout.cli.watch import Rates
from turnout.core.printable import clean
from turnout.dashboard.opening import has_screen, open_in_browser, opener
from turnout.errors import InterruptedByUserError, TurnoutError
from turnout.log_lines import log_to_stderr
from turnout.system.home import Home
from turnout.system.journal import Event
from turnout.telemetry import ServiceStatus, Status

EXAMPLES = """
\b
Examples:
  turnout dashboard                       a page with a link that only you have
  turnout dashboard --port 8474 --no-open
  ssh -L 8474:127.0.0.1:8474 HOST turnout dashboard --port 8474
"""


class _Words:
    """How the command line looks and words things, lent to the page."""

    def __init__(self, chosen: Choice) -> None:
        self._chosen = chosen
        self._rates = Rates()

    def look(self) -> Status:
        return look(self._chosen)

    def sentence(self, event: Event) -> str:
        return sentence(event)

    def verdict(self, generation: int, events: Sequence[Event]) -> str:
        return verdict(generation, events)

    def clean(self, text: str) -> str:
        return clean(text)

    def rates(self, service: ServiceStatus, now: float) -> dict[str, tuple[float, float]]:
        return self._rates.of(service, now=now)


@click.command(epilog=EXAMPLES)
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="On 127.0.0.1; 0: any that is free (default).")
@click.option(
    "--open/--no-open", "opens", default=None, help="Open it in a browser; by default where there is a screen."
)
@reading
def dashboard(*, port: int, opens: bool | None, **options: Any) -> None:
    """Serve a page that shows what is active, what is wrong and what to type, live; Ctrl-C ends it.

    It listens on 127.0.0.1 alone. The link has a token, new with every start, without which nothing is told or done.
    What the page changes it has the verbs of this command line do, after it has shown what they would do.
    """
    try:
        from turnout.dashboard.server import serve  # noqa: PLC0415  # needs the extra
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "turnout":
            raise
        raise TurnoutError(
            f"the dashboard needs {error.name}, which is not installed", hint="pip install 'turnout[web]'"
        ) from None
    chosen = choice(options)
    home = Home.find()
    home.create()
    log_to_stderr("[%(asctime)s] %(message)s")
    # a browser in this very terminal would wait for a server that waits for it
    screen = has_screen(os.environ)
    wants = screen and sys.stdout.isatty() if opens is None else opens
    with opener(home.root) as path:

        def announce(url: str) -> None:
            click.echo(url)
            sys.stdout.flush()
            if wants and not (screen and open_in_browser(url, path)):
                click.echo("no browser could be opened: open the link by hand", err=True)

        common = ("-c", chosen.config) if chosen.config else ()
        with suppress(KeyboardInterrupt):  # Ctrl-C in the moment between the link and the server that takes it
            serve(home, _Words(chosen), port=port, announce=announce, common=common)
    raise click.exceptions.Exit(InterruptedByUserError.exit_code)
