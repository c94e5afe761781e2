"""Starts a verb of the command line as a child process. Standard library only: the keeper starts some."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path


def verb_argv(interpreter: str, *words: str) -> list[str]:
    """The command line of a verb and its arguments; ``interpreter``: the Python that runs it, as an absolute path."""
    return [interpreter, "-P", "-m", "turnout", *words]


def start_verb(argv: Sequence[str], home: Path) -> int:
    """Start a verb, and answer its pid; the caller's process reaps it like any other child.

    What it prints goes where this process' own log lines go. It leads a session of its own: Ctrl-C is this process'
    alone, which decides what becomes of the verb.

    Args:
        argv: as :func:`verb_argv` makes it.
        home: the state directory.

    Raises:
        OSError: no process to be had, or the interpreter is gone.
    """
    return os.posix_spawn(
        argv[0],
        list(argv),
        {**os.environ, "TURNOUT_HOME": str(home)},
        setsid=True,
        file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0), (os.POSIX_SPAWN_DUP2, 2, 1)],
        setsigmask=(),
    )
