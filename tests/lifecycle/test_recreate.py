"""What a recreate says while clients wait, without any daemon."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from process_support import Started, line_of
from turnout.config.settings import Address, Settings
from turnout.control.router_client import RouterClient
from turnout.core.model import Daemon, Identity
from turnout.errors import NotBegunError, NotRunningError, TimedOutError
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


@dataclass
class FakeRouter(RouterClient):
    """A router that says of each look in turn which boots it has drained; an error is raised."""

    looks: list[list[str] | Exception]
    asked: int = 0

    def status(self, *, timeout_s: float = 5.0) -> dict[str, Any]:
        self.asked += 1
        found = self.looks.pop(0)
        if isinstance(found, Exception):
            raise found
        return {"services": {"t": {"drained": found, "census": {"b1": {"connections": 0}}}}}


@pytest.mark.parametrize(
    "at_first",
    [
        pytest.param([[]], id="connections are on their way to it, which the count of the open ones lacks"),
        pytest.param([NotRunningError("none answers")], id="the router is replaced; on a direct plane clients stay"),
        pytest.param([TimedOutError("no answer")], id="the router hangs"),
    ],
)
def test_the_old_daemon_is_stopped_once_the_router_has_drained_it(
    run: RecreateRun, at_first: list[list[str] | Exception]
) -> None:
    run._router = router = FakeRouter([*at_first, ["b1"]])
    run._end_connections(Daemon("b1", identity=Identity(os.getpid())))
    assert router.asked == 2


def test_nothing_is_waited_for_where_the_old_daemon_is_dead(run: RecreateRun) -> None:
    run._router = router = FakeRouter([])
    run._end_connections(Daemon("b1", identity=Identity(2**22 - 1)))
    assert router.asked == 0
