"""Constants of the program that the processes of one test run with.

A claim about what happens when a time is over holds for a short time as well; only the test is shorter.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

# At its start Python imports a module of this name. Each of our programs gets those of its own packages, so that none
# imports another one's; verbs get all that are neither the keeper's nor the router's.
SITECUSTOMIZE = """
import importlib, sys
words = sys.orig_argv
program = words[words.index("-m") + 1] if "-m" in words[:-1] else ""
others = ("turnout.keeper", "turnout.router")
for name, value in {constants!r}.items():
    module, _, constant = name.rpartition(".")
    whose = next((other for other in others if module.startswith(other + ".")), "turnout")
    if program == whose:
        found = importlib.import_module(module)
        assert isinstance(getattr(found, constant), float), name
        setattr(found, constant, value)
"""


def with_constants(directory: Path, constants: Mapping[str, float]) -> dict[str, str]:
    """Answers what the environment of a verb, and so of the keeper and the routers that it starts, must say besides.

    Args:
        directory: where the ``sitecustomize`` is put; made here.
        constants: their values by their full names.
    """
    directory.mkdir()
    (directory / "sitecustomize.py").write_text(SITECUSTOMIZE.format(constants=dict(constants)))
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(directory), os.environ.get("PYTHONPATH"))))}
