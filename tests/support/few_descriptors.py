"""Start a daemon behind a shim with few descriptors left, from none upwards; a line of JSON says what came of each."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

from turnout.errors import TurnoutError
from turnout.system import spawn as module
from turnout.system.process import ProcessHandle, descendants
from turnout.system.shim import Shim, set_subreaper
from turnout.system.spawn import SpawnRequest, spawn_behind_shim, wait_through

MOST_OPEN = 40


def main(directory: Path, fewest: int, most: int) -> None:
    set_subreaper()
    resource.setrlimit(resource.RLIMIT_NOFILE, (MOST_OPEN, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    for left in range(fewest, most):
        filling = fill(left)
        kind, error = attempt(directory, left)
        leaked = left - free()
        for fd in filling:
            os.close(fd)
        records = [path.name for path in directory.glob("*.json")]
        said = {"kind": kind, "error": error, "leaked": leaked, "processes": end_all(), "records": records}
        print(json.dumps(said), flush=True)


def attempt(directory: Path, left: int) -> tuple[str, str]:
    """Start one and end it; the class and the message of the error where it could not be started."""
    record = directory / f"b{left}.json"
    try:
        request = SpawnRequest(
            boot_id=f"b{left}",
            service="svc",
            argv=("sleep", "600"),
            cwd="/",
            env={"PATH": os.environ["PATH"]},
            log_path=directory / "log",
            record_path=record,
        )
        handle, shim = wait_through(spawn_behind_shim(request))
        assert shim
    except TurnoutError as error:
        return type(error).__name__, error.message
    handle.signal(signal.SIGKILL)
    handle.close()
    shim.close()
    record.unlink()
    return "", ""


def fill(left: int) -> list[int]:
    taken: list[int] = []
    with contextlib.suppress(OSError):
        while True:
            taken.append(os.dup(0))
    for _ in range(left):
        os.close(taken.pop())
    return taken


def free() -> int:
    taken: list[int] = []
    with contextlib.suppress(OSError):
        while True:
            taken.append(os.dup(0))
    for fd in taken:
        os.close(fd)
    return len(taken)


def end_all() -> int:
    """How many processes are left that have not ended by themselves after a moment."""
    deadline = time.monotonic() + 2.0
    while True:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        below = descendants(os.getpid())
        if not below or time.monotonic() > deadline:
            break
        time.sleep(0.01)
    for pid in below:
        os.kill(pid, signal.SIGKILL)
    return len(below)


def say_nothing(_: Shim) -> ProcessHandle:
    """In the place of what opens the daemon: the shim is stopped, or there is no descriptor. The daemon waits then."""
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def fail_fork(number: int) -> None:
    """Have the fork with this number, counted in this process and in what it forks, fail as at the limit (fork(2))."""
    fork, forks = os.fork, itertools.count()

    def limited() -> int:
        if next(forks) == number:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return fork()

    os.fork = limited  # shim and spawn call it by this name


def fail_fsync(fd: Any) -> None:
    """In the place of fsync(2): the disk reports an error."""
    raise OSError(errno.EIO, os.strerror(errno.EIO), str(fd))


if __name__ == "__main__":
    match sys.argv[4:]:
        case ["silent"]:
            vars(module).update(_daemon_behind=say_nothing, EXEC_TIMEOUT_S=600.0)
        case ["fork", number]:
            fail_fork(int(number))
        case ["disk"]:
            os.fsync = fail_fsync
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
