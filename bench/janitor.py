"""Ends what a run of the benchmarks started, also when the run itself was killed. Standard library only.

    python -m bench.janitor DIRECTORY      waits for the end of its input, which is the end of the run

Every process of a run has the run's directory as its working directory or in its environment: that is how it is known,
and nothing else is touched.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Final

MARK: Final = "BENCH_DIRECTORY"
HOME_MARK: Final = "BENCH_HOME"  # what came out of one of turnout's homes, daemons too
SWEEP_TIMEOUT_S: Final = 20.0


def belongs(pid: int, directory: str, mark: str = MARK) -> bool:
    """Whether a process is one of this run's; false for one that has ended, or is somebody else's."""
    process = Path("/proc") / str(pid)
    try:
        if process.joinpath("stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return False
        marked = f"{mark}={directory}".encode() in process.joinpath("environ").read_bytes().split(b"\0")
        return marked or str(process.joinpath("cwd").readlink()) == directory
    except OSError:
        return False


def left(directory: str, mark: str = MARK) -> list[int]:
    """Every process of the run, but for this one."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in pids if pid != os.getpid() and belongs(pid, directory, mark)]


def sweep(directory: str, mark: str = MARK) -> bool:
    """Kill what is left until nothing is: a keeper starts its router again until it is gone itself."""
    deadline = time.monotonic() + SWEEP_TIMEOUT_S
    while time.monotonic() < deadline:
        found = left(directory, mark)
        if not found:
            return True
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                pidfd = os.pidfd_open(pid)
                try:
                    if belongs(
                        pid, directory, mark
                    ):  # asked again with the process pinned: the number may have moved on
                        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                finally:
                    os.close(pidfd)
        time.sleep(0.02)
    return False


def main(directory: str) -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a terminal's interrupt reaches the whole group, and this one is needed
    sys.stdin.buffer.read()
    done = sweep(directory)
    shutil.rmtree(directory, ignore_errors=True)
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
