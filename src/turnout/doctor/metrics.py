"""Whether metrics are served where they should be."""

from __future__ import annotations

import errno
import shlex
import socket
from collections.abc import Iterator

from turnout.config import Address, Scrape
from turnout.doctor.finding import Found, bad, ok
from turnout.doctor.scene import Scene
from turnout.errors import ConfigError, TurnoutError
from turnout.metrics import EXTRA, require
from turnout.scrape_address import bind_problem, read_scrape
from turnout.system.sockets import who_listens

OFF = "metrics are not served: turnout up --metrics 127.0.0.1:9477, or [metrics] in turnout.toml, turns them on"


def check_metrics(scene: Scene) -> Iterator[Found]:
    """Of the whole home: one router serves them for all services."""
    try:
        scrape = read_scrape(scene.home)
    except TurnoutError as error:
        path = scene.home.metrics
        mend = "rm --" if isinstance(error, ConfigError) else "ls -l --"
        yield bad("metrics", f"{path}: {error.message}", f"{mend} {shlex.quote(str(path))}")
        return
    if scrape.listen is None:
        yield ok("metrics", OFF)
        return
    try:
        require()
    except ConfigError as error:
        yield bad("metrics", f"to be served on {scrape.listen}: {error.message}", EXTRA)
        return
    yield _look(scene, scrape, scrape.listen)


def _look(scene: Scene, scrape: Scrape, address: Address) -> Found:
    told = (scene.router or {}).get("metrics", {})
    if told.get("listen") == str(address):
        return ok("metrics", f"served on http://{address}/metrics")
    if told.get("error"):
        return bad("metrics", str(told["error"]), _elsewhere(scrape, address))
    holder = who_listens(address.host, address.port)
    ours = {record.identity.pid for record in scene.router_processes}
    if holder and holder.pid not in ours:
        return bad("metrics", bind_problem(address, errno.EADDRINUSE).message, _elsewhere(scrape, address))
    if scene.router:
        return ok("metrics", f"about to be served on http://{address}/metrics")
    return ok("metrics", f"to be served on http://{address}/metrics while a router runs")


def _elsewhere(scrape: Scrape, address: Address) -> str:
    """What to type for a port that is free at the moment."""
    if scrape.source:
        return f"name another port under [metrics] in {scrape.source}, then turnout up"
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family) as sock:
        sock.bind((address.host, 0))
        return f"turnout up --metrics {Address(address.host, sock.getsockname()[1])}"
