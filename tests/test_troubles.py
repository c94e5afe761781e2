from __future__ import annotations

from turnout.planes.plane import Counters
from turnout.troubles import AGAIN_S, LATELY_S, Troubles


def test_a_trouble_is_told_when_it_begins_and_once_a_minute_while_it_lasts() -> None:
    troubles, counters = Troubles(), Counters()
    assert troubles.look(counters, 0.0) == []
    told = 0
    for second in range(1, 121):
        counters.fd_exhausted += 20
        told += len(troubles.look(counters, float(second)))
    assert told == 120 // AGAIN_S
    assert troubles.look(counters, 500.0) == []


def test_each_kind_is_told_by_itself_with_its_count() -> None:
    troubles, counters = Troubles(), Counters(denied=3, ports_exhausted=7)
    lines = troubles.look(counters, 1.0)
    assert len(lines) == 2
    assert any("allow list" in line and "3" in line for line in lines)
    assert any("source port" in line and "7" in line for line in lines)


def test_status_has_what_was_met_lately_and_forgets_it() -> None:
    troubles, counters = Troubles(), Counters(limited=1)
    troubles.look(counters, 1.0)
    assert len(troubles.lately(1.0 + LATELY_S / 2)) == 1
    assert troubles.lately(1.0 + LATELY_S) == []
