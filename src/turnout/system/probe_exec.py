"""Asking a program of the operator's whether a daemon is well: exit code 0 means yes."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from typing import Final

from turnout.system.command import run_bounded
from turnout.system.spawn import clean_environment, fill_port

_SHOWN_CHARS: Final = 120


def run_check(
    command: Sequence[str], told: Mapping[str, str], port: int, cwd: str, deadline: float
) -> tuple[bool, str]:
    """Run ``command`` and tell whether it ended with 0 in time, and why not.

    Args:
        command: the program and its arguments; ``{port}`` is filled in.
        told: added to its environment, which is clean of what an outer turnout or systemd said.
        port: that of the daemon.
        cwd: where it runs; empty: the root.
        deadline: on the monotonic clock.
    """
    argv = fill_port(command, port)
    try:
        ran = run_bounded(argv, env=clean_environment(os.environ, told, port=port), cwd=cwd, deadline=deadline)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        return False, f"cannot run {argv[0]}: {why}"
    if ran.code is None:
        return False, f"{argv[0]} did not end in time{_tail(ran.output)}"
    if ran.code == 0:
        return True, f"{argv[0]} says that it is well"
    how = f"exit code {ran.code}" if ran.code > 0 else signal.Signals(-ran.code).name
    return False, f"{argv[0]}: {how}{_tail(ran.output)}"


def _tail(output: str) -> str:
    last = next((line.strip() for line in reversed(output.split("\n")) if line.strip()), "")
    return f": {last[:_SHOWN_CHARS]}" if last else ""
