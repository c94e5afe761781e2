"""Ends a keeper that answers no request, once it is proven to be the keeper, so that another may take its place.

It is as bad as a dead one, but for the lock that it holds. A new keeper adopts daemons and router by their records, and
gets the listeners from the router, as after a crash.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Final

from turnout.core.model import Identity
from turnout.errors import NotRunningError, TimedOutError, TurnoutError
from turnout.state.home import Home
from turnout.state.keeper_lock import keeper_pid, keeper_runs, read_keeper
from turnout.system import control_channel
from turnout.system.files import name_of
from turnout.system.flock import holder_pid
from turnout.system.process import ProcessHandle

SILENT_AFTER_S: Final = 5.0
_ONCE_MORE_S: Final = 1.0
_ENDS_WITHIN_S: Final = 5.0
_POLL_S: Final = 0.05


def end_silent_keeper(home: Home, *, silent_after_s: float = SILENT_AFTER_S) -> int:
    """Kill the keeper of this home if it has answered nothing for ``silent_after_s`` seconds.

    That it is the keeper is proven by the kernel (who holds the lock, proc_locks(5)) and by what it wrote into the lock
    about itself (pid and start time, which no other process has in common). Without both nothing is touched.

    Returns:
        The pid of the keeper that was killed; 0: there is none, or it answers.

    Raises:
        TimedOutError: it is silent, and cannot be proven to be the keeper, or does not end.
    """
    deadline = time.monotonic() + silent_after_s
    keeper = _proven(home)
    while not _answers(home, deadline - time.monotonic()):
        # one that refuses connections is silent too: one that hangs has a full queue some day
        if not keeper_runs(home) or (keeper and _proven(home) != keeper):
            return 0  # there is none (any more), or another one by now
        if time.monotonic() >= deadline:
            if name_of(home.keeper_sock) is None and not os.access(home.root, os.W_OK):
                raise TimedOutError(
                    f"the socket of the keeper (pid {keeper_pid(home)}) was removed, and {home.root} cannot be written",
                    hint=f"make it writable: the keeper makes its socket again; see {home.keeper_log}",
                )
            if keeper is None:
                raise _cannot(home, "and cannot be proven to be one")
            return _end(home, keeper)
        time.sleep(_POLL_S)
    return 0


def _end(home: Home, keeper: Identity) -> int:
    try:
        handle = ProcessHandle.open(keeper)
    except ProcessLookupError as error:
        if not keeper_runs(home):
            return 0
        raise _cannot(home, "and is not the process that it says it is") from error
    with handle:
        # asked once more: it may be this process that was stopped meanwhile, with the answer unread
        if _answers(home, _ONCE_MORE_S) or _proven(home) != keeper:
            return 0
        handle.signal(signal.SIGKILL)
        if not handle.wait(_ENDS_WITHIN_S):
            raise _cannot(home, "and does not end at SIGKILL")
    return keeper.pid


def _answers(home: Home, within_s: float) -> bool:
    """Whether it says anything at all, be it that it is going down."""
    within_s = max(_POLL_S, within_s)
    try:
        channel = control_channel.connect(home.keeper_sock, timeout_s=within_s)
    except NotRunningError:
        return False
    try:
        channel.request({"op": "hello", "id": 1}, timeout_s=within_s)
    except (TimedOutError, OSError):
        return False
    except TurnoutError:  # it closed the door, which is a sign of life
        return True
    finally:
        channel.close()
    return True


def _proven(home: Home) -> Identity | None:
    keeper = read_keeper(home.keeper_lock)
    return keeper if keeper and keeper.pid == holder_pid(home.keeper_lock) else None


def _cannot(home: Home, why: str) -> TimedOutError:
    pid = keeper_pid(home)
    return TimedOutError(
        f"the keeper (pid {pid}) answers no request, {why}", hint=f"look at it, then: kill -KILL {pid}"
    )
