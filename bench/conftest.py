"""One run of the benchmarks: its scale, its arena, and who takes part."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from bench.arena import HERE, KINDS, Arena, Way
from bench.contenders import CONTENDERS, Contender
from bench.scale import FULL, QUICK, Scale
from turnout import __version__


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="small counts: does all of it work?")


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput") or getattr(config.option, "numprocesses", None):
        raise pytest.UsageError("benchmarks side by side would measure each other: leave -n away")


@pytest.fixture(scope="session")
def scale(request: pytest.FixtureRequest) -> Scale:
    return QUICK if request.config.getoption("--quick") else FULL


@pytest.fixture(scope="session")
def arena() -> Iterator[Arena]:
    with Arena() as arena:
        yield arena


@pytest.fixture(scope="session")
def contenders(scale: Scale) -> list[Contender]:
    """Everyone who can take part here; the others are named in the report."""
    return [each for each in CONTENDERS if not each.missing() and each.name in scale.contenders]


@pytest.fixture(scope="session")
def ways(arena: Arena, contenders: list[Contender]) -> Mapping[str, Way]:
    return {each.name: each.start(arena, KINDS) for each in contenders}


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """What the report says of the run: the machine, who took part in which version, and who could not."""
    scale = QUICK if config.getoption("--quick", default=False) else FULL
    asked = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=12"]
    cpu = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    machine_info["bench"] = {
        "turnout": __version__,
        "commit": subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip(),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cores": len(os.sched_getaffinity(0)),
        "cpu": cpu[0] if cpu else platform.machine(),
        "scale": "quick" if scale is QUICK else "full",
        "contenders": {
            each.name: {
                "version": "" if each.missing() else each.version(),
                "settings": each.settings,
                "missing": each.missing() or ("" if each.name in scale.contenders else "not in this run"),
            }
            for each in CONTENDERS
        },
    }


def _lines(path: str) -> list[str]:
    with open(path, encoding="utf-8") as file:  # noqa: PTH123  # of /proc
        return file.read().splitlines()
