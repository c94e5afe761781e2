"""Progress: one line a step on stderr."""

from __future__ import annotations

import sys
import time

import click

from turnout.core.printable import clean
from turnout.core.step import Step
from turnout.locked_service import Done
from turnout.system.lifecycle_lock import Holder

WORDS = {
    Step.BEGIN: "begin",
    Step.HOLD: "holding",
    Step.END: "ending the connections of",
    Step.STOP: "stopping",
    Step.SPAWN: "starting",
    Step.PROBE: "waiting until healthy:",
    Step.REPROBE: "probing once more:",
    Step.SWITCH: "switching to",
    Step.RETURN: "that failed; back",
}


class Reporter:
    """Tells what a verb is doing: nothing when ``quiet``, also the steps that take no time when ``verbose``."""

    def __init__(self, *, quiet: bool = False, verbose: bool = False) -> None:
        self._quiet = quiet
        self._verbose = verbose
        self._began = time.monotonic()

    def step(self, step: Step, text: str) -> None:
        if step in WORDS:
            self.say(f"{WORDS[step]} {text}".strip())
        elif self._verbose:
            self.say(f"{step.value} {text}".strip())

    def waiting(self, holder: Holder) -> None:
        self.say(f"waiting for {holder.verb} (pid {holder.pid})")

    def warn(self, text: str) -> None:
        print(f"warning: {clean(text)}", file=sys.stderr)

    def say(self, text: str) -> None:
        if not self._quiet:
            print(f"[{time.monotonic() - self._began:5.2f}s] {clean(text)}", file=sys.stderr, flush=True)


def tell(done: Done) -> None:
    """What came of a verb, on stdout."""
    click.echo(clean(done.text))
