"""A run of the benchmarks: who takes part, in which order, what is made of it, and what is left when it is over."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from bench.contenders import CONTENDERS
from bench.janitor import left
from bench.measure import order, ratio

from support import eventually

ROOT = Path(__file__).parents[2]
needs_gcc = pytest.mark.skipif(not shutil.which("gcc"), reason="gcc is not installed: the load generator is in C")


def commands(directory: str) -> list[str]:
    found: list[str] = []
    for pid in left(directory):
        try:
            found.append(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


@needs_gcc
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_an_interrupted_run_leaves_no_process_and_no_file(tmp_path: Path, number: signal.Signals) -> None:
    argv = [sys.executable, "-m", "bench", "compare", "--peer", "direct", "--rounds", "1000", "--seconds", "0.2"]
    process = subprocess.Popen(
        argv,
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        directory = str(eventually(lambda: next(tmp_path.glob("turnout-bench-*"), None), timeout_s=60))
        for wanted in ("turnout.keeper", "turnout.router", "pingpong"):
            eventually(lambda wanted=wanted: any(wanted in one for one in commands(directory)), timeout_s=60)  # type: ignore[misc]  # a lambda's default
    finally:
        process.send_signal(number)
        process.wait(60)
    eventually(lambda: not commands(directory), timeout_s=60, why="processes of the run are left")
    eventually(lambda: not Path(directory).exists(), timeout_s=60, why="its directory is left")


def test_the_order_of_a_round_changes_so_that_nobody_is_always_first() -> None:
    names = ["a", "b", "c"]
    rounds = [order(names, number) for number in range(6)]
    assert all(sorted(each) == names for each in rounds)
    assert {each[0] for each in rounds} == set(names)
    assert {each[-1] for each in rounds} == set(names)


def test_a_ratio_is_the_median_of_pairs_and_says_when_its_spread_is_too_wide() -> None:
    found = ratio([2.0, 4.0, 6.0, 8.0, 100.0], [1.0, 2.0, 3.0, 4.0, 5.0])
    assert found
    assert (found.median, found.low, found.high) == (2.0, 2.0, 2.0)
    assert not found.wide
    scattered = ratio([1.0, 2.0, 3.0, 4.0, 5.0], [1.0] * 5)
    assert scattered
    assert scattered.wide


def test_contenders_have_names_and_settings_of_their_own() -> None:
    assert len({each.name for each in CONTENDERS}) == len(CONTENDERS)
    assert all(each.settings for each in CONTENDERS)
    assert {"direct", "relay", "stream", "haproxy", "nginx", "socket-proxyd", "socat", "envoy"} <= {
        each.name for each in CONTENDERS
    }


def test_benchmarks_side_by_side_are_refused() -> None:
    argv = [sys.executable, "-m", "pytest", "bench", "-n", "2", "--collect-only", "-q"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "would measure each other" in done.stdout + done.stderr
