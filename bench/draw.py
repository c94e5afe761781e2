"""Which plots there are, and what is in them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from bench.cases import BULK, CONNECTS, EXCHANGES, Case
from bench.measure import column
from bench.plot import Bar, bars, lines, timelines
from bench.raw import Run


def draw(run: Run) -> dict[str, str]:
    """Every plot that this run has the figures for, by the name of its file."""
    plots: dict[str, str] = {}
    latency = [case for case in EXCHANGES if case.load[2] == "64"]
    shown = _groups(run, latency, "p50_us", "p99_us")
    if shown:
        plots["latency"] = bars(
            "Latency of 64 B request and response",
            "µs, median / p99 (the mark); shorter is better; log scale",
            shown,
            log=True,
        )
    shown = _groups(run, [CONNECTS], "per_s")
    if shown:
        plots["connects"] = bars("Connect, exchange, close", "connections a second; longer is better", shown)
    shown = _groups(run, [case for case in BULK if case.last != ("both",)], "bytes_s")
    if shown:
        plots["bulk"] = bars("Bulk transfer", "bytes a second; longer is better", shown)
    panels = {
        f"{name}: first new connection after {statistics.median(told['first_ms']):.1f} ms": told["timeline"]
        for name, told in run.switches.items()
        if name != "reference"
    }
    if panels:
        plots["switch"] = timelines(
            "A switch, connection by connection",
            "a dot is a connection: when it was due, how long it took; blue, orange: who answered; red: failed",
            panels,
        )
    for curve, name, figure, title in (
        ("connections", "growth-connections", "cpu_us", "CPU time of one exchange beside idle connections, µs"),
        ("daemons in the registry", "growth-registry", "first_ms", "Rename to first new connection, ms"),
    ):
        series = {
            plane: [(float(count), figures[figure]) for count, figures in points.items()]
            for (found, plane), points in run.growth.items()
            if found == curve
        }
        if series:
            plots[name] = lines(title, "lower is better", curve, series)
    return plots


def _groups(run: Run, cases: Sequence[Case], figure: str, mark: str = "") -> list[tuple[str, list[Bar]]]:
    found: list[tuple[str, list[Bar]]] = []
    for case in cases:
        bars_of = [
            Bar(name, statistics.median(column(each, figure)), statistics.median(column(each, mark)) if mark else None)
            for name, each in run.cases.get(case.name, {}).items()
            if column(each, figure)
        ]
        if bars_of:
            found.append((case.name, bars_of))
    return found
