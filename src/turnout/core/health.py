"""When to check, and which checks count."""

from __future__ import annotations

from typing import Final

import msgspec

GONE_REPEAT_S: Final = 0.05  # a crash in the window costs clients a moment in the hold, not three whole intervals
LATE_INTERVALS: Final = 2.0


class HealthCheck(msgspec.Struct, frozen=True):
    """One check. ``at``: its end on the monotonic clock; ``gone``: the process ended.

    ``began``: its start. ``lag_s``: how late it began, and by how much it outran its own time-out: the machine's doing,
    not the daemon's.
    """

    ok: bool
    reason: str
    gone: bool = False
    at: float = 0.0
    began: float = 0.0
    lag_s: float = 0.0


def next_check_at(now: float, last: HealthCheck | None, interval_s: float, *, confirming: bool = True) -> float:
    """When the next check is due: never in the past, so that a stall is followed by one check and not by many.

    ``confirming``: further failures would roll back, so an ended process is checked again within a moment.
    """
    if last is None:
        return now
    pause_s = min(GONE_REPEAT_S, interval_s) if last.gone and confirming else interval_s
    return max(now, last.at + pause_s)


def next_window_check_at(now: float, last: HealthCheck, due: float, window_ends: float) -> float:
    """When the next check of an observe window is due: at its end at the latest, where none has begun since."""
    return max(now, min(due, window_ends)) if last.began < window_ends else due


def passes_window(result: HealthCheck, window_ends: float) -> bool:
    """Whether this check ends the window well: it succeeded, and began no earlier than the window's end.

    An older success proves nothing of the end: the router, or the whole machine, may have stood still since.
    """
    return result.ok and result.began >= window_ends


class Unwell(msgspec.Struct, frozen=True):
    """An active daemon that runs and fails its checks: ``failures`` in a row, the first at ``since`` (monotonic)."""

    boot_id: str
    failures: int
    since: float
    reason: str


def unwell_after(
    before: Unwell | None, boot_id: str, result: HealthCheck, interval_s: float, *, previous: HealthCheck | None = None
) -> Unwell | None:
    """How a daemon outside any window stands after one more check; ``previous``: the check before that."""
    if result.ok or result.gone:
        return None
    known = before if before and before.boot_id == boot_id else None
    if not counts(result, interval_s, previous=previous):
        return known
    since = known.since if known else result.at
    return Unwell(boot_id, (known.failures if known else 0) + 1, since, result.reason)


def counts(result: HealthCheck, interval_s: float, *, previous: HealthCheck | None = None) -> bool:
    """Whether a check counts for the daemon: a check that began or ended very late met a machine that had stalled.

    A success always counts; a process that is gone is gone whatever the machine did. A stall excuses one failure: of
    two late failures in a row the second counts, or a daemon on a machine that is always slow would never be judged.
    """
    if result.ok or result.gone or not _is_late(result, interval_s):
        return True
    return previous is not None and not previous.ok and _is_late(previous, interval_s)


def _is_late(result: HealthCheck, interval_s: float) -> bool:
    return result.lag_s > LATE_INTERVALS * interval_s
