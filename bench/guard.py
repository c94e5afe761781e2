"""The guard: what got slower since the baseline was recorded?

    python -m bench guard [--record] [--baseline FILE] [--planes relay,stream]

Absolute figures move with the machine. So each figure is a ratio to a reference that is measured in the same run, in
turn with the planes: the least a relay in Python can do (bench/tools/reference.py). A figure whose ratio is worse than
the baseline's by more than its threshold is measured again; the guard trips when it is too bad every time.

All takes place on one core where that is what makes a figure quiet: then nothing but the work itself is measured.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from bench import switching
from bench.arena import HERE, Arena, BenchError, Way
from bench.cases import BULK, CONNECTS, EXCHANGES, Case
from bench.contenders import REFERENCE, named, plane_missing, start_turnout
from bench.measure import Figures, column, ratio, rounds

KINDS: Final = ("echo", "sink")
BASELINE: Final = HERE / "baseline.json"
PLANES: Final = ("relay", "stream")
DIRECT: Final = "direct"
ROUNDS: Final = 9
SECONDS: Final = 0.3
SWITCHES: Final = 25
TRIES: Final = 3
TRIAL_LOOPS: Final = 100


@dataclass(frozen=True)
class Guarded:
    """One figure that must not get worse.

    Args:
        case: what is run.
        figure: which of its figures; ``added_us``: its median latency less that of a direct connection.
        threshold: by how much its ratio to the reference may be worse than the baseline's, as a share of that.
        less_is_better: whether a small one is good.
    """

    case: str
    figure: str
    threshold: float
    less_is_better: bool = True

    @property
    def name(self) -> str:
        return f"{self.case}: {self.figure}"

    def worse_by(self, found: float, baseline: float) -> float:
        """How much worse than the baseline, as a share; negative: better."""
        return found / baseline - 1 if self.less_is_better else baseline / found - 1


def _case(name: str, found: Case) -> Case:
    return replace(found, name=name, placement="together")


def _exchange(connections: int) -> Case:
    found = next(case for case in EXCHANGES if case.load == ("pingpong", str(connections), "64"))
    return _case(f"64 B, {connections} connection{'s' if connections > 1 else ''}", found)


ONE: Final = _exchange(1)
FIFTY: Final = _exchange(50)
CONNECT: Final = _case("connects", CONNECTS)
STREAMS: Final = _case("bulk, 16 streams", next(case for case in BULK if case.load == ("bulk", "16")))
SWITCH: Final = "switch"
CASES: Final = (ONE, FIFTY, CONNECT, STREAMS)
SWITCHED: Final = Guarded(SWITCH, "first_ms", 1.00)
# Of one connection the added latency is the quiet figure: within 3 % also on a machine with load 18. Its CPU time is
# not: a poller that stays while traffic is dense goes round the loop each time that it was kept from the core.
GUARDED: Final = (
    Guarded(ONE.name, "cpu_us", 0.50),
    Guarded(ONE.name, "added_us", 0.10),
    Guarded(ONE.name, "p99_us", 1.00),
    Guarded(FIFTY.name, "cpu_us", 0.12),
    Guarded(FIFTY.name, "added_us", 0.20),
    Guarded(FIFTY.name, "p99_us", 0.60),
    Guarded(CONNECT.name, "cpu_us", 0.15),
    Guarded(CONNECT.name, "per_s", 0.20, less_is_better=False),
    Guarded(STREAMS.name, "cpu_us", 0.80),
    Guarded(STREAMS.name, "bytes_s", 0.60, less_is_better=False),
    SWITCHED,
)
Ratios = dict[str, dict[str, float]]  # by plane, by figure


@dataclass(frozen=True)
class Trip:
    """A figure that is too much worse."""

    plane: str
    guarded: Guarded
    found: float
    baseline: float

    def __str__(self) -> str:
        worse = self.guarded.worse_by(self.found, self.baseline)
        return (
            f"{self.plane}: {self.guarded.name} is {worse:.0%} worse than the baseline ({self.found:.2f} x the "
            f"reference, {self.baseline:.2f} then; {self.guarded.threshold:.0%} is allowed)"
        )


def judge(found: Mapping[str, Mapping[str, float]], baseline: Mapping[str, Mapping[str, float]]) -> list[Trip]:
    """What is worse than its threshold allows. A plane or figure that the baseline does not know is not judged."""
    trips: list[Trip] = []
    for plane, ratios in found.items():
        for guarded in GUARDED:
            if guarded.name not in ratios or guarded.name not in baseline.get(plane, {}):
                continue
            now, then = ratios[guarded.name], baseline[plane][guarded.name]
            if guarded.worse_by(now, then) > guarded.threshold:
                trips.append(Trip(plane, guarded, now, then))
    return trips


class Session:
    """One run of the guard: planes and the reference, up and running."""

    def __init__(self, arena: Arena, planes: Sequence[str], count: int, seconds: float, *, slowdown: float = 0) -> None:
        self._arena = arena
        self._planes = planes
        self._count, self._seconds = count, seconds
        self._ways = {name: named(name).start(arena, KINDS) for name in (DIRECT, REFERENCE)}
        self._env: dict[str, dict[str, str]] = {}
        for plane in planes:
            way = start_turnout(arena, plane, KINDS)
            if slowdown:
                self._env[plane] = slower(arena, way, slowdown, count, seconds)
                way = start_turnout(arena, plane, KINDS, env=self._env[plane])
            self._ways[plane] = way

    def ratios(self, cases: Sequence[str]) -> Ratios:
        """Each figure of these cases, as a ratio to the reference."""
        found: Ratios = {plane: {} for plane in self._planes}
        for case in CASES:
            if case.name in cases:
                figures = rounds(self._arena, self._ways, case, self._count, self._seconds)
                for plane in self._planes:
                    for guarded in GUARDED:
                        if guarded.case == case.name:
                            ours, theirs = (values(figures, who, guarded.figure) for who in (plane, REFERENCE))
                            between = ratio(ours, theirs)
                            assert between
                            found[plane][guarded.name] = between.median
        if SWITCH in cases:
            self._switches(found)
        return found

    def _switches(self, found: Ratios) -> None:
        first = {REFERENCE: self._first(switching.start_reference(self._arena))}
        for plane in self._planes:
            switcher = switching.start_registry(self._arena, plane, env=self._env.get(plane))
            first[plane] = self._first(switcher)
            found[plane][SWITCHED.name] = first[plane] / first[REFERENCE]

    def _first(self, switcher: switching.Switcher) -> float:
        """When the first new connection came through, in ms: the quartile, since noise only ever makes it later."""
        told = switching.measure(self._arena, switcher, SWITCHES)
        if told["failed"]:
            raise BenchError(f"{switcher.name}: connections failed during switches: {told['failed']}")
        found: list[float] = told["first_ms"]
        return statistics.quantiles(found, n=4)[0]


def values(figures: Mapping[str, Sequence[Figures]], who: str, figure: str) -> list[float]:
    """One figure of each round."""
    if figure != "added_us":
        return column(figures[who], figure)
    both = zip(column(figures[who], "p50_us"), column(figures[DIRECT], "p50_us"), strict=True)
    return [through - direct for through, direct in both]


def slower(arena: Arena, plain: Way, share: float, count: int, seconds: float) -> dict[str, str]:
    """The environment that makes a router's exchange cost so much more CPU time, as a share; for tests of the guard.

    The price of a turn of the empty loop that does it, and of being wrapped at all, is measured here and now.
    """
    envs = {str(loops): _slowed(loops) for loops in (0, TRIAL_LOOPS)}
    ways = {"plain": plain, **{name: start_turnout(arena, plain.name, KINDS, env=env) for name, env in envs.items()}}
    figures = rounds(arena, ways, ONE, count, seconds)
    prices: list[float] = []
    for name in envs:
        between = ratio(column(figures[name], "cpu_us"), column(figures["plain"], "cpu_us"))
        assert between
        prices.append(between.median - 1)
    for way in ways.values():
        arena.stop(way)
    loops = (share - prices[0]) / max(prices[1] - prices[0], 0.01) * TRIAL_LOOPS
    return _slowed(max(0, round(loops)))


def _slowed(loops: int) -> dict[str, str]:
    return {"PYTHONPATH": str(HERE / "tools" / "slowed"), "BENCH_EXTRA_LOOPS": str(loops)}


def guard(session: Session, baseline: Ratios, cases: Sequence[str]) -> list[Trip]:
    """Measure, and measure again what seems worse; what is worse every time."""
    trips: list[Trip] = []
    for attempt in range(TRIES):
        found = session.ratios(cases)
        before = {(trip.plane, trip.guarded.name) for trip in trips}
        trips = [trip for trip in judge(found, baseline) if not attempt or (trip.plane, trip.guarded.name) in before]
        show(found, baseline)
        if not trips:
            return []
        cases = sorted({trip.guarded.case for trip in trips})
        if attempt + 1 < TRIES:
            print("measured again:", *cases, sep="\n  ", flush=True)
    return trips


def typical(runs: Sequence[Ratios]) -> Ratios:
    """The median of each figure over several measurements."""
    return {
        plane: {name: statistics.median(run[plane][name] for run in runs) for name in ratios}
        for plane, ratios in runs[0].items()
    }


def show(found: Ratios, baseline: Mapping[str, Mapping[str, float]]) -> None:
    for plane, ratios in found.items():
        for guarded in GUARDED:
            if guarded.name in ratios:
                then = baseline.get(plane, {}).get(guarded.name)
                change = f"{guarded.worse_by(ratios[guarded.name], then):+7.1%} worse" if then else "  no baseline"
                print(
                    f"{plane:8} {guarded.name:32} {ratios[guarded.name]:7.3f} x reference  {change}"
                    f"  (at most {guarded.threshold:.0%})",
                    flush=True,
                )


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench guard", description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="make what is measured now the baseline")
    parser.add_argument("--baseline", type=Path, default=BASELINE)
    parser.add_argument("--planes", default=",".join(PLANES))
    parser.add_argument("--case", default="", help="only cases whose name has this in it")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--slowdown", type=float, default=0.0, help="make the planes slower by this share (for tests)")
    options = parser.parse_args(argv)
    began = time.monotonic()
    planes = [plane for plane in options.planes.split(",") if not plane_missing(plane)]
    for plane in options.planes.split(","):
        if plane not in planes:
            print(f"{plane} is left out: {plane_missing(plane)}")
    cases = [name for name in (*(case.name for case in CASES), SWITCH) if options.case in name]
    with Arena() as arena:
        session = Session(arena, planes, options.rounds, options.seconds, slowdown=options.slowdown)
        if options.record:
            found = typical([session.ratios(cases) for _ in range(TRIES)])
            show(found, {})
            write(options.baseline, found)
            return 0
        trips = guard(session, read(options.baseline), cases)
    print(f"{len(planes)} planes, {time.monotonic() - began:.0f} s")
    for trip in trips:
        print(f"SLOWER: {trip}")
    return 1 if trips else 0


def read(path: Path) -> Ratios:
    """The recorded ratios.

    Raises:
        BenchError: there are none.
    """
    try:
        found: Ratios = json.loads(path.read_text())["ratios"]
    except OSError as error:
        raise BenchError(f"no baseline: {error}; record one with --record") from error
    return found


def write(path: Path, found: Ratios) -> None:
    about: dict[str, Any] = {"python": platform.python_version(), "kernel": platform.release()}
    rounded = {plane: {name: round(value, 4) for name, value in ratios.items()} for plane, ratios in found.items()}
    path.write_text(json.dumps({"about": about, "ratios": rounded}, indent=1) + "\n")
