"""RESULTS.md, results.json and the plots, from the JSON that a run left.

python -m bench report RAW.json [--out DIRECTORY]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from bench import compare, profile
from bench.arena import HERE, BenchError
from bench.cases import BULK, CONNECTS, EXCHANGES, HEADLINES, Case
from bench.draw import draw
from bench.losses import OURS, first_paragraph
from bench.measure import Figures, column
from bench.raw import Run

PEER: Final = "haproxy"
DIRECT_PLANES: Final = ("reuseport", "sk_lookup")
DIRECT_COST: Final = (1.07, 1.03)  # of a latency: at most, and the aim
DIRECT_YIELD: Final = (0.93, 0.97)  # of a rate: at least, and the aim


ABOUT: Final = """\
{date}, turnout {turnout} ({commit}), {cpu}, {cores} cores, Linux {kernel}, Python {python}; {scale} run.
Everything is on one machine, over loopback: load, daemon and proxy share its cores. Absolute figures are this
machine's; ratios are what counts.

Contenders run in turn, round after round, each round in another order. A ratio is the median over the rounds with its
quartiles, *too wide* where those lie more than a quarter of it apart. The daemon, the same for all, and the load
generator are small C programs (`bench/tools`). Every proxy has one thread for the bytes. *On one core*: everything that
takes part is kept on the same core, so that the work itself is measured and not the scheduler's choice; *proxy on its
own core*: each exchange wakes the other core twice.

| contender | version | settings |
|---|---|---|
"""


SWITCHED: Final = """\
1,000 connections a second by a schedule; latency counts from when one was due. *First new*: from the rename, command or
signal to the first connection that the other daemon answered, median and worst; *last old*: how much later one was
still given to the old daemon, median."""


def about(run: Run) -> list[str]:
    """The machine, the versions, the settings; who was left out and why."""
    told = run.about
    rows = [
        f"| {name} | {each['version'] or '-'} | {each['settings']} |"
        for name, each in told["contenders"].items()
        if not each["missing"]
    ]
    missing = [f"{name} ({each['missing']})" for name, each in told["contenders"].items() if each["missing"]]
    left_out = f"Left out: {'; '.join(missing)}." if missing else "Nobody was left out."
    return [ABOUT.format(date=run.date, **told).rstrip(), *rows, "", left_out]


def promises(run: Run) -> list[str]:
    """The relay beside HAProxy: what must be, what should be, what is."""
    if PEER not in run.cases.get(HEADLINES[0].name, {}):
        return [f"{PEER} was left out, and with it this table."]
    lines = compare.head(OURS, PEER)
    for case in HEADLINES:
        figures = run.cases.get(case.name, {})
        if OURS in figures and PEER in figures:
            lines.append(compare.line(case, figures[OURS], figures[PEER]))
    count = max(run.idle, key=int, default="")
    by_name = run.idle.get(count, {})
    if OURS in by_name and PEER in by_name:
        lines += compare.idle_lines(by_name[OURS], by_name[PEER], int(count))
    return lines


def direct_promises(run: Run) -> list[str]:
    """Each plane with no proxy in the path beside a connection with none: what must be, what should be, what is."""
    lines: list[str] = []
    for plane in DIRECT_PLANES:
        pairs = [(case, run.cases.get(case.name, {})) for case in HEADLINES]
        pairs = [(case, figures) for case, figures in pairs if plane in figures and "direct" in figures]
        if pairs:
            lines += compare.head(plane, "direct")
        for case, figures in pairs:
            must, aim = DIRECT_COST if case.less_is_better else DIRECT_YIELD
            lines.append(compare.line(replace(case, must=must, aim=aim), figures[plane], figures["direct"]))
        lines += [""] if pairs else []
    return lines[:-1] or ["None of them was in this run."]


def table(run: Run, cases: Sequence[Case], figures: Sequence[tuple[str, float, str]]) -> list[str]:
    """Medians: a row for each case, a column for each contender; several figures share a cell."""
    names = list(dict.fromkeys(name for case in cases for name in run.cases.get(case.name, {})))
    lines = [f"| | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for case in cases:
        found = run.cases.get(case.name)
        if found:
            cells = [_cell(found.get(name, []), figures) for name in names]
            lines.append(f"| {case.name} | {' | '.join(cells)} |")
    return lines


def failures(run: Run) -> list[str]:
    """Who failed a client, in which case, how often: those rounds were run again."""
    found = [
        f"{name}, {case}: {sum(lost):.0f} in {len(figures)} rounds"
        for case, by_name in run.cases.items()
        for name, figures in by_name.items()
        if (lost := column(figures, "failed"))
    ]
    return (
        [f"Runs in which a client's connection failed, and which were run again: {'; '.join(found)}.", ""]
        if found
        else []
    )


def _cell(found: Sequence[Figures], figures: Sequence[tuple[str, float, str]]) -> str:
    parts = [
        f"{statistics.median(column(found, name)) / scale:{form}}"
        for name, scale, form in figures
        if column(found, name)
    ]
    return " / ".join(parts) or "-"


def _known(run: Run) -> list[str]:
    names = list(dict.fromkeys(name for told in run.known.values() for name in told["figures"]))
    lines = [f"| | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for tool, told in run.known.items():
        cells = [f"{statistics.median(told['figures'][name]):,.4g}" for name in names]
        lines.append(f"| {tool}, {told['unit']} | {' | '.join(cells)} |")
    return lines if run.known else ["None of them is installed."]


def _calls(run: Run) -> list[str]:
    lines: list[str] = []
    for case, found in run.calls.items():
        lines += [f"{case}:", "", *profile.table(found), ""]
    return lines or ["They could not be counted here."]


def idle(run: Run) -> list[str]:
    counts = list(run.idle)
    names = list(dict.fromkeys(name for by_name in run.idle.values() for name in by_name))
    heads = [f"{int(count):,} open: bytes each | % of a core" for count in counts]
    lines = [f"| | {' | '.join(heads)} |", "|---|" + "---|---|" * len(counts)]
    for name in names:
        cells: list[str] = []
        for count in counts:
            found = run.idle[count].get(name, [])
            share = column(found, "cpu_share")
            cells.append(f"{statistics.median(column(found, 'bytes')):,.0f}" if found else "-")
            cells.append(f"{share[0] * 100:.2f}" if share else "-")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def switches(run: Run) -> list[str]:
    lines = [
        "| | switches | connections | failed | first new, ms (worst) | last old, ms | p50 / p99.9 / worst, ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, told in run.switches.items():
        failed = ", ".join(f"{count} {kind}" for kind, count in told["failed"].items()) or "0"
        if told["asked_again"]:
            failed += f" ({told['asked_again']} x asked again)"
        first, last = (statistics.median(told[figure]) for figure in ("first_ms", "last_old_ms"))
        lines.append(
            f"| {name} | {told['switches']} | {told['connections']:,} | {failed} "
            f"| {first:.1f} ({max(told['first_ms']):.1f}) | {last:.1f} "
            f"| {told['p50_ms']:.2f} / {told['p999_ms']:.1f} / {told['worst_ms']:.1f} |"
        )
    return lines


GROWTH: Final = (
    ("p50_us", "one busy connection, p50 µs", 1.0, ".1f"),
    ("cpu_us", "CPU of an exchange, µs", 1.0, ".1f"),
    ("first_ms", "switch, ms", 1.0, ".1f"),
    ("cpu_share", "idle, % of a core", 0.01, ".2f"),
    ("memory", "memory, MB", 1e6, ".1f"),
)


def growth(run: Run) -> list[str]:
    lines: list[str] = []
    for (curve, plane), points in run.growth.items():
        shown = [each for each in GROWTH if all(each[0] in figures for figures in points.values())]
        lines += [
            f"| {plane}: {curve} | {' | '.join(f'{int(count):,}' for count in points)} |",
            "|---|" + "---|" * len(points),
        ]
        for name, label, scale, form in shown:
            lines.append(f"| {label} | {' | '.join(f'{each[name] / scale:{form}}' for each in points.values())} |")
        lines.append("")
    return lines


def micro(run: Run) -> list[str]:
    lines = ["| | median | rounds |", "|---|---|---|"]
    for name, (median_s, count) in run.micro.items():
        lines.append(f"| {name} | {median_s * 1e6:,.3g} µs | {count:,} |")
    return lines


def document(run: Run, plots: Iterable[str]) -> str:
    """All of RESULTS.md."""
    drawn = set(plots)

    def plot(name: str) -> list[str]:
        return [f"![{name}](plots/{name}.svg)", ""] if name in drawn else []

    latency = [("p50_us", 1.0, ",.0f"), ("p99_us", 1.0, ",.0f"), ("p999_us", 1.0, ",.0f")]
    cpu = [("cpu_us", 1.0, ".1f")]
    connects = [("per_s", 1e3, ".2f"), ("cpu_us", 1.0, ".0f")]
    bulk = [("bytes_s", 1e9, ".2f"), ("cpu_us", 1.0, ".0f")]
    sections: list[tuple[str, str, list[str]]] = [
        ("The relay beside HAProxy", "", promises(run)),
        ("The direct planes beside no proxy at all", "", direct_promises(run)),
        (
            "Request and response",
            "Latency in µs: p50 / p99 / p99.9.",
            [*plot("latency"), *table(run, EXCHANGES, latency)],
        ),
        ("CPU time of an exchange", "Of the proxy's processes, user and system, µs.", table(run, EXCHANGES, cpu)),
        (
            "Connections",
            "Connect, one exchange of 64 B, close: thousands a second / CPU time of one, µs.",
            [*plot("connects"), *table(run, [CONNECTS], connects)],
        ),
        (
            "Bulk",
            "GB/s / CPU time of the proxy for a MiB, µs. *up*: from the client; *both*: the sum of both ways.",
            [*plot("bulk"), *table(run, BULK, bulk)],
        ),
        ("Well-known tools", "Medians of three rounds.", _known(run)),
        ("System calls", "For one operation, counted by strace.", _calls(run)),
        ("Idle connections", "Memory of the proxy (PSS); what the kernel has for each socket is not in it.", idle(run)),
        (
            "Switches under load",
            SWITCHED,
            [*plot("switch"), *switches(run)],
        ),
        ("Growth", "", [*plot("growth-connections"), *plot("growth-registry"), *growth(run)]),
        ("Small parts", "", micro(run)),
    ]
    parts: list[str] = ["# Results", "", first_paragraph(run), "", *about(run), "", *failures(run)]
    for title, told, body in sections:
        parts += [f"## {title}", "", *([told, ""] if told else []), *body, ""]
    return "\n".join(parts)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench report", description=__doc__.splitlines()[0])
    parser.add_argument("raw", type=Path, help="what pytest --benchmark-json wrote")
    parser.add_argument("--out", type=Path, default=HERE)
    options = parser.parse_args(argv)
    try:
        run = Run.read(options.raw)
    except (OSError, ValueError) as error:
        raise BenchError(f"{options.raw}: {error}") from error
    (options.out / "plots").mkdir(parents=True, exist_ok=True)
    plots = draw(run)
    for name, svg in plots.items():
        (options.out / "plots" / f"{name}.svg").write_text(svg)
    (options.out / "RESULTS.md").write_text(document(run, plots))
    (options.out / "results.json").write_text(run.compact())
    print(f"{options.out / 'RESULTS.md'}: {len(run.cases)} cases, {len(plots)} plots")
    return 0
