"""Contenders in turn, round after round, and what their figures are to each other."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.arena import Arena, BenchError, Way
from bench.cases import Case, Placement
from bench.janitor import left
from bench.usage import cpu_us, family, memory_bytes

WIDE: Final = 0.25  # a spread of the ratio beyond this share of its median is too wide to lean on
SETTLE_S: Final = 1.0
PEER_TRIES: Final = 3
NOT_PEERS: Final = frozenset({"direct", "relay", "stream", "reuseport", "sk_lookup", "reference"})
Figures = dict[str, float]


@dataclass(frozen=True)
class Ratio:
    """The median of pairwise ratios, and their quartiles."""

    median: float
    low: float
    high: float

    @property
    def wide(self) -> bool:
        return (self.high - self.low) / self.median > WIDE


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio | None:
    """Round by round, so that what disturbed both cancels out; None where there is nothing to compare."""
    found = sorted(a / b for a, b in zip(ours, theirs, strict=True) if b)
    if not found:
        return None
    quarter = len(found) // 4
    return Ratio(statistics.median(found), found[quarter], found[-1 - quarter])


def run_once(arena: Arena, way: Way, case: Case, seconds: float) -> Figures:
    """One run of a case against one contender, with the CPU time that each operation cost its processes."""
    before = cpu_us(way.pids)
    found = arena.apply(way.ports[case.daemon], case.load[0], *case.command(seconds))
    if way.pids and found["count"]:
        found["cpu_us"] = (cpu_us(way.pids) - before) / (found["count"] / case.operation)
    return found


@contextlib.contextmanager
def placed(arena: Arena, ways: Iterable[Way], placement: Placement) -> Iterator[None]:
    """Keep what takes part on its cores while the block runs; the load that is started in it follows."""
    cores = sorted(os.sched_getaffinity(0))
    proxies = {pid for way in ways for pid in family(way.pids)}
    if placement == "anywhere":
        yield
        return
    rest = set(left(str(arena.directory))) - proxies
    wanted = [(rest | {os.getpid()}, {cores[0]}), (proxies, {cores[0] if placement == "together" else cores[-1]})]
    try:
        for pids, where in wanted:
            _keep(pids, where)
        yield
    finally:
        for pids, _ in wanted:
            _keep(pids, set(cores))


def _keep(pids: Iterable[int], cores: set[int]) -> None:
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended
            for task in (Path("/proc") / str(pid) / "task").iterdir():
                os.sched_setaffinity(int(task.name), cores)


def order(names: Sequence[str], number: int) -> list[str]:
    """Who comes when in a round: each round begins with another, and every second one goes backwards."""
    turned = [*names[number % len(names) :], *names[: number % len(names)]]
    return turned[::-1] if number % 2 else turned


def one_round(arena: Arena, ways: Mapping[str, Way], case: Case, seconds: float, number: int) -> dict[str, Figures]:
    """Every contender once, in the order of this round.

    A peer that fails a client is run again, and its figures say how often that was (``failed``); turnout may not.

    Raises:
        BenchError: a client of turnout, or of no proxy at all, failed; or a peer failed three times.
    """
    found: dict[str, Figures] = {}
    for name in order(list(ways), number):
        for failed in range(PEER_TRIES):
            try:
                found[name] = run_once(arena, ways[name], case, seconds)
            except BenchError as error:
                if name in NOT_PEERS or failed + 1 == PEER_TRIES:
                    raise BenchError(f"{case.name}, {name}: {error}") from error
                continue
            found[name] |= {"failed": float(failed)} if failed else {}
            break
    return found


def rounds(arena: Arena, ways: Mapping[str, Way], case: Case, count: int, seconds: float) -> dict[str, list[Figures]]:
    """``count`` rounds; for each contender its figures, oldest first."""
    found: dict[str, list[Figures]] = {name: [] for name in ways}
    with placed(arena, ways.values(), case.placement):
        for number in range(count):
            for name, figures in one_round(arena, ways, case, seconds, number).items():
                found[name].append(figures)
    return found


def column(figures: Sequence[Mapping[str, float]], name: str) -> list[float]:
    return [each[name] for each in figures if name in each]


def idle(arena: Arena, way: Way, connections: int, seconds: float) -> Figures:
    """What idle connections cost a contender that was started just now: memory of one, and CPU time for all.

    Args:
        arena: the run.
        way: carried nothing so far, so that no memory of earlier traffic is used again unseen.
        connections: how many, 1 or more.
        seconds: how long CPU time is looked at.
    """
    with arena.idle(way.ports["echo"], 10):  # what is loaded or made with the first connection is not theirs
        time.sleep(SETTLE_S / 2)
    before = memory_bytes(way.pids)
    with arena.idle(way.ports["echo"], connections):
        time.sleep(SETTLE_S)
        each = (memory_bytes(way.pids) - before) / connections
        cpu, began = cpu_us(way.pids), time.monotonic()
        time.sleep(seconds)
        share = (cpu_us(way.pids) - cpu) / 1e6 / (time.monotonic() - began)
    return {"bytes": each, "cpu_share": share}
