"""Progress: one line a step on stderr."""

from __future__ import annotations

import sys
import time

from turnout.core.printable import clean
from turnout.core.rollout_step import RolloutStep
from turnout.state.lifecycle_lock import LockHolder

WORDS = {
    RolloutStep.BEGIN: "begin",
    RolloutStep.HOLD: "holding",
    RolloutStep.END: "ending the connections of",
    RolloutStep.STOP: "stopping",
    RolloutStep.SPAWN: "starting",
    RolloutStep.PROBE: "waiting until healthy:",
    RolloutStep.REPROBE: "probing once more:",
    RolloutStep.SWITCH: "switching to",
    RolloutStep.RETURN: "that failed; back",
}


class Reporter:
    """Tells what a verb is doing: nothing when ``quiet``, also the steps that take no time when ``verbose``."""

    def __init__(self, *, quiet: bool = False, verbose: bool = False) -> None:
        self._quiet = quiet
        self._verbose = verbose
        self._began = time.monotonic()

    def step(self, step: RolloutStep, text: str) -> None:
        if step in WORDS:
            self.say(f"{WORDS[step]} {text}".strip())
        elif self._verbose:
            self.say(f"{step.value} {text}".strip())

    def waiting(self, holder: LockHolder) -> None:
        self.say(f"waiting for {holder.verb} (pid {holder.pid})")

    def warn(self, text: str) -> None:
        print(f"warning: {clean(text)}", file=sys.stderr)

    def say(self, text: str) -> None:
        if not self._quiet:
            print(f"[{time.monotonic() - self._began:5.2f}s] {clean(text)}", file=sys.stderr, flush=True)
