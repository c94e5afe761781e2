"""``turnout router``: keeper and router in the foreground, for a service manager or a container."""

from __future__ import annotations

import click

from turnout.keeper import Keeper
from turnout.system.home import Home


@click.command()
def router() -> None:
    """Run the keeper in this terminal, with the router as its child; verbs then use it.

    Ends with everything it started at Ctrl-C or SIGTERM. A second one for the same home refuses and names the first.
    """
    home = Home.find()
    home.create()
    Keeper(home).run()
