"""``turnout dashboard``: everything on one page, in a browser on this machine."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from functools import partial

import click

from turnout.cli.formatting import examples
from turnout.cli.journal_text import sentence, verdict
from turnout.cli.options import CommonOptions, reading
from turnout.cli.status import look
from turnout.cli.watch import Rates
from turnout.dashboard.opening import has_screen, open_in_browser, opener
from turnout.errors import InterruptedByUserError, TurnoutError
from turnout.state.home import Home
from turnout.system.log_format import log_to_stderr


@click.command(
    epilog=examples(
        "turnout dashboard                       a page with a link that only you have",
        "turnout dashboard --port 8474 --no-open",
        "ssh -L 8474:127.0.0.1:8474 HOST turnout dashboard --port 8474",
    )
)
@click.option(
    "--port",
    "page_port",  # --port of other verbs is the daemon's
    type=click.IntRange(0, 65535),
    default=0,
    help="On 127.0.0.1; 0: any that is free (default).",
)
@click.option(
    "--open/--no-open", "opens", default=None, help="Open it in a browser; by default where there is a screen."
)
@reading
def dashboard(*, page_port: int, opens: bool | None, common: CommonOptions) -> None:
    """Serve a page that shows what is active, what is wrong and what to type, live; Ctrl-C ends it.

    It listens on 127.0.0.1 alone. The link has a token, new with every start, without which nothing is told or done.
    What the page changes it has the verbs of this command line do, after it has shown what they would do.
    """
    try:
        from turnout.dashboard.observer import View  # noqa: PLC0415  # needs the extra
        from turnout.dashboard.server import serve  # noqa: PLC0415  # as above
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "turnout":
            raise
        raise TurnoutError(
            f"the dashboard needs {error.name}, which is not installed", hint="pip install 'turnout[web]'"
        ) from None
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

        view = View(partial(look, common), sentence, verdict, Rates().of)
        options = ("-c", common.config) if common.config else ()
        with suppress(KeyboardInterrupt):  # Ctrl-C in the moment between the link and the server that takes it
            serve(home, view, port=page_port, announce=announce, common=options)
    raise click.exceptions.Exit(InterruptedByUserError.exit_code)
