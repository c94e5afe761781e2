"""Why a candidate did not become healthy, by the record of its end, without any process."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from turnout.config.settings import Address, Settings
from turnout.core.model import Daemon, Identity
from turnout.lifecycle.failure_report import candidate_error
from turnout.state.home import Home
from turnout.state.service import Service
from turnout.system.probes.probe import ProbeResult
from turnout.system.spawn_record import SpawnRecord, record_end, write_record

SETTINGS = Settings(name="t", listen=(Address("127.0.0.1", 1),))
GONE = ProbeResult(ok=False, reason="pid 5 has ended", gone=True)


@pytest.mark.parametrize(
    ("status", "ending"),
    [
        (0, "exit code 0"),
        (3 << 8, "exit code 3"),
        (signal.SIGKILL, "signal SIGKILL"),
        (signal.SIGRTMIN + 3, "signal SIGRTMIN+3"),  # signal(7): only the first and the last of them have a name
    ],
)
def test_the_error_of_a_candidate_that_ended_says_how(tmp_path: Path, status: int, ending: str) -> None:
    service = Service.open(Home(tmp_path).service("t"), SETTINGS)
    service.home.create()
    identity = Identity(5, 1)
    write_record(service.home.record("b1"), SpawnRecord("b1", "t", identity, "", 0.0))
    record_end(service.home.record("b1"), status)
    error = candidate_error(service, Daemon("b1", identity=identity, owned=True), GONE)
    assert error.message == f"the candidate did not become healthy: pid 5 has ended ({ending})"
