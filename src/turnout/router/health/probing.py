"""Runs the health checks of one service's daemons: one check in flight for each daemon, in a thread of its own.

A check may hang although it has a deadline: the health command lies on a network file system whose server is gone, or
the kernel does not answer for the daemon's process. Then that daemon fails its checks, and no other daemon, no other
service and no exit waits for the thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from concurrent.futures import Executor
from typing import Final, NamedTuple

from turnout.core.model import Daemon
from turnout.system.daemon_threads import DaemonThreads
from turnout.system.probes.probe import ProbeResult
from turnout.system.process import provably_dead

LATE_S: Final = 2.0  # a check that ends at its deadline needs a thread and the loop, on a machine that is busy
_Key = tuple[str, str]  # the kind of check, and the boot id, which is any text


class _Check(NamedTuple):
    began: float
    result: asyncio.Future[ProbeResult]


class ProbeThreads:
    """Owns the threads. Only the loop's thread may call.

    Args:
        shared: threads that exist already, for a daemon whose thread cannot be started (a limit on processes).
        late_s: seconds after its own deadline until a check is taken for hung.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, shared: Executor, *, late_s: float = LATE_S) -> None:
        self._loop = loop
        self._shared = shared
        self._late_s = late_s
        self._threads: dict[_Key, DaemonThreads] = {}
        self._checks: dict[_Key, _Check] = {}

    async def run(
        self, daemon: Daemon, check: Callable[[], ProbeResult], *, timeout_s: float, kind: str = "check"
    ) -> ProbeResult:
        """Run a check of a daemon, or say why it failed: it hangs, or the one before it still does.

        Args:
            daemon: the daemon that is checked.
            check: the check; it holds a deadline of ``timeout_s``, unless it hangs.
            timeout_s: seconds, above 0.
            kind: checks of another kind have a thread of their own, since one may hang where the other does not.

        Raises:
            OSError: no thread can be had.
        """
        key = kind, daemon.boot_id
        flying = self._checks.get(key)
        if flying is None or flying.result.done():
            flying = self._checks[key] = _Check(time.monotonic(), self._begin(key, check))
            for _ in range(2):  # a router that was suspended meanwhile finds the time over and the result on its way
                await asyncio.wait({flying.result}, timeout=(timeout_s + self._late_s) / 2)
        if flying.result.done():
            return flying.result.result()
        if provably_dead(daemon.identity):
            return ProbeResult(ok=False, reason=f"pid {daemon.pid} has ended", gone=True)
        hangs_s = time.monotonic() - flying.began
        reason = f"a {kind} that began {hangs_s:.0f} s ago hangs: a file system does not answer?"
        return ProbeResult(ok=False, reason=reason)

    def keep(self, boot_ids: Collection[str]) -> None:
        """Let the threads of all other daemons go; one that hangs ends with its check."""
        for key in [key for key in self._threads if key[1] not in boot_ids]:
            self._threads.pop(key).shutdown(wait=False)
            self._checks.pop(key, None)

    def close(self) -> None:
        """Let all threads go."""
        self.keep(())

    def _begin(self, key: _Key, check: Callable[[], ProbeResult]) -> asyncio.Future[ProbeResult]:
        threads = self._threads.get(key)
        if threads is None:
            threads = self._threads[key] = DaemonThreads(" ".join(key))
        executor = threads if threads.works else self._shared
        result = self._loop.run_in_executor(executor, check)
        result.add_done_callback(_retrieve)
        return result


def _retrieve(result: asyncio.Future[ProbeResult]) -> None:
    """A check whose caller went away may fail unheard."""
    if not result.cancelled():
        result.exception()
