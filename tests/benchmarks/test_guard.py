"""The guard trips on what got slower, and on nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from bench.guard import GUARDED, PLANES, SWITCH, Guarded, judge, read, write

ROOT = Path(__file__).parents[2]
TRIES = 4
BASE = {"relay": {guarded.name: 2.0 for guarded in GUARDED}}
needs_gcc = pytest.mark.skipif(not shutil.which("gcc"), reason="gcc is not installed: the load generator is in C")


def worse(guarded: Guarded, share: float) -> dict[str, dict[str, float]]:
    """Everything as in the baseline, but one figure worse by this share."""
    factor = 1 + share if guarded.less_is_better else 1 / (1 + share)
    return {"relay": BASE["relay"] | {guarded.name: 2.0 * factor}}


@pytest.mark.parametrize("guarded", GUARDED, ids=lambda guarded: guarded.name)
def test_a_figure_trips_past_its_threshold_and_not_before(guarded: Guarded) -> None:
    assert not judge(worse(guarded, guarded.threshold * 0.99), BASE)
    (trip,) = judge(worse(guarded, guarded.threshold * 1.01), BASE)
    assert (trip.plane, trip.guarded) == ("relay", guarded)
    assert guarded.name in str(trip)


@pytest.mark.parametrize("guarded", GUARDED, ids=lambda guarded: guarded.name)
def test_what_got_better_never_trips(guarded: Guarded) -> None:
    assert not judge(worse(guarded, -0.5), BASE)


def test_fifteen_percent_more_added_latency_of_an_exchange_trips() -> None:
    (guarded,) = (each for each in GUARDED if (each.case, each.figure) == ("64 B, 1 connection", "added_us"))
    assert judge(worse(guarded, 0.15), BASE)


def test_it_guards_what_it_is_for() -> None:
    figures = {(guarded.case, guarded.figure) for guarded in GUARDED}
    for case in ("64 B, 1 connection", "64 B, 50 connections"):
        assert {(case, "added_us"), (case, "p99_us")} <= figures
    assert {("connects", "per_s"), ("bulk, 16 streams", "bytes_s"), (SWITCH, "first_ms")} <= figures
    assert PLANES == ("relay", "stream")


def test_a_plane_that_the_baseline_does_not_know_is_not_judged() -> None:
    assert not judge({"new": {guarded.name: 9.0 for guarded in GUARDED}}, BASE)


def test_a_baseline_is_read_as_it_was_written(tmp_path: Path) -> None:
    write(tmp_path / "base.json", BASE)
    assert read(tmp_path / "base.json") == BASE


@needs_gcc
@pytest.mark.timeout(600)
def test_a_router_made_fifteen_percent_slower_trips_it_and_an_unchanged_one_does_not(tmp_path: Path) -> None:
    """With real processes. On a machine that is busy with other tests a run may err, so each has a few tries."""
    baseline = tmp_path / "base.json"

    def guard(*more: str) -> tuple[int, str]:
        argv = [sys.executable, "-m", "bench", "guard", "--baseline", str(baseline), "--planes", "relay"]
        case = ["--case", "64 B, 1 connection", "--rounds", "7", "--seconds", "0.1"]
        env = os.environ | {"TMPDIR": str(tmp_path)}
        done = subprocess.run(
            [*argv, *case, *more], cwd=ROOT, env=env, capture_output=True, text=True, timeout=140, check=False
        )
        assert done.returncode in {0, 1}, done.stderr
        return done.returncode, done.stdout + done.stderr

    said: list[str] = []
    for _ in range(TRIES):
        recorded, unchanged, slowed = guard("--record"), guard(), guard("--slowdown", "0.15")
        said += [recorded[1], unchanged[1], slowed[1]]
        if (recorded[0], unchanged[0], slowed[0]) == (0, 0, 1):
            assert "SLOWER: relay: 64 B, 1 connection" in slowed[1]
            return
    pytest.fail("\n".join(said))
