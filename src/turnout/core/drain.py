"""What to do with a daemon that takes no new connections any more, and with each connection that it still has.

First it is left alone for the grace. Then connections are cut at quiet moments, a few at a time, so that their clients
do not all come back in the same instant. At the deadline whatever is left is cut.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

import msgspec

from turnout.core.model import DrainCause

SPREAD_MOST_S: Final = 60.0
_NO_REASONS: Final[Mapping[int, str]] = MappingProxyType({})


class DrainPolicy(msgspec.Struct, frozen=True):
    """Seconds.

    Args:
        grace_s: nothing is cut before that.
        deadline_s: everything is cut then; None: nothing ever is.
        quiet_s: a connection without a byte for so long is quiet.
        failed_s: the most that a rolled back daemon gets.
        retired_s: the most that a retired daemon gets, whose successor cannot start before: new clients wait.
    """

    grace_s: float
    deadline_s: float | None
    quiet_s: float = 1.0
    failed_s: float = 10.0
    retired_s: float = 5.0

    @property
    def spread_s(self) -> float:
        """How long the cutting of quiet connections is spread over."""
        return 0.0 if self.deadline_s is None else max(0.0, min(SPREAD_MOST_S, (self.deadline_s - self.grace_s) / 2))


class Remaining(msgspec.Struct, frozen=True):
    """One connection that an old daemon still has.

    Args:
        id: the plane's number for it.
        idle_s: seconds since its last byte, either way.
        answered: the last byte went to the client, so it does not wait for an answer, as far as can be seen.
        half_sent: bytes of it are under way in between.
    """

    id: int
    idle_s: float
    answered: bool
    half_sent: bool


class Decision(msgspec.Struct, frozen=True):
    """What to do now.

    Args:
        stop: whether the daemon is to be stopped.
        cut: the connections to cut before that; None: all that are left.
        why: why each of the others was not cut yet.
    """

    stop: bool
    cut: tuple[int, ...] | None = ()
    why: Mapping[int, str] = msgspec.field(default_factory=lambda: _NO_REASONS)


def decide(
    policy: DrainPolicy,
    cause: DrainCause,
    *,
    since: float,
    now: float,
    remaining: Sequence[Remaining] | None,
    most: int,
    healthy: bool,
) -> Decision:
    """Decide for one daemon that drains since ``since``.

    Args:
        policy: the configured times.
        cause: why it drains.
        since: when it began to, on the clock of ``now``.
        now: monotonic seconds.
        remaining: its connections; None: they cannot be counted.
        most: how many it had when it began to drain, or later.
        healthy: whether it passed a probe when it began to.
    """
    if cause is DrainCause.STOPPED or (remaining is not None and not remaining):
        return Decision(stop=True)
    age_s = now - since
    here = remaining or ()
    if cause is DrainCause.FAILED:
        if age_s >= policy.failed_s or not healthy:
            return Decision(stop=True, cut=None)
        return _wait(here, f"its daemon was rolled back and ends in {policy.failed_s - age_s:.0f} s")
    if cause is DrainCause.RETIRED:
        if age_s >= policy.retired_s:
            return Decision(stop=True, cut=None)
        return _quiet_ones(policy, here, age_s, most, hastened=True)
    if policy.deadline_s is not None and age_s >= policy.deadline_s:
        return Decision(stop=True, cut=None)
    hastened = cause is DrainCause.HASTENED
    if policy.deadline_s is None and not hastened:
        return _wait(here, "drain.deadline is none: it is never cut")
    if age_s < policy.grace_s and not hastened:
        return _wait(here, f"grace for {policy.grace_s - age_s:.0f} s more")
    return _quiet_ones(policy, here, age_s - policy.grace_s, most, hastened=hastened)


def _quiet_ones(
    policy: DrainPolicy, remaining: Sequence[Remaining], after_grace_s: float, most: int, *, hastened: bool
) -> Decision:
    """Cut those that are quiet, longest idle first, no faster than their share of the time."""
    why: dict[int, str] = {}
    quiet: list[Remaining] = []
    for connection in remaining:
        if connection.half_sent:
            why[connection.id] = "bytes of it are under way"
        elif not connection.answered:
            why[connection.id] = "its client may be waiting for an answer"
        elif connection.idle_s < policy.quiet_s:
            why[connection.id] = f"busy {connection.idle_s:.1f} s ago"
        else:
            quiet.append(connection)
    spread_s = policy.spread_s
    share = 1.0 if hastened or spread_s <= 0 else min(1.0, after_grace_s / spread_s)
    gone = most - len(remaining)
    allowed = max(0, math.ceil(most * share) - gone)
    quiet.sort(key=lambda connection: connection.idle_s, reverse=True)
    why |= {connection.id: "quiet; its turn comes, not all are cut at once" for connection in quiet[allowed:]}
    return Decision(stop=False, cut=tuple(connection.id for connection in quiet[:allowed]), why=why)


def _wait(remaining: Sequence[Remaining], reason: str) -> Decision:
    return Decision(stop=False, why={connection.id: reason for connection in remaining})
