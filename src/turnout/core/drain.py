"""What to do with a daemon that takes no new connections any more."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from turnout.core.model import DrainCause


class DrainStep(StrEnum):
    """The next thing to do. ``cut``: end what is left of its connections, then stop it."""

    WAIT = "wait"
    CUT = "cut"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class DrainPolicy:
    """Seconds. ``deadline_s`` None: connections are never cut; ``failed_s``: the most a rolled back daemon gets."""

    grace_s: float
    deadline_s: float | None
    failed_s: float = 10.0


def decide(
    policy: DrainPolicy,
    cause: DrainCause,
    *,
    since: float,
    now: float,
    connections: int | None,
    healthy: bool,
) -> DrainStep:
    """Decide for one daemon that drains since ``since``; ``connections`` None: nobody can count them."""
    if cause is DrainCause.STOPPED:
        return DrainStep.STOP
    if connections == 0:
        return DrainStep.STOP
    if cause is DrainCause.FAILED:
        late = now - since >= policy.failed_s
        return DrainStep.CUT if late or not healthy else DrainStep.WAIT
    if policy.deadline_s is not None and now - since >= policy.deadline_s:
        return DrainStep.CUT
    return DrainStep.WAIT
