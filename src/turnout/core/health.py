"""When to check, and which checks count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

GONE_REPEAT_S: Final = 0.05  # a crash in the window costs clients a moment in the hold, not three whole intervals
LATE_INTERVALS: Final = 2.0


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One check. ``at``: its end on the monotonic clock; ``gone``: the process ended.

    ``lag_s``: how late it began, and by how much it outran its own time-out: the machine's doing, not the daemon's.
    """

    ok: bool
    reason: str
    gone: bool = False
    at: float = 0.0
    lag_s: float = 0.0


def next_check_at(now: float, last: CheckResult | None, interval_s: float) -> float:
    """When the next check is due: never in the past, so that a stall is followed by one check and not by many."""
    if last is None:
        return now
    pause_s = min(GONE_REPEAT_S, interval_s) if last.gone else interval_s
    return max(now, last.at + pause_s)


@dataclass(frozen=True, slots=True)
class Unwell:
    """An active daemon that runs and fails its checks: ``failures`` in a row, the first at ``since`` (monotonic)."""

    boot_id: str
    failures: int
    since: float
    reason: str


def unwell_after(before: Unwell | None, boot_id: str, result: CheckResult, interval_s: float) -> Unwell | None:
    """How a daemon outside any window stands after one more check."""
    if result.ok or result.gone:
        return None
    known = before if before and before.boot_id == boot_id else None
    if not counts(result, interval_s):
        return known
    since = known.since if known else result.at
    return Unwell(boot_id, (known.failures if known else 0) + 1, since, result.reason)


def counts(result: CheckResult, interval_s: float) -> bool:
    """Whether a check says something of the daemon: one that came or ended very late met a machine that had stalled.

    A success always counts; a process that is gone is gone whatever the machine did.
    """
    return result.ok or result.gone or result.lag_s <= LATE_INTERVALS * interval_s
