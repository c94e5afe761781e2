"""How long a daemon that was started is waited for, and what it has to show; the probe is a fake."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import msgspec
import pytest

from turnout.core.acceptors import Waited
from turnout.core.model import Daemon
from turnout.system.probes import wait
from turnout.system.probes.probe import ProbeResult, ProbeSpec, Proof
from turnout.testing import FakeClock

WELL = ProbeResult(ok=True, reason="well", waited=Waited.YES)
SILENT = ProbeResult(ok=False, reason="it does not listen on port 1")
Answer = Callable[[float, Proof], ProbeResult]


class Checks:
    """A fake probe: what it answers at each time, and what it was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answer: Answer) -> None:
        self.clock = FakeClock()
        self.answer = answer
        self.asked: list[tuple[float, Proof, float]] = []
        monkeypatch.setattr(wait, "probe", self.probe)

    def probe(self, _daemon: Daemon, _spec: ProbeSpec, *, timeout_s: float, proof: Proof) -> ProbeResult:
        self.asked.append((self.clock.now(), proof, timeout_s))
        return self.answer(self.clock.now(), proof)

    def wait(self, timeout_s: float) -> ProbeResult:
        return wait.wait_healthy(
            Daemon("v1", port=1), ProbeSpec(), timeout_s=timeout_s, clock=self.clock.now, sleep=self.clock.sleep
        )

    def connections(self) -> list[float]:
        """When a connection was opened."""
        return [round(at, 2) for at, proof, _ in self.asked if proof is Proof.CONNECTION]


def test_it_is_well_as_soon_as_the_kernel_shows_that_it_accepts_and_no_connection_is_opened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checks = Checks(monkeypatch, lambda now, _: WELL if now >= 0.3 else SILENT)
    assert checks.wait(10.0).ok
    assert checks.clock.now() == pytest.approx(0.3)
    assert checks.connections() == []


def test_an_ended_process_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = Checks(monkeypatch, lambda *_: ProbeResult(ok=False, reason="pid 7 has ended", gone=True))
    assert checks.wait(10.0).reason == "pid 7 has ended"
    assert len(checks.asked) == 1


def test_where_the_kernel_cannot_tell_a_connection_is_opened_at_once_and_then_less_and_less_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unknown = ProbeResult(ok=False, reason="it listens", waited=Waited.UNKNOWN)
    checks = Checks(monkeypatch, lambda *_: unknown)
    checks.wait(8.0)
    assert checks.connections()[0] <= 0.1
    pauses = [later - before for before, later in pairwise(checks.connections())]
    assert pauses[:3] == pytest.approx([0.5, 1.0, 2.0], abs=0.11)


def test_a_daemon_that_is_seen_not_to_accept_has_half_a_second_or_a_quarter_of_its_time_before_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refuses = ProbeResult(ok=False, reason="it listens", waited=Waited.NO)
    for timeout_s, first in ((10.0, 0.5), (0.8, 0.2)):
        checks = Checks(monkeypatch, lambda *_: refuses)
        checks.wait(timeout_s)
        assert checks.connections()[0] == pytest.approx(first, abs=0.06)


def test_the_check_at_the_deadline_opens_a_connection_and_its_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = Checks(monkeypatch, lambda *_: SILENT)
    assert checks.wait(2.0).reason == "not healthy within 2 s: it does not listen on port 1"
    assert checks.connections() == [2.0]
    assert checks.asked[-1][2] == wait.LAST_CHECK_S


@pytest.mark.parametrize(
    "fault", [msgspec.structs.replace(SILENT, found_port=9), msgspec.structs.replace(SILENT, owner_hidden=True)]
)
def test_a_daemon_at_another_port_or_with_hidden_descriptors_is_given_up_after_a_second(
    monkeypatch: pytest.MonkeyPatch, fault: ProbeResult
) -> None:
    checks = Checks(monkeypatch, lambda *_: fault)
    assert checks.wait(30.0) == fault
    assert checks.clock.now() == pytest.approx(wait.ELSEWHERE_AFTER_S, abs=0.1)


def test_the_second_begins_again_where_it_was_not_at_another_port_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = ProbeResult(ok=False, reason="elsewhere", found_port=9)
    checks = Checks(monkeypatch, lambda now, _: SILENT if 0.5 <= now < 0.6 else elsewhere)
    checks.wait(30.0)
    assert checks.clock.now() == pytest.approx(0.6 + wait.ELSEWHERE_AFTER_S, abs=0.15)
