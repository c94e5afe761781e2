"""Plane reuseport as nobody, without any capability: the contract's suite, the group's, and the real command."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import SOAK, report
from unprivileged import Copy

REAL = "deploys_under_load or killed_router or killed_keeper"


@pytest.fixture(scope="module")
def copy() -> Iterator[Copy]:
    place = Path(tempfile.mkdtemp(prefix="turnout-nobody-"))  # pytest's own are closed to others
    yield Copy(place)
    shutil.rmtree(place)


def test_it_is_nobody_who_runs_there_and_without_any_capability(copy: Copy) -> None:
    told = dict(line.split(":\t", 1) for line in copy.status().splitlines() if line)
    assert "0" not in told["Uid"].split()
    assert int(told["CapEff"], 16) == int(told["CapPrm"], 16) == 0


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("path", "chosen", "least"),
    [
        ("tests/planes" if SOAK else "tests/planes/test_contract.py", "reuseport", 60),
        ("tests/reuseport/test_group.py", "not another_users", 9),
        ("tests/e2e/test_reuseport.py", "" if SOAK else f"{REAL} or (alone and activated and v2)", 4),
        ("tests/activation", "", 60),
        ("tests/e2e/test_activation.py", "" if SOAK else "side_by_side or keeper", 2),
    ],
)
def test_the_suite_passes_as_nobody(copy: Copy, path: str, chosen: str, least: int) -> None:
    argv = ["-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={copy.work / 'tmp'}", path, "-k", chosen]
    done = copy.run(*argv, timeout_s=850)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    counted = {kind: int(count) for count, kind in re.findall(r"(\d+) (passed|skipped|failed)", done.stdout)}
    report("as nobody", path=path, **counted)
    assert counted["passed"] >= least
