"""The steps of a rollout, as its progress is reported."""

from __future__ import annotations

from enum import StrEnum


class RolloutStep(StrEnum):
    """The steps of a rollout in their order; each is announced before it is done."""

    BEGIN = "begin"
    HOLD = "hold"  # this one and the next two: recreate only
    END = "end"
    STOP = "stop"
    SPAWN = "spawn"
    PROBE = "probe"
    MARK = "mark"
    REPROBE = "re-probe"
    SWITCH = "switch"
    UNLOCK = "unlock"
    RETURN = "return"  # a failed recreate: the previous build is begun again, from spawn on
