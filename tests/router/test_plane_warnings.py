from __future__ import annotations

from turnout.planes.plane import Counters
from turnout.router.plane_warnings import AGAIN_S, RECENT_S, PlaneWarnings


def test_a_trouble_is_told_when_it_begins_and_once_a_minute_while_it_lasts() -> None:
    warnings, counters = PlaneWarnings(), Counters()
    assert warnings.poll(counters, 0.0) == []
    told = 0
    for second in range(1, 121):
        counters.fd_exhausted += 20
        told += len(warnings.poll(counters, float(second)))
    assert told == 120 // AGAIN_S
    assert warnings.poll(counters, 500.0) == []


def test_each_kind_is_told_by_itself_with_its_count() -> None:
    warnings, counters = PlaneWarnings(), Counters(denied=3, ports_exhausted=7)
    lines = warnings.poll(counters, 1.0)
    assert len(lines) == 2
    assert any("allow list" in line and "3" in line for line in lines)
    assert any("source port" in line and "7" in line for line in lines)


def test_status_has_what_was_met_lately_and_forgets_it() -> None:
    warnings, counters = PlaneWarnings(), Counters(limited=1)
    warnings.poll(counters, 1.0)
    assert len(warnings.recent(1.0 + RECENT_S / 2)) == 1
    assert warnings.recent(1.0 + RECENT_S) == []
