"""Runs a program of the operator's that says whether a daemon is well: exit code 0 means yes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Final

from turnout.core.model import Daemon
from turnout.system.command import clean_environment, fill_port
from turnout.system.run_command import run_bounded
from turnout.system.signals import signal_name

_SHOWN_CHARS: Final = 120


def run_check(
    command: Sequence[str], daemon: Daemon, cwd: str, deadline: float, *, environ: Mapping[str, str] | None = None
) -> tuple[bool, str]:
    """Run ``command`` and return whether it ended with 0 in time, and why not.

    Args:
        command: the program and its arguments; ``{port}`` is filled in.
        daemon: the daemon that it checks, which its environment describes.
        cwd: where it runs; empty: the root.
        deadline: on the monotonic clock.
        environ: the environment below that, clean of what an outer turnout or systemd set; None: this process's.
    """
    argv = fill_port(command, daemon.port)
    extra = {"TURNOUT_HOST": daemon.host, "TURNOUT_PID": str(daemon.pid)}
    extra |= {"TURNOUT_BOOT_ID": daemon.boot_id, "TURNOUT_VERSION": daemon.version}
    try:
        env = clean_environment(os.environ if environ is None else environ, extra, port=daemon.port)
        ran = run_bounded(argv, env=env, cwd=cwd, deadline=deadline)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        return False, f"cannot run {argv[0]}: {why}"
    if ran.code is None:
        return False, f"{argv[0]} did not end in time{_tail(ran.output)}"
    if ran.code == 0:
        return True, f"{argv[0]} says that it is well"
    how = f"exit code {ran.code}" if ran.code > 0 else signal_name(-ran.code)
    return False, f"{argv[0]}: {how}{_tail(ran.output)}"


def _tail(output: str) -> str:
    last = next((line.strip() for line in reversed(output.split("\n")) if line.strip()), "")
    return f": {last[:_SHOWN_CHARS]}" if last else ""
