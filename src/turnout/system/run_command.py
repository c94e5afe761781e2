"""Runs a short program of the operator's, with a deadline and a bound on its output.

It runs in a session of its own. At the deadline, and when it has ended, its whole process group is killed: it must not
leave anything behind that the next one would find.
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

import msgspec

_OUTPUT_BYTES: Final = 4096  # what is kept of its output; the rest is read and dropped, so that it never blocks
_READ_BYTES: Final = 65536
_LAST_READS: Final = 16


class Ran(msgspec.Struct, frozen=True):
    """How it ended: its exit code, minus the signal's number, or None at the deadline; and the end of its output."""

    code: int | None
    output: str


def run_bounded(
    argv: Sequence[str], *, env: Mapping[str, str], cwd: str, deadline: float, errors_too: bool = True
) -> Ran:
    """Run ``argv`` to its end or to the deadline.

    Args:
        argv: the program and its arguments.
        env: its whole environment.
        cwd: where it runs; empty: the root.
        deadline: on the monotonic clock.
        errors_too: whether what it writes to stderr is part of its output; else it is dropped.

    Raises:
        OSError: it cannot be started. ValueError: a NUL byte in it.
    """
    _look_first(cwd or "/", argv[0])
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if errors_too else subprocess.DEVNULL,
        cwd=cwd or "/",
        env=env,
        start_new_session=True,
    )
    assert process.stdout
    with process.stdout as output:
        kept = bytearray()
        try:
            ended = _wait(process.pid, output.fileno(), kept, deadline)
        finally:
            # the leader is not waited for yet, so the number is still its group's own
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
    return Ran(code if ended else None, kept.decode(errors="replace"))


def _wait(pid: int, output: int, kept: bytearray, deadline: float) -> bool:
    """Read its output until it ends (a pidfd becomes readable then, pidfd_open(2)); False at the deadline."""
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
            if output in ready and not _read(output, kept):
                poller.unregister(output)  # closed, or it would stay readable
            if ended in ready:
                for _ in range(_LAST_READS):  # a grandchild may go on writing: its output is not waited for
                    if not _read(output, kept):
                        break
                return True
    finally:
        os.close(ended)


def _read(output: int, kept: bytearray) -> bool:
    try:
        data = os.read(output, _READ_BYTES)
    except BlockingIOError:
        return False
    kept += data
    del kept[:-_OUTPUT_BYTES]
    return bool(data)


def _look_first(directory: str, program: str) -> None:
    """Have a hung file system hold this thread here, and not inside :class:`subprocess.Popen`.

    vfork(2) suspends the thread until its child has executed the program, and CPython holds the interpreter's lock
    meanwhile: a chdir(2) that hangs in the child would stop every thread. What is wrong here is left to Popen to say.

    Args:
        directory: where the program is to run.
        program: its name; a name without a slash is looked for on PATH by the child.
    """
    with contextlib.suppress(OSError, ValueError):
        os.stat(directory)  # noqa: PTH116  # bytes and NUL are Popen's to refuse
        if "/" in program:
            os.stat(os.path.join(directory, program))  # noqa: PTH116, PTH118
