"""Asking a program of the operator's whether a daemon is well: exit code 0 means yes.

It runs in a session of its own. At the deadline, and when it has ended, its whole process group is killed: a check must
not leave anything behind that the next one would find.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Final

from turnout.system.spawn import clean_environment, fill_port

_OUTPUT_BYTES: Final = 4096  # what is kept of its output; the rest is read and dropped, so that it never blocks
_SHOWN_CHARS: Final = 120
_READ_BYTES: Final = 65536
_LAST_READS: Final = 16


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
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=cwd or "/",
            env=clean_environment(os.environ, told, port=port),
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        return False, f"cannot run {argv[0]}: {why}"
    assert process.stdout
    with process.stdout as output:
        heard = bytearray()
        try:
            ended = _wait(process.pid, output.fileno(), heard, deadline)
        finally:
            # the leader is not waited for yet, so the number is still its group's own
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
    if not ended:
        return False, f"{argv[0]} did not end in time{_tail(heard)}"
    if code == 0:
        return True, f"{argv[0]} says that it is well"
    how = f"exit code {code}" if code > 0 else signal.Signals(-code).name
    return False, f"{argv[0]}: {how}{_tail(heard)}"


def _wait(pid: int, output: int, heard: bytearray, deadline: float) -> bool:
    """Read what it says until it ends (a pidfd becomes readable then, pidfd_open(2)); False at the deadline."""
    os.set_blocking(output, False)
    ended = os.pidfd_open(pid)
    poller = select.poll()
    poller.register(ended, select.POLLIN)
    poller.register(output, select.POLLIN)
    try:
        while True:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return False
            ready = dict(poller.poll(left_s * 1000))
            if output in ready and not _read(output, heard):
                poller.unregister(output)  # closed, or it would be readable for ever
            if ended in ready:
                for _ in range(_LAST_READS):  # a grandchild may go on writing: what it says is not waited for
                    if not _read(output, heard):
                        break
                return True
    finally:
        os.close(ended)


def _read(output: int, heard: bytearray) -> bool:
    try:
        data = os.read(output, _READ_BYTES)
    except BlockingIOError:
        return False
    heard += data
    del heard[:-_OUTPUT_BYTES]
    return bool(data)


def _tail(heard: bytearray) -> str:
    lines = heard.decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f": {last[:_SHOWN_CHARS]}" if last else ""
