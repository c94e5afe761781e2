"""How long rollouts and switches took, and how many there were, as far as one router saw them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from turnout.core.histogram import Histogram
from turnout.core.model import Cause, Deployment, Snapshot, State

# seconds from the write of a switch until new connections go where it says
SWITCH_BOUNDS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
# seconds from a rollout's begin to its switch: the start of a daemon and its first probes
ROLLOUT_BOUNDS_S: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class RolloutTimes:
    """Compares each snapshot of one service with the one before it. What was before the first one is not counted.

    ``switches``: how often another daemon became active, those that went back included; ``rollbacks``: how often it
    went back, warm or cold; ``aborted``: rollouts that ended without a switch.
    """

    __slots__ = ("_began_at", "_block", "aborted", "rollbacks", "rollout_s", "switch_s", "switches")

    def __init__(self) -> None:
        self.switches = 0
        self.rollbacks = 0
        self.aborted = 0
        self.switch_s = Histogram(SWITCH_BOUNDS_S)
        self.rollout_s = Histogram(ROLLOUT_BOUNDS_S)
        self._block: Deployment | None = None
        self._began_at: float | None = None

    def on_snapshot(self, snapshot: Snapshot, now: float, written_ago_s: Callable[[], float | None]) -> None:
        """Take notice of what is in force from this moment on.

        Args:
            snapshot: what the registry says.
            now: monotonic seconds.
            written_ago_s: seconds since the registry was written, None where that is unknown; asked at a switch only.
        """
        before, block = self._block, snapshot.deployment
        self._block = block
        if before is None or block == before:
            return
        same = block.generation == before.generation
        given_back = before.in_flight and same and block.active_boot_id == before.retired_boot_id
        if block.active_boot_id not in {"", before.active_boot_id} and not given_back:
            self._switched(before, block, now, written_ago_s())
        elif before.in_flight and not (block.in_flight and same):
            self.aborted += 1
        if not block.in_flight:
            self._began_at = None
        elif not same:
            self._began_at = now

    def _switched(self, before: Deployment, block: Deployment, now: float, ago_s: float | None) -> None:
        same = block.generation == before.generation
        warm = same and before.state is State.SWITCHED and block.active_boot_id == before.old_boot_id
        self.switches += 1
        if warm or block.cause is Cause.ROLLBACK:
            self.rollbacks += 1
        if ago_s is not None:
            self.switch_s.add(max(0.0, ago_s))
        if self._began_at is not None and same and before.in_flight:
            self.rollout_s.add(now - self._began_at)
