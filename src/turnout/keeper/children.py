"""The keeper's children: daemons and the router, forked or adopted, reaped, stopped, each end recorded.

Standard library only and single-threaded, as the keeper is.
"""

from __future__ import annotations

import contextlib
import math
import os
import selectors
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from turnout.core.model import Identity
from turnout.errors import NotBegunError, SpawnError
from turnout.keeper.daemon_starts import DaemonStarts, Result
from turnout.keeper.orphans import OrphanReaper
from turnout.system.boot_processes import Boot
from turnout.system.daemon_log import bound
from turnout.system.process import ProcessHandle, descendants, is_alive, is_shell, tree_of
from turnout.system.shim import Shim
from turnout.system.spawn import SpawnRequest, spawn, spawn_behind_shim
from turnout.system.spawn_record import SpawnRecord, record_end

REPORT_WITHIN_S: Final = 2.0  # a shim reports an end within microseconds, unless it was stopped (SIGSTOP)

Reply = Callable[[Mapping[str, Any]], None]


@dataclass(slots=True)
class Child:
    """A daemon or the router. Owns its pidfd; ``mine``: forked by this keeper, so that its status can be waited for.

    ``stop_signal`` and ``kill_at`` (monotonic seconds): set when the stop begins.
    """

    boot_id: str
    service: str
    handle: ProcessHandle
    record: Path
    log: Path
    identity: Identity
    mine: bool
    stopping: bool = False
    stop_signal: int = signal.SIGTERM
    kill_at: float = math.inf
    waiters: list[Reply] = field(default_factory=list[Reply])


class Children:
    """Owns every child and its pidfd, and the shims of daemons, which outlive these while processes are left of them.

    Args:
        selector: where the pidfds of daemons, of shims and of adopted routers are watched.
        on_ended: called with each child that ended, once it is reaped and recorded.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        after: Callable[[float, Callable[[], None]], None],
        on_ended: Callable[[Child], None],
        log: Callable[[str], None],
    ) -> None:
        self._selector = selector
        self._after = after
        self._on_ended = on_ended
        self._log = log
        self._all: dict[str, Child] = {}
        self._shims: dict[str, Shim] = {}
        self._starts = DaemonStarts(selector, after)
        self._reapers: dict[str, OrphanReaper] = {}
        self._waiters: dict[str, list[Reply]] = {}

    def __len__(self) -> int:
        return len(self._all.keys() | self._reapers.keys() | self._starts.boot_ids)

    def get(self, boot_id: str) -> Child | None:
        return self._all.get(boot_id)

    def has_processes(self, boot_id: str) -> bool:
        """Whether a boot is started, runs, or has left processes behind that its shim stands for."""
        return boot_id in self._all or boot_id in self._shims or boot_id in self._starts.boot_ids

    def pids_of(self, boot_id: str) -> set[int]:
        """The processes of a daemon that runs, whatever session they are in; none where its own process has ended."""
        child, shim = self._all.get(boot_id), self._shim_of(boot_id)
        if child is None or not is_alive(child.identity):
            return set()
        return tree_of(child.identity) | (descendants(shim.pid) if shim and is_alive(shim) else set())

    def all(self) -> list[Child]:
        return list(self._all.values())

    def spawn(self, request: SpawnRequest) -> Child:
        """Fork the router. Raises SpawnError, StateUnwritableError."""
        identity = spawn(request)
        try:
            handle = ProcessHandle.open(identity)
        except OSError as error:  # no descriptor: a process that cannot be watched or signalled must not run
            os.kill(identity.pid, signal.SIGKILL)  # our own child, not waited for: the number is still its own
            _, status = os.waitpid(identity.pid, 0)
            record_end(request.record_path, status)
            raise SpawnError(f"cannot watch {request.boot_id}: {error.strerror}", hint="ulimit -n") from error
        return self._add(request, handle)

    def spawn_daemon(self, request: SpawnRequest, done: Callable[[Child | Exception], None]) -> None:
        """Fork a daemon behind a shim. ``done`` gets it once it runs, or a SpawnError or StateUnwritableError."""
        self._starts.begin(request.boot_id, spawn_behind_shim(request), partial(self._started, request, done))

    def is_starting(self, boot_id: str) -> bool:
        return boot_id in self._starts.boot_ids

    def after_start(self, boot_id: str, action: Callable[[], None]) -> bool:
        """Run ``action`` once the start of this boot is over; False: it is not being started."""
        return self._starts.defer(boot_id, action)

    def _started(self, request: SpawnRequest, done: Callable[[Child | Exception], None], result: Result) -> None:
        if isinstance(result, Exception):
            done(result)
            return
        handle, shim = result
        assert shim is not None
        child = self._add(request, handle)
        try:
            self._watch_shim(child.boot_id, shim)
            self._selector.register(shim.report, selectors.EVENT_READ, partial(self._shim_reported, child, shim))
            self._watch_end(child)
        except OSError as error:  # epoll_ctl(2): ENOSPC, ENOMEM. What cannot be watched must not run
            self._give_up(child, shim)
            done(NotBegunError(f"cannot watch {child.boot_id}: {error.strerror}", hint="ulimit -n"))
            return
        done(child)

    def _give_up(self, child: Child, shim: Shim) -> None:
        """End a daemon that was started a moment ago, whole, and keep nothing of it."""
        for fd in (shim.handle.fileno(), shim.report, child.handle.fileno()):
            with contextlib.suppress(KeyError):
                self._selector.unregister(fd)
        del self._all[child.boot_id]
        self._shims.pop(child.boot_id, None)
        record_end(child.record, None)
        boot = Boot(child.boot_id, None, shim.identity)
        child.handle.close()
        shim.close()
        self._end(boot, signal.SIGKILL, time.monotonic(), [])

    def adopt(self, record: SpawnRecord, service: str, path: Path) -> bool:
        """Take over what an earlier keeper started; record the end of what has ended meanwhile.

        False: something of it runs and cannot be watched, for want of a descriptor; the log says so.

        Args:
            record: written by that keeper.
            service: the daemon's service; empty: it is a router.
            path: the record's file.
        """
        boot_id, name = record.boot_id, f"{service or 'the router'} {record.boot_id}"
        complete = True
        if record.shim and boot_id not in self._shims:
            watch_shim = partial(self._adopt_shim, boot_id)
            complete = self._adopt_process(record.shim, f"watch the shim of {boot_id}", watch_shim) is not False
        if record.ended:
            return complete

        def watch(handle: ProcessHandle) -> None:
            child = Child(boot_id, service, handle, path, Path(record.log), record.identity, mine=False)
            self._watch_end(child)
            self._all[boot_id] = child

        adopted = self._adopt_process(record.identity, f"adopt {name}", watch)
        if adopted:
            self._log(f"adopted {name}, pid {record.identity.pid}")
        elif adopted is None:
            record_end(path, None)
            if service:
                bound(Path(record.log))
        return complete and adopted is not False

    def _adopt_process(self, identity: Identity, purpose: str, watch: Callable[[ProcessHandle], None]) -> bool | None:
        """Watch a process of an earlier keeper; None: it has ended; False: it runs, and cannot be watched."""
        try:
            handle = ProcessHandle.open(identity)
        except ProcessLookupError:
            return None
        except OSError as error:
            self._log(f"cannot {purpose}: {error.strerror}")
            return False
        try:
            watch(handle)
        except OSError as error:
            handle.close()
            self._log(f"cannot {purpose}: {error.strerror}")
            return False
        return True

    def _adopt_shim(self, boot_id: str, handle: ProcessHandle) -> None:
        self._watch_shim(boot_id, Shim(handle))

    def reap(self) -> None:
        """Wait for every child that ended: routers, shims, and orphans, which come to us as their subreaper."""
        with contextlib.suppress(ChildProcessError):  # there is no child
            # WNOWAIT: look first, so that a group is signalled while its dead leader still holds the number
            while seen := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                child = next((c for c in self._all.values() if c.identity.pid == seen.si_pid), None)
                if child and child.stopping and not child.service:
                    with contextlib.suppress(OSError):
                        child.handle.signal_group(signal.SIGKILL)
                _, status = os.waitpid(seen.si_pid, 0)
                if child:  # a daemon: its shim was killed, and it came to us
                    self._ended(child, status)

    def stop(self, child: Child, number: int, grace_s: float, reply: Reply | None = None) -> None:
        """Stop signal to the process that was started, and CONT (a stopped process would not see it).

        What is left of the daemon when that has ended gets the signal then, so that a master which ends its workers by
        itself is not disturbed. A shell passes no signal on, and one with a trap waits for its command before it acts:
        so at half of the grace the signal goes to what it runs. KILL comes to all of them after the grace.
        """
        if reply:
            child.waiters.append(reply)
        if not child.stopping:
            child.stopping = True
            child.stop_signal = number
            self._signal(child, number)
            self._signal(child, signal.SIGCONT)
            if child.service:
                self._after(grace_s / 2, partial(self._signal_rest_of_shell, child))
        child.kill_at = min(child.kill_at, time.monotonic() + grace_s)
        self._after(grace_s, partial(self.kill, child))

    def end_orphans(self, boot_id: str, number: int, grace_s: float, reply: Reply | None = None) -> None:
        """End what is left of a boot whose own process has ended.

        ``reply`` is called once nothing is left, or with ``left``: the pids of what outlived KILL.
        """
        self._end(
            Boot(boot_id, None, self._shim_of(boot_id)), number, time.monotonic() + grace_s, [reply] if reply else []
        )

    @staticmethod
    def activity(child: Child) -> int:
        """How often the child's first thread was scheduled, proc_pid_status(5): it stands still in one that hangs."""
        with contextlib.suppress(OSError):
            lines = (
                Path(f"/proc/{child.identity.pid}/status").read_text(encoding="utf-8", errors="replace").splitlines()
            )
            return sum(int(line.split()[1]) for line in lines if "ctxt_switches:" in line)
        return -1

    def boots_with_orphans(self) -> list[str]:
        """The boots whose daemon has ended, and of which processes are left."""
        return [boot_id for boot_id in self._shims if boot_id not in self._all]

    def kill(self, child: Child) -> None:
        """KILL to the child, and with a daemon to all that belongs to it."""
        if self._all.get(child.boot_id) is not child:
            return
        child.stopping = True
        if child.service:
            child.kill_at = time.monotonic()
            self._end_rest(child)
        else:
            with contextlib.suppress(OSError):
                child.handle.signal_group(signal.SIGKILL)
        self._signal(child, signal.SIGKILL)

    def close(self) -> None:
        """Let go of the descriptors; the processes are not touched, but for a daemon whose start is not over."""
        self._starts.close()
        for child in self._all.values():
            child.handle.close()
        for shim in self._shims.values():
            shim.close()
        self._all.clear()
        self._shims.clear()

    # -- ends --------------------------------------------------------------------------------------------------------

    def _add(self, request: SpawnRequest, handle: ProcessHandle) -> Child:
        boot_id, identity = request.boot_id, handle.identity
        child = Child(boot_id, request.service, handle, request.record_path, request.log_path, identity, mine=True)
        self._all[boot_id] = child
        return child

    def _watch_end(self, child: Child) -> None:
        """Of a process that is not our child there is no SIGCHLD: its pidfd becomes readable, pidfd_open(2)."""
        self._selector.register(child.handle.fileno(), selectors.EVENT_READ, partial(self._process_ended, child))

    def _process_ended(self, child: Child) -> None:
        if self._all.get(child.boot_id) is not child:  # its end was reported in the same round of the loop
            return
        self._selector.unregister(child.handle.fileno())
        shim = self._shims.get(child.boot_id)
        if shim is None or shim.report < 0:
            status = None
            with contextlib.suppress(ChildProcessError):  # not our child, unless its shim was killed
                pid, found = os.waitpid(child.identity.pid, os.WNOHANG)
                status = found if pid else None
            self._ended(child, status)
            return
        with contextlib.suppress(OSError):
            shim.handle.signal(signal.SIGCONT)
        self._after(REPORT_WITHIN_S, partial(self._ended, child, None))  # the report comes first, and has the status

    def _shim_reported(self, child: Child, shim: Shim) -> None:
        if shim.report < 0:
            return
        self._selector.unregister(shim.report)
        status = shim.status()
        shim.close_report()
        if status is not None:  # else the shim is gone; then the daemon's pidfd tells, or it comes to us as an orphan
            self._ended(child, status)

    def _watch_shim(self, boot_id: str, shim: Shim) -> None:
        """Raises OSError: it cannot be watched, and stays the caller's."""
        self._forget_shim(boot_id)
        self._selector.register(shim.handle.fileno(), selectors.EVENT_READ, partial(self._shim_ended, boot_id, shim))
        self._shims[boot_id] = shim

    def _shim_ended(self, boot_id: str, shim: Shim) -> None:
        """The shim has ended, and with it the last process of its boot, unless it was killed."""
        if self._shims.get(boot_id) is shim:
            self._forget_shim(boot_id)
        ending = self._reapers.get(boot_id)
        if ending:
            ending.look()

    def _forget_shim(self, boot_id: str) -> None:
        shim = self._shims.pop(boot_id, None)
        if shim:
            self._selector.unregister(shim.handle.fileno())
            child = self._all.get(boot_id)
            if shim.report >= 0 and child:
                self._shim_reported(child, shim)
            elif shim.report >= 0:  # closed without this, its number could not be registered again
                self._selector.unregister(shim.report)
            shim.close()

    def _shim_of(self, boot_id: str) -> Identity | None:
        shim = self._shims.get(boot_id)
        return shim.identity if shim else None

    def _ended(self, child: Child, status: int | None) -> None:
        if self._all.get(child.boot_id) is not child:
            return
        with contextlib.suppress(KeyError):
            self._selector.unregister(child.handle.fileno())
        if child.stopping and not child.service and not child.mine:
            with contextlib.suppress(OSError):  # its reaper has waited for it: Linux 6.9 still knows its group
                child.handle.signal_group(signal.SIGKILL)
        child.handle.close()
        self._all.pop(child.boot_id, None)
        record_end(child.record, status)
        if child.service:  # its last words may have been many
            bound(child.log)
        self._log(f"{child.service or 'router'} {child.boot_id} (pid {child.identity.pid}) ended, wait status {status}")
        self._on_ended(child)
        if child.stopping and child.service:
            self._end_rest(child)
        else:
            for reply in child.waiters:
                reply({"ok": True, "gone": True})

    def _signal_rest_of_shell(self, child: Child) -> None:
        """A shell that has not ended at half of its grace waits for what it runs."""
        if self._all.get(child.boot_id) is child and is_shell(child.identity):
            self._end_rest(child)

    def _end_rest(self, child: Child) -> None:
        """The rest of the daemon: the signal that the child had, and what is left of the same grace."""
        waiters, child.waiters = child.waiters, []
        boot = Boot(child.boot_id, child.identity, self._shim_of(child.boot_id))
        self._end(boot, child.stop_signal, child.kill_at, waiters, signalled=child.identity)

    def _end(
        self, boot: Boot, number: int, kill_at: float, waiters: list[Reply], *, signalled: Identity | None = None
    ) -> None:
        """Begin to end a boot, or join in where that is under way: nothing gets a second stop signal."""
        boot_id = boot.boot_id
        self._waiters.setdefault(boot_id, []).extend(waiters)
        ending = self._reapers.get(boot_id)
        if ending:
            ending.hasten(kill_at)
        else:
            done = partial(self._all_ended, boot_id)
            ending = OrphanReaper(boot, number, kill_at, self._after, done, {signalled} if signalled else set())
            self._reapers[boot_id] = ending
        ending.look()

    def _all_ended(self, boot_id: str, left: list[int]) -> None:
        self._reapers.pop(boot_id, None)
        if left:
            self._log(f"{boot_id} cannot be ended whole: pids {left} outlived KILL, or belong to another user")
        for reply in self._waiters.pop(boot_id, []):
            reply({"ok": True, "gone": boot_id not in self._all, "left": left})

    @staticmethod
    def _signal(child: Child, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            child.handle.signal(number)
