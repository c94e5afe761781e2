"""When a check is due, and which checks count."""

from __future__ import annotations

from turnout.core.health import (
    GONE_REPEAT_S,
    HealthCheck,
    counts,
    next_check_at,
    next_window_check_at,
    passes_window,
    unwell_after,
)

FAILED = HealthCheck(ok=False, reason="no answer", at=10.0, began=9.0)
PASSED = HealthCheck(ok=True, reason="", at=10.0, began=9.0)
LATE = HealthCheck(ok=False, reason="no answer", at=10.0, began=9.0, lag_s=2.1)


def test_the_first_check_is_due_at_once_and_the_next_one_an_interval_after_the_last_ended() -> None:
    assert next_check_at(7.0, None, 1.0) == 7.0
    assert next_check_at(10.2, FAILED, 1.0) == 11.0


def test_a_stall_is_followed_by_one_check_and_not_by_all_that_were_missed() -> None:
    assert next_check_at(500.0, PASSED, 1.0) == 500.0


def test_an_ended_process_is_checked_again_within_a_moment_only_where_that_can_roll_back() -> None:
    gone = HealthCheck(ok=False, reason="it has ended", gone=True, at=10.0)
    assert next_check_at(10.0, gone, 1.0) == 10.0 + GONE_REPEAT_S
    assert next_check_at(10.0, gone, 1.0, confirming=False) == 11.0
    assert next_check_at(10.0, gone, 0.01) == 10.01, "never later than the interval"


def test_a_window_is_ended_by_a_check_that_began_at_its_end_or_later() -> None:
    assert not passes_window(PASSED, 9.5)
    assert passes_window(PASSED, 9.0)
    assert not passes_window(FAILED, 9.0)


def test_a_check_is_due_at_the_end_of_the_window_unless_one_began_since() -> None:
    assert next_window_check_at(10.0, PASSED, 12.0, 11.0) == 11.0
    assert next_window_check_at(10.0, PASSED, 12.0, 8.0) == 12.0
    assert next_window_check_at(11.5, PASSED, 12.0, 11.0) == 11.5


def test_of_two_late_failures_in_a_row_the_second_counts() -> None:
    assert counts(FAILED, 1.0)
    assert not counts(LATE, 1.0)
    assert not counts(LATE, 1.0, previous=PASSED)
    assert not counts(LATE, 1.0, previous=FAILED), "the one before was in time: one stall is excused"
    assert counts(LATE, 1.0, previous=LATE)


def test_a_success_and_an_ended_process_count_however_late() -> None:
    assert counts(HealthCheck(ok=True, reason="", lag_s=100.0), 1.0)
    assert counts(HealthCheck(ok=False, reason="it has ended", gone=True, lag_s=100.0), 1.0)


def test_failures_of_one_daemon_add_up_since_the_first_and_a_success_ends_them() -> None:
    first = unwell_after(None, "v1", FAILED, 1.0)
    assert first
    assert (first.failures, first.since, first.reason) == (1, 10.0, "no answer")
    second = unwell_after(first, "v1", HealthCheck(ok=False, reason="reset", at=11.0), 1.0)
    assert second
    assert (second.failures, second.since, second.reason) == (2, 10.0, "reset")
    assert unwell_after(second, "v1", PASSED, 1.0) is None


def test_failures_of_the_daemon_before_are_not_those_of_this_one_and_a_late_one_adds_nothing() -> None:
    first = unwell_after(None, "v1", FAILED, 1.0)
    other = unwell_after(first, "v2", FAILED, 1.0)
    assert other
    assert (other.boot_id, other.failures) == ("v2", 1)
    assert unwell_after(first, "v1", LATE, 1.0) is first
