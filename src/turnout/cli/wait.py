"""``turnout wait``: until a service is as a script needs it."""

from __future__ import annotations

import time

import click

from turnout.cli.options import CommonOptions, reading, shown
from turnout.config.settings import duration
from turnout.core.model import Desired, State
from turnout.errors import TimedOutError, UsageError
from turnout.state.home import Home
from turnout.state.service import Service, remembered
from turnout.status.collect import ask_router, service_status
from turnout.status.schema import ServiceStatus

POLL_S = 0.1
EXAMPLES = """
\b
Examples:
  turnout wait                                   until the active daemon passes its checks
  turnout deploy --detach && turnout wait --for idle --timeout 2m
  turnout wait --for generation=7 --for healthy

Exit code 124: it was not so in time.
"""


@click.command(epilog=EXAMPLES)
@click.option(
    "--for",
    "wanted",
    multiple=True,
    metavar="WHAT",
    default=("healthy",),
    help="healthy, idle (no rollout, no window) or generation=N (N or later); may be given again. Default: healthy.",
)
@click.option("--timeout", metavar="D", default="60s", show_default=True, help="How long; none: for ever.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing when it is so.")
@reading
def wait(wanted: tuple[str, ...], *, timeout: str, common: CommonOptions) -> None:
    """Wait until the service is healthy, idle or at a generation; all that is asked for at one moment."""
    generations = {text: _generation(text) for text in wanted}
    limit_s = None if timeout == "none" else duration(timeout, what="--timeout")
    name = shown(common).name
    home = Home.find()
    deadline = None if limit_s is None else time.monotonic() + limit_s
    while True:
        seen = _look(home, name)
        missing = [text for text in wanted if seen is None or not _holds(seen, text, generations[text])]
        if seen and not missing:
            break
        if deadline is not None and time.monotonic() >= deadline:
            why = f": {seen.problems[0].what}" if seen and seen.problems else ""
            state = f"generation {seen.deployment.generation}, {seen.deployment.state}" if seen else "never been up"
            raise TimedOutError(
                f"{name} is not {' and '.join(missing)} after {limit_s:g} s ({state}){why}", hint="turnout status"
            )
        time.sleep(POLL_S)
    if not common.quiet:
        click.echo(f"{name} is {' and '.join(wanted)}")


def _generation(text: str) -> int:
    if text in {"healthy", "idle"}:
        return 0
    what, _, number = text.partition("=")
    if what != "generation" or not (number.isascii() and number.isdigit()):
        raise UsageError(f"cannot wait for {text!r}", hint="--for healthy, --for idle or --for generation=N")
    return int(number)


def _look(home: Home, name: str) -> ServiceStatus | None:
    settings = remembered(home.service(name))
    return service_status(Service.open(home.service(name), settings), ask_router(home)) if settings else None


def _holds(seen: ServiceStatus, text: str, generation: int) -> bool:
    if text == "idle":
        return seen.deployment.state is State.IDLE
    if text == "healthy":
        active = next((daemon for daemon in seen.daemons if daemon.role == "active"), None)
        applied = seen.router.applied_revision == seen.deployment.revision
        serves = seen.router.alive and applied and seen.desired is Desired.RUNNING
        return serves and active is not None and active.alive and active.healthy is True
    return seen.deployment.generation >= generation
