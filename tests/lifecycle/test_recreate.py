"""What a recreate says while clients wait, without any daemon."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from process_support import Started, line_of
from turnout.config.settings import Address, Settings
from turnout.control.router_client import RouterClient
from turnout.core.model import Identity
from turnout.errors import NotBegunError
from turnout.lifecycle.bootstrap import Bootstrap
from turnout.lifecycle.progress import Progress
from turnout.lifecycle.recreate import RecreateRun
from turnout.state.home import Home
from turnout.state.service import Service
from turnout.system.probes.probe import ProbeResult
from turnout.system.process import identify
from turnout.system.spawn_record import SpawnRecord, record_end, write_record

SETTINGS = Settings(name="t", listen=(Address("127.0.0.1", 1),), strategy="recreate", hold_timeout_s=100.0)
NOT_YET = ProbeResult(ok=False, reason="nothing listens on port 5")


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def run(tmp_path: Path, said: list[str]) -> RecreateRun:
    home = Home(tmp_path)
    service = Service.open(home.service("t"), SETTINGS)
    bootstrap = Bootstrap(home, SETTINGS)
    return RecreateRun(service, bootstrap, RouterClient(home), Progress(slow=said.append))


def test_a_start_that_outlasts_most_of_the_hold_is_said_once_and_before_it_runs_out(
    run: RecreateRun, said: list[str]
) -> None:
    run._attempted(NOT_YET)
    assert said == [], "nobody is held"
    run._held_at = time.monotonic() - 50
    run._attempted(NOT_YET)
    assert said == []
    run._held_at = time.monotonic() - 80
    run._attempted(ProbeResult(ok=True, reason="well"))
    assert said == []
    run._attempted(NOT_YET)
    run._attempted(NOT_YET)
    (line,) = said
    assert "held for 80 s" in line
    assert "reset after 100 s" in line
    assert NOT_YET.reason in line


def test_a_slow_stop_names_the_signal_the_kill_to_come_and_what_is_left_of_the_hold(run: RecreateRun) -> None:
    assert run._slow_stop("b1", 12.0) == "b1 has not stopped 12 s after TERM, KILL comes in 18 s"
    run._held_at = time.monotonic() - 40
    assert run._slow_stop("b1", 12.0).endswith("; clients are held for 60 s more")


def test_nothing_is_started_while_what_a_dead_daemon_left_behind_lives(run: RecreateRun) -> None:
    home = run._service.home
    home.create()
    with Started() as started:
        shim = started.run("sh", "-c", "sleep 600 & echo $!; wait")  # as far as a record says
        left = int(line_of(shim))
        dead = Identity(2**22 - 1, 1)
        write_record(home.record("b1"), SpawnRecord("b1", "t", dead, "", 0.0, shim=identify(shim.pid)))
        record_end(home.record("b1"), 0)
        with pytest.raises(NotBegunError, match=f"pid {left}"):
            run._must_be_gone("b1")
    run._must_be_gone("b1")
