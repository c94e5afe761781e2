"""What the command line costs before it does anything, beside an interpreter that does nothing at all."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import click": ["-c", "import click"],
    "turnout --help": ["-P", "-m", "turnout", "--help"],
    "turnout status --json": ["-P", "-m", "turnout", "status", "--json"],
}


@pytest.mark.benchmark(group="start of the command line", min_rounds=5)
@pytest.mark.parametrize("name", COMMANDS)
def test_start(benchmark: BenchmarkFixture, name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    home = {"TURNOUT_HOME": str(tmp_path_factory.getbasetemp() / "no-home"), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, *COMMANDS[name]]
    benchmark(lambda: subprocess.run(command, env=home, check=True, stdout=subprocess.DEVNULL))
