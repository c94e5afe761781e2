"""What is left of a daemon when the process that was started has ended: children of its own that went their own ways.

Standard library only: the keeper imports this. Two things prove that a process belongs to a boot of a daemon. It
descends from this keeper: orphans come to their subreaper (prctl(2)) and to nobody else. And its environment names the
boot: that is inherited, but does not reach the session that somebody opens through a login server, which begins with an
environment of its own. A process without both is never touched. What an earlier keeper started has lost the first.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from turnout.core.model import Identity
from turnout.system.process import ProcessHandle, descendants, identify, is_alive

LABEL: Final = "TURNOUT_BOOT_ID"
_FIRST_LOOK_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 0.5
_UNKILLABLE_AFTER_S: Final = 5.0


def remains_of(boot_id: str) -> list[ProcessHandle]:
    """Every process that is proven to be left of that boot, or of any if it is empty. The handles are the caller's."""
    found: list[ProcessHandle] = []
    for pid in descendants(os.getpid()):
        with contextlib.suppress(OSError):
            handle = ProcessHandle.open(identify(pid))
            try:
                # read after the handle was opened, and believed only if it is that process still
                if _is_labelled(pid, boot_id) and is_alive(handle.identity):
                    found.append(handle)
                    continue
            finally:
                if handle not in found:
                    handle.close()
    return found


def _is_labelled(pid: int, boot_id: str) -> bool:
    words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    name = f"{LABEL}={boot_id}".encode()
    return any(word == name if boot_id else word.startswith(name) for word in words)


class Ending:
    """Ends what is left of one boot: stop signal and CONT, KILL after the grace, until nothing is found any more.

    A process that hangs in the kernel outlives even that; five seconds after KILL it is let be.

    Args:
        boot_id: which.
        number: the stop signal.
        grace_s: seconds until KILL, 0 or more.
        after: runs an action after so many seconds.
        done: called once, when nothing is left, or nothing that could be ended.
    """

    def __init__(
        self,
        boot_id: str,
        number: int,
        grace_s: float,
        after: Callable[[float, Callable[[], None]], None],
        done: Callable[[], None],
    ) -> None:
        self._boot_id = boot_id
        self._number = number
        self._kill_at = time.monotonic() + grace_s
        self._after = after
        self._done = done
        self._told: set[Identity] = set()
        self._pause_s = _FIRST_LOOK_S

    def look(self) -> None:
        """Signal what there is, and look again in a moment."""
        left = remains_of(self._boot_id)
        now = time.monotonic()
        if not left or now > self._kill_at + _UNKILLABLE_AFTER_S:
            for handle in left:
                handle.close()
            self._done()
            return
        kill = now >= self._kill_at
        for handle in left:
            with handle, contextlib.suppress(ProcessLookupError, PermissionError):
                if kill:
                    handle.signal(signal.SIGKILL)
                elif handle.identity not in self._told:
                    self._told.add(handle.identity)
                    handle.signal(self._number)
                    handle.signal(signal.SIGCONT)
        pause_s = min(self._pause_s, _FIRST_LOOK_S if kill else max(0.0, self._kill_at - time.monotonic()))
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        self._after(pause_s, self.look)
