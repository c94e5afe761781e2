"""Ends the processes of one boot that outlive its daemon. Standard library only."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from turnout.core.model import Identity
from turnout.system.boot_processes import Boot, BootProcesses, fed_by_others, processes_of
from turnout.system.process import ProcessHandle

_FIRST_LOOK_S: Final = 0.02
_LONGEST_PAUSE_S: Final = 0.5
_UNKILLABLE_AFTER_S: Final = 5.0
_SHIM_ENDS_WITHIN_S: Final = 1.0


@dataclass(slots=True)
class OrphanReaper:
    """Ends the processes of one boot: stop signal and CONT once to each, KILL after the grace, until none is found.

    A filter at the end of a pipe gets its signal when nothing writes to it any more: a daemon that says something as it
    stops would die of the broken pipe. A process that hangs in the kernel outlives even KILL: five seconds after the
    first one it is let be. While no descriptor is left to look with, nothing counts as ended.

    Args:
        boot: whose.
        kill_at: when KILL is due, monotonic seconds.
        done: called once, with what could not be ended: pids, most often none.
        signalled: processes that have received the signal already.
    """

    boot: Boot
    number: int
    kill_at: float
    after: Callable[[float, Callable[[], None]], None]
    done: Callable[[list[int]], None]
    signalled: set[Identity] = field(default_factory=set[Identity])
    _pause_s: float = _FIRST_LOOK_S
    _looks: int = 0
    _over: bool = False
    _killed_at: float = math.inf  # when KILL was first sent, monotonic seconds
    _empty_since: float | None = None

    def hasten(self, kill_at: float) -> None:
        """Have KILL come at that time, where it would come later."""
        if kill_at < self.kill_at:
            self.kill_at = kill_at
            self.look()

    def look(self) -> None:
        """Signal what there is, and look again in a moment. May be called at any time, for an early look."""
        if self._over:
            return
        self._looks += 1
        now = time.monotonic()
        try:
            found = processes_of(self.boot)
            over = self._is_over(found, now)
        except OSError:
            self._look_in(_LONGEST_PAUSE_S)
            return
        if over:
            self._over = True
            left = [handle.identity.pid for handle in found.handles]
            found.close()
            self.done(left)
            return
        kill = now >= self.kill_at
        if kill:
            self._killed_at = min(self._killed_at, now)
        self._signal(found.handles, kill=kill)
        self._look_in(min(self._pause_s, _FIRST_LOOK_S if kill else self.kill_at - now))
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)

    def _look_in(self, pause_s: float) -> None:
        self.after(pause_s, partial(self._look_again, self._looks))

    def _look_again(self, look: int) -> None:
        if look == self._looks:  # else there was an early one meanwhile
            self.look()

    def _is_over(self, found: BootProcesses, now: float) -> bool:
        """Nothing is left, or nothing but what is spared, or what cannot be killed."""
        if found.handles:
            self._empty_since = None
            return now > self._killed_at + _UNKILLABLE_AFTER_S
        if not self.boot.has_shim:
            return True
        if self._empty_since is None:
            self._empty_since = now
        if not found.spared and now - self._empty_since < _SHIM_ENDS_WITHIN_S:
            self._signal_shim(signal.SIGCONT)  # it ends by itself, unless it was stopped (SIGSTOP)
            return False
        self._signal_shim(signal.SIGKILL)  # what is spared has no further use for it
        return True

    def _signal(self, handles: list[ProcessHandle], *, kill: bool) -> None:
        fed = set[int]() if kill else fed_by_others([handle.identity.pid for handle in handles])
        if len(fed) == len(handles):  # each of them feeds another: one has to begin
            fed.clear()
        for handle in handles:
            with handle, contextlib.suppress(ProcessLookupError, PermissionError):
                if kill:
                    handle.signal(signal.SIGKILL)
                elif handle.identity not in self.signalled and handle.identity.pid not in fed:
                    self.signalled.add(handle.identity)
                    handle.signal(self.number)
                    handle.signal(signal.SIGCONT)

    def _signal_shim(self, number: int) -> None:
        if self.boot.shim:
            with contextlib.suppress(OSError), ProcessHandle.open(self.boot.shim) as handle:
                handle.signal(number)
