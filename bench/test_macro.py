"""Whole processes: every contender in turn, round after round. What each round found goes into the JSON of the run."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench import growth, known, measure, profile, switching
from bench.arena import Arena, Way
from bench.cases import CASES, Case
from bench.contenders import Contender, named, plane_missing
from bench.known import KNOWN, Known
from bench.measure import Figures
from bench.scale import Scale
from bench.switching import SWITCHINGS, Switching

CALLS_S = 0.3


@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(benchmark: BenchmarkFixture, arena: Arena, ways: Mapping[str, Way], scale: Scale, case: Case) -> None:
    if scale.only_headlines and not case.headline:
        pytest.skip("not in the small run")
    found: dict[str, list[Figures]] = {name: [] for name in ways}
    number = itertools.count()

    def one_round() -> None:
        for name, figures in measure.one_round(arena, ways, case, scale.seconds, next(number)).items():
            found[name].append(figures)

    with measure.placed(arena, ways.values(), case.placement):
        benchmark.pedantic(one_round, rounds=scale.rounds_of(case))  # type: ignore[no-untyped-call]  # it has no stubs
    benchmark.extra_info |= {"kind": "case", "case": case.name, "figures": found}


@pytest.fixture(scope="module")
def known_ways(arena: Arena, contenders: list[Contender], scale: Scale) -> Mapping[str, Way]:
    """The usual contenders, in front of every daemon that the well-known tools need."""
    for each in KNOWN:
        command = each.daemon(arena)
        if command and not each.missing(arena):
            arena.offer(each.kind, command)
    kinds = tuple(each.kind for each in KNOWN if each.kind in arena.commands)
    return {each.name: each.start(arena, kinds) for each in contenders if each.name in scale.known_contenders}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("tool", KNOWN, ids=lambda tool: tool.name)
def test_known(
    benchmark: BenchmarkFixture, arena: Arena, known_ways: Mapping[str, Way], scale: Scale, tool: Known
) -> None:
    if tool.missing(arena):
        pytest.skip(tool.missing(arena))
    found: dict[str, list[float]] = {name: [] for name in known_ways}
    number = itertools.count()

    def one_round() -> None:
        for name in measure.order(list(known_ways), next(number)):
            found[name].append(known.run(arena, tool, known_ways[name]))

    benchmark.pedantic(one_round, rounds=scale.known_rounds)  # type: ignore[no-untyped-call]  # it has no stubs
    benchmark.extra_info |= {
        "kind": "known",
        "name": tool.name,
        "unit": tool.unit,
        "less_is_better": tool.less_is_better,
        "figures": found,
    }


@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", profile.CALLED, ids=lambda case: case.name)
def test_system_calls(benchmark: BenchmarkFixture, arena: Arena, ways: Mapping[str, Way], case: Case) -> None:
    """How many for one operation: what no noise touches."""
    if profile.missing():
        pytest.skip(profile.missing())
    traced = {name: way for name, way in ways.items() if way.pids and not named(name).process_each}

    def count() -> dict[str, dict[str, float]]:
        return {name: profile.calls(arena, way, case, CALLS_S) for name, way in traced.items()}

    found = benchmark.pedantic(count, rounds=1)  # type: ignore[no-untyped-call]  # it has no stubs
    benchmark.extra_info |= {"kind": "calls", "case": case.name, "figures": found}


@pytest.mark.timeout(900)
def test_idle(benchmark: BenchmarkFixture, arena: Arena, contenders: list[Contender], scale: Scale) -> None:
    """Memory of an idle connection, and the CPU time of all of them, each in a proxy that was started for it."""
    found: dict[int, dict[str, list[Figures]]] = {}
    number = itertools.count()

    def one_round() -> None:
        turn = next(number)
        for count in scale.idle:
            names = [each.name for each in contenders if each.name != "direct" and not each.process_each]
            looked_at = turn == 0 and count == scale.idle[-1]
            for name in measure.order(names, turn):
                way = named(name).start(arena, ("echo",))
                figures = measure.idle(arena, way, count, scale.idle_s if looked_at else 0.1)
                if not looked_at:
                    del figures["cpu_share"]
                found.setdefault(count, {}).setdefault(name, []).append(figures)
                arena.stop(way)

    benchmark.pedantic(one_round, rounds=scale.idle_rounds)  # type: ignore[no-untyped-call]  # it has no stubs
    benchmark.extra_info |= {"kind": "idle", "figures": {str(count): each for count, each in found.items()}}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("entry", SWITCHINGS, ids=lambda entry: entry.name)
def test_switch(benchmark: BenchmarkFixture, arena: Arena, scale: Scale, entry: Switching) -> None:
    if entry.missing():
        pytest.skip(entry.missing())
    switcher = entry.start(arena)
    told = benchmark.pedantic(lambda: switching.measure(arena, switcher, scale.switches), rounds=1)  # type: ignore[no-untyped-call]  # it has no stubs
    benchmark.extra_info |= {"kind": "switch", "name": entry.name, "told": entry.told, "figures": told}


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("curve", "plane"),
    [
        ("connections", "relay"),
        ("connections", "stream"),
        ("services", "relay"),  # these are the router's cost, whatever the plane
        ("draining daemons", "relay"),
        ("daemons in the registry", "relay"),
    ],
)
def test_growth(benchmark: BenchmarkFixture, arena: Arena, scale: Scale, curve: str, plane: str) -> None:
    if plane_missing(plane):
        pytest.skip(plane_missing(plane))
    points: dict[int, Figures] = {}

    def grow() -> None:
        if curve == "connections":
            for count in (0, *scale.idle):
                points[count] = growth.connections(arena, plane, count, scale.seconds)
        elif curve == "services":
            for count in scale.services:
                points[count] = growth.services(arena, plane, count, scale.seconds, scale.idle_s)
        elif curve == "draining daemons":
            for count in scale.draining:
                points[count] = growth.draining(arena, plane, count, scale.seconds, scale.idle_s)
        else:
            for count in scale.daemons:
                points[count] = growth.registry(arena, plane, count, scale.idle_s)

    benchmark.pedantic(grow, rounds=1)  # type: ignore[no-untyped-call]  # it has no stubs
    benchmark.extra_info |= {"kind": "growth", "curve": curve, "plane": plane, "points": points}
