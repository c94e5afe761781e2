"""Two contenders beside each other, for whoever works on one of them.

python -m bench compare [--ours relay] [--peer haproxy] [--case "64 B"] [--rounds 9] [--seconds 1.0]
"""

from __future__ import annotations

import argparse
import statistics

from bench.arena import KINDS, Arena, BenchError
from bench.cases import CASES, HEADLINES, Case
from bench.contenders import named
from bench.measure import Figures, Ratio, column, idle, ratio, rounds

IDLE_CONNECTIONS = 5000
UNITS = {"p50_us": "µs at the median", "ops_s": "ops/s", "per_s": "/s", "bytes_s": "B/s"}


def verdict(found: float, must: float, aim: float, *, less_is_better: bool) -> str:
    """``aim``, ``must`` or ``missed``."""
    reached = [found <= bound if less_is_better else found >= bound for bound in (aim, must)]
    return "aim" if reached[0] else "must" if reached[1] else "missed"


def shown(found: Ratio) -> str:
    """A ratio with its quartiles, and a word where they lie too far apart."""
    text = f"{found.median:.2f} ({found.low:.2f} to {found.high:.2f})"
    return f"{text}, too wide" if found.wide else text


def line(case: Case, ours: list[Figures], theirs: list[Figures]) -> str:
    """One row of the table, in Markdown."""
    mine, other = column(ours, case.figure), column(theirs, case.figure)
    found = ratio(mine, other)
    assert found
    sign = "≤" if case.less_is_better else "≥"
    bounds = " | | |"
    if case.must is not None and case.aim is not None:
        grade = verdict(found.median, case.must, case.aim, less_is_better=case.less_is_better)
        bounds = f" {sign} {case.must:.2f} | {sign} {case.aim:.2f} | {grade} |"
    cpu = ratio(column(ours, "cpu_us"), column(theirs, "cpu_us")) if column(theirs, "cpu_us") else None
    return (
        f"| {case.name}, {UNITS[case.figure]} | {statistics.median(mine):,.4g} | {statistics.median(other):,.4g} "
        f"| {shown(found)} |{bounds} {f'{cpu.median:.2f}' if cpu else ''} |"
    )


def idle_lines(ours: list[Figures], theirs: list[Figures], count: int = IDLE_CONNECTIONS) -> list[str]:
    """The two rows of idle connections: memory of one, and the CPU share of all."""
    mine, other = statistics.median(column(ours, "bytes")), statistics.median(column(theirs, "bytes"))
    found = ratio(column(ours, "bytes"), column(theirs, "bytes"))
    lines: list[str] = []
    many = f"{count:,} open"
    if found:
        grade = verdict(found.median, 1.0, 0.5, less_is_better=True)
        lines.append(
            f"| memory of an idle connection, {many}, bytes | {mine:,.0f} | {other:,.0f} | {shown(found)} "
            f"| ≤ 1.00 | ≤ 0.50 | {grade} | |"
        )
    busy, their_busy = (statistics.median(column(each, "cpu_share")) * 100 for each in (ours, theirs))
    grade = "must" if busy < 0.5 else "missed"
    lines.append(
        f"| CPU of the idle proxy, {many}, % of a core | {busy:.2f} | {their_busy:.2f} | | < 0.5 | | {grade} | |"
    )
    return lines


def head(ours: str, peer: str) -> list[str]:
    return [
        f"| case | {ours} | {peer} | ratio (quartiles) | must | aim | reached | CPU ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench compare", description=__doc__.splitlines()[0])
    parser.add_argument("--ours", default="relay")
    parser.add_argument("--peer", default="haproxy")
    parser.add_argument("--case", help='every case whose name has this in it; "idle"; by default those with a promise')
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args(argv)
    pair = [named(options.ours), named(options.peer)]
    for contender in pair:
        if contender.missing():
            raise BenchError(f"{contender.name} cannot take part: {contender.missing()}")
    cases = HEADLINES if options.case is None else [case for case in CASES if options.case in case.name]
    print(*head(options.ours, options.peer), sep="\n", flush=True)
    with Arena() as arena:
        ways = {contender.name: contender.start(arena, KINDS) for contender in pair}
        for case in cases:
            found = rounds(arena, ways, case, options.rounds, options.seconds)
            print(line(case, found[options.ours], found[options.peer]), flush=True)
        if options.case in {None, "idle"}:
            found = {contender.name: [] for contender in pair}
            for _ in range(min(3, options.rounds)):
                for contender in pair:
                    way = contender.start(arena, ("echo",))
                    found[contender.name].append(idle(arena, way, IDLE_CONNECTIONS, 5 * options.seconds))
                    arena.stop(way)
            print(*idle_lines(found[options.ours], found[options.peer]), sep="\n")
    return 0
