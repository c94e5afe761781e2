"""Run the real command line, and die by SIGKILL at one step of its rollout: ``die_at_step.py STEP WHEN VERB ...``.

WHEN is "before" (as the step is announced) or "after" (as the next one is). What it prints last is who is active then.
"""

from __future__ import annotations

import os
import signal
import sys

from turnout import cli
from turnout.cli.progress import Reporter
from turnout.core.rollout_step import RolloutStep
from turnout.state.home import Home
from turnout.state.registry.file import RegistryFile


def main() -> None:
    at, when = RolloutStep(sys.argv[1]), sys.argv[2]
    sys.argv[1:] = sys.argv[3:]
    seen: list[RolloutStep] = []

    def told(self: Reporter, step: RolloutStep, text: str) -> None:
        if (step is at and when == "before") or (when == "after" and at in seen and step is not at):
            registry = RegistryFile(Home.find().service("default").registry)
            print("active:", registry.read().snapshot.deployment.active_boot_id, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        seen.append(step)

    Reporter.step = told  # type: ignore[method-assign]  # the seam through which progress is told
    cli.main()


if __name__ == "__main__":
    main()
