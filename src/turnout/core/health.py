"""When to check, and which checks count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

GONE_REPEAT_S: Final = 0.05  # a crash in the window costs clients a moment in the hold, not three whole intervals
LATE_INTERVALS: Final = 2.0


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One check. ``at``: its end on the monotonic clock; ``lag_s``: how late it began; ``gone``: the process ended."""

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


def counts(result: CheckResult, interval_s: float) -> bool:
    """Whether a check says something of the daemon: one that began very late met a machine that had stalled.

    A success always counts; a process that is gone is gone whatever the machine did.
    """
    return result.ok or result.gone or result.lag_s <= LATE_INTERVALS * interval_s
