"""Where the default plane is behind a peer: what RESULTS.md begins with."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from bench.cases import CASES, EXCHANGES, Case
from bench.measure import NOT_PEERS, column, ratio
from bench.raw import Run

OURS: Final = "relay"
CLOSE: Final = 0.03  # a difference below this is none
MUCH: Final = 0.10


@dataclass(frozen=True)
class Loss:
    """One comparison that was lost.

    Args:
        worse: how many times as bad; above 1.
        subject: what was compared, with the figure.
        peer: to whom, with the ratio or figures.
    """

    worse: float
    subject: str
    peer: str


def losses(run: Run) -> list[Loss]:
    """All of them, worst first."""
    found = [*_slower_cases(run), *_slower_tools(run), *_more_memory(run), *_later_switches(run)]
    return sorted(found, key=lambda loss: loss.worse, reverse=True)


def first_paragraph(run: Run) -> str:
    """What a reader who has one minute must know, the bad news first."""
    lost = losses(run)
    text = "**Where turnout loses.** "
    if lost:
        much, little = ([loss for loss in lost if (loss.worse > 1 + MUCH) is far] for far in (True, False))
        text += f"Its default plane, the relay, is behind a peer in {len(lost)} comparisons"
        text += f", by more than {MUCH * 100:.0f} % in {len(much)}: {_grouped(much)}" if much else ""
        text += (
            f"; by {CLOSE * 100:.0f} % to {MUCH * 100:.0f} % in {len(little)}: {_grouped(little)}. " if little else ". "
        )
    else:
        text += "In no case was its default plane, the relay, behind a peer by more than 3 %. "
    case = EXCHANGES[0]
    figures = run.cases.get(case.name, {})
    if OURS in figures and "direct" in figures:
        between = ratio(column(figures[OURS], case.figure), column(figures["direct"], case.figure))
        if between:
            text += (
                f"And like every proxy it costs: {case.name} takes {between.median:.1f} x as long as with no proxy in "
                "between."
            )
    return text


def _grouped(lost: list[Loss]) -> str:
    """One part of a sentence for each subject, with all peers that it was lost to."""
    peers: dict[str, list[str]] = {}
    for loss in lost:
        peers.setdefault(loss.subject, []).append(loss.peer)
    return "; ".join(f"{subject} {', '.join(told)}" for subject, told in peers.items())


def _slower_cases(run: Run) -> Iterator[Loss]:
    for case in CASES:
        figures = run.cases.get(case.name, {})
        for peer, theirs in figures.items():
            between = (
                ratio(column(figures.get(OURS, []), case.figure), column(theirs, case.figure))
                if OURS in figures
                else None
            )
            if peer in NOT_PEERS or between is None:
                continue
            worse = between.median if case.less_is_better else 1 / between.median
            if worse > 1 + CLOSE:
                doubt = " (a wide spread)" if between.wide else ""
                yield Loss(worse, f"{case.name}, {_figure(case)}:", f"{between.median:.2f} x {peer}{doubt}")


def _slower_tools(run: Run) -> Iterator[Loss]:
    for tool, told in run.known.items():
        for peer, theirs in told["figures"].items():
            between = ratio(told["figures"][OURS], theirs) if OURS in told["figures"] else None
            if peer in NOT_PEERS or between is None:
                continue
            worse = between.median if told["less_is_better"] else 1 / between.median
            if worse > 1 + CLOSE:
                subject = f"{tool.partition(' (')[0]}, {told['unit']}:"
                yield Loss(worse, subject, f"{between.median:.2f} x {peer}")


def _more_memory(run: Run) -> Iterator[Loss]:
    for count, by_name in run.idle.items():
        for peer, theirs in by_name.items():
            between = ratio(column(by_name[OURS], "bytes"), column(theirs, "bytes")) if OURS in by_name else None
            if peer not in NOT_PEERS and between and between.median > 1 + CLOSE:
                yield Loss(between.median, f"memory of {count} idle connections:", f"{between.median:.2f} x {peer}")


def _later_switches(run: Run) -> Iterator[Loss]:
    mine = run.switches.get(OURS)
    for name, theirs in run.switches.items():
        if mine and name not in NOT_PEERS:
            now, then = (statistics.median(each["first_ms"]) for each in (mine, theirs))
            if now > then * (1 + CLOSE):
                yield Loss(now / then, f"a switch, first new connection after {now:.1f} ms:", f"{name} {then:.1f} ms")


def _figure(case: Case) -> str:
    return {"p50_us": "median latency", "ops_s": "rate", "per_s": "rate", "bytes_s": "rate"}[case.figure]
