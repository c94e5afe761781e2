"""What a verb reports while it runs: one function for each kind of report."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from turnout.core.rollout_step import RolloutStep
from turnout.state.lifecycle_lock import LockHolder
from turnout.system.probes.probe import ProbeResult


def _ignore(*_: object) -> None:
    pass


class Progress(msgspec.Struct, frozen=True):
    """The functions are called from the verb's own thread, and must not raise."""

    step: Callable[[RolloutStep, str], None] = _ignore  # a step of a rollout begins; the text names its object
    wait: Callable[[LockHolder], None] = _ignore  # another verb has the lock; once
    slow: Callable[[str], None] = _ignore  # a sentence on a delay that clients may notice
    note: Callable[[str], None] = _ignore  # a sentence on the differences from the last start
    warning: Callable[[str], None] = _ignore  # a sentence that an operator must know of a start
    attempt: Callable[[ProbeResult], None] = _ignore  # a check of a candidate, until the candidate is ready
