"""The keeper's children: daemons and the router, forked or adopted, reaped, stopped, each end recorded.

Standard library only and single-threaded, as the keeper is.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from turnout.core.model import Identity
from turnout.remains import Ending
from turnout.system.daemon_log import BOUND_BYTES, bound
from turnout.system.process import ProcessHandle
from turnout.system.spawn import SpawnRequest, spawn
from turnout.system.spawn_record import record_end

Reply = Callable[[Mapping[str, Any]], None]


@dataclass(slots=True)
class Child:
    """A daemon or the router. Owns its pidfd; ``mine``: forked by this keeper, so that its status can be waited for."""

    boot_id: str
    service: str
    handle: ProcessHandle
    record: Path
    log: Path
    identity: Identity
    mine: bool
    log_bytes: int = 0
    stopping: bool = False
    waiters: list[Reply] = field(default_factory=list[Reply])


class Children:
    """Owns every child and its pidfd.

    Args:
        selector: where the pidfds of adopted processes are watched.
        after: runs an action after so many seconds.
        on_ended: told of each child that ended, once it is reaped and recorded.
        say: takes a line for the log.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        after: Callable[[float, Callable[[], None]], None],
        on_ended: Callable[[Child], None],
        say: Callable[[str], None],
    ) -> None:
        self._selector = selector
        self._after = after
        self._on_ended = on_ended
        self._say = say
        self._all: dict[str, Child] = {}

    def __len__(self) -> int:
        return len(self._all)

    def get(self, boot_id: str) -> Child | None:
        return self._all.get(boot_id)

    def all(self) -> list[Child]:
        return list(self._all.values())

    def spawn(self, request: SpawnRequest) -> Child:
        """Fork one. Raises SpawnError, StateUnwritableError."""
        identity = spawn(request)
        handle = ProcessHandle.open(identity)
        child = Child(
            request.boot_id, request.service, handle, request.record_path, request.log_path, identity, mine=True
        )
        self._all[child.boot_id] = child
        return child

    def adopt(self, boot_id: str, service: str, identity: Identity, record: Path, log: Path) -> None:
        """Take over what an earlier keeper started; what has ended meanwhile is recorded so."""
        try:
            handle = ProcessHandle.open(identity)
        except ProcessLookupError:
            record_end(record, None)
            return
        child = Child(boot_id, service, handle, record, log, identity, mine=False)
        self._all[boot_id] = child
        # a process that is not our child ends without SIGCHLD: its pidfd becomes readable, pidfd_open(2)
        self._selector.register(handle.fileno(), selectors.EVENT_READ, lambda: self._ended(child, None))
        self._say(f"adopted {service or 'the router'} {boot_id}, pid {identity.pid}")

    def reap(self) -> None:
        """Collect every child that ended, also orphans that came to us as their subreaper."""
        while True:
            try:
                # WNOWAIT: look first, so that a group is signalled while its dead leader still holds the number
                seen = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if seen is None:
                return
            child = next((c for c in self._all.values() if c.mine and c.identity.pid == seen.si_pid), None)
            if child and child.stopping:
                with contextlib.suppress(OSError):
                    child.handle.signal_group(signal.SIGKILL)
            _, status = os.waitpid(seen.si_pid, 0)
            if child:
                self._ended(child, status)

    def stop(self, child: Child, number: int, grace_s: float, reply: Reply | None = None) -> None:
        """Stop signal, CONT (a stopped process would not see it), and KILL to the whole group after the grace."""
        if reply:
            child.waiters.append(reply)
        if not child.stopping:
            child.stopping = True
            self._signal(child, number)
            self._signal(child, signal.SIGCONT)
        self._after(grace_s, lambda: self.kill(child))

    def end_remains(self, boot_id: str, number: int, grace_s: float, reply: Reply | None = None) -> None:
        """End what is left of a boot whose own process has ended; ``reply`` hears of it once nothing is."""

        def done() -> None:
            if reply:
                reply({"ok": True, "gone": True})

        Ending(boot_id, number, grace_s, self._after, done).look()

    def bound_logs(self) -> bool:
        """Keep daemons' logs within their bound; True where one grows so fast that it must be looked at again soon."""
        grows = False
        for child in self._all.values():
            if not child.service:  # the router sees to its own
                continue
            before, child.log_bytes = child.log_bytes, bound(child.log)
            grows |= child.log_bytes - before > BOUND_BYTES // 4
            if child.log_bytes > BOUND_BYTES:
                child.log_bytes = 0
                self._say(f"the log of {child.service} {child.boot_id} was cut at its bound")
        return grows

    def kill(self, child: Child) -> None:
        if self._all.get(child.boot_id) is child:
            child.stopping = True
            with contextlib.suppress(OSError):
                child.handle.signal_group(signal.SIGKILL)
            self._signal(child, signal.SIGKILL)

    def close(self) -> None:
        """Let go of the pidfds; the processes are not touched."""
        for child in self._all.values():
            child.handle.close()
        self._all.clear()

    def _ended(self, child: Child, status: int | None) -> None:
        if not child.mine:
            self._selector.unregister(child.handle.fileno())
            if child.stopping:
                with contextlib.suppress(OSError):  # its reaper has waited for it: Linux 6.9 still knows its group
                    child.handle.signal_group(signal.SIGKILL)
        child.handle.close()
        self._all.pop(child.boot_id, None)
        record_end(child.record, status)
        self._say(f"{child.service or 'router'} {child.boot_id} (pid {child.identity.pid}) ended, wait status {status}")
        self._on_ended(child)

        def answer(told: Mapping[str, Any]) -> None:
            for reply in child.waiters:
                reply(told)

        if child.stopping and child.service:
            self.end_remains(child.boot_id, signal.SIGKILL, 0.0, answer)
        else:
            answer({"ok": True, "gone": True})

    @staticmethod
    def _signal(child: Child, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            child.handle.signal(number)
