"""The keeper: holds the listeners open, and is the parent of the router and of the daemons. It carries no client byte.

Small, single-threaded and standard library only, so that there is little in it that can fail: a fork in it is safe, and
whatever happens to the router, connections to the fixed address wait in the kernel's queue until a new one is there.

    CLI ──► keeper.sock ──► listen, unlisten, spawn, stop, hello, replace_router, kill_router, shutdown
    router ──► keeper.sock ──► attach (brings the listeners it has; gets those that it lacks), stop,
                               replace_router, ready, heard, left, leads, seen, cut
"""

from __future__ import annotations

import contextlib
import math
import os
import sched
import selectors
import signal
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from turnout import __version__
from turnout.errors import ConflictError, StateUnwritableError, TurnoutError
from turnout.keeper.activations import Activations
from turnout.keeper.children import Child, Children
from turnout.keeper.control_socket import KeeperSocket
from turnout.keeper.daemon_listeners import DaemonListeners
from turnout.keeper.log_bounds import LOOK_S, LogBounds
from turnout.keeper.orphans import OrphanReaper
from turnout.keeper.request_handler import RequestHandler
from turnout.keeper.router_child import RouterStarts
from turnout.keeper.routers import Routers
from turnout.keeper.service_listeners import ServiceListeners
from turnout.keeper.shutdown import DEFAULT_TERMS, run_down_verbs, start_down_verb, stop_terms
from turnout.state.home import Home
from turnout.state.keeper_lock import restore_keeper_lock, take_keeper_lock
from turnout.system.boot_processes import Boot
from turnout.system.directory_lock import lock_directory, unlock
from turnout.system.files import remove, unwritable
from turnout.system.flock import holder_pid
from turnout.system.home_identity import HomeIdentity
from turnout.system.loop_guard import LoopGuard
from turnout.system.own_log import CHECK_EVERY_S, LogFile, log_line
from turnout.system.sd_notify import notify
from turnout.system.shim import set_subreaper
from turnout.system.signals import Signals
from turnout.system.spawn_record import foreign_records, read_records, record_end, write_record

TERM_GRACE_S: Final = 5.0
DOWN_SLACK_S: Final = 20.0  # for the lifecycle lock and a slow machine
LEAVE_SLACK_S: Final = 10.0  # after KILL: a process that hangs in the kernel, or of another user, is not waited for
LOG_BOUND_BYTES: Final = 4 * 1024 * 1024
FILES_LOOK_S: Final = 1.0


class Keeper:
    """One per home. Owns the keeper's socket and lock, the listeners, the control channels and all children."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self._home_identity = HomeIdentity.of(home.root)
        self._home_fd, self._lock_fd = _sole_keeper(home)
        self._guard = LoopGuard(log_line)
        self._selector = selectors.DefaultSelector()
        self._timers = sched.scheduler(time.monotonic)
        self._next_timer_s: float | None = 0.0
        self._served: dict[str, ServiceListeners] = {}
        self._socket = KeeperSocket(home.keeper_sock, self._selector, self._after)
        self._children = Children(self._selector, self._after, self._child_ended, log_line)
        starts = RouterStarts(home, self._children, self._after, log_line)
        self._routers = Routers(home, self._children, starts, self._after, self._served, self._socket.send)
        self._file_trouble = ""
        self._listeners = DaemonListeners(
            home,
            self._served,
            self._routers.offer,
            self._children.has_processes,
            self._children.pids_of,
            self._after,
            log_line,
        )
        self._activations = Activations(self._selector, self._listeners, self._after, log_line)
        self._requests = RequestHandler(
            home, self._socket, self._children, self._routers, self._listeners, self._activations, self._shut_down
        )
        self._socket.serve(self._requests.on_message, self._routers.on_channel_closed, self._routers.is_router_pid)
        self._done = False
        self._log_bounds = LogBounds(self._children, log_line)
        self._log_file = LogFile(home.keeper_log, LOG_BOUND_BYTES)
        self._signals = Signals()
        self._selector.register(self._signals.fileno(), selectors.EVENT_READ, self._on_signal)

    def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Serve until ``shutdown`` or a signal, then leave nothing behind."""
        set_subreaper()
        self._signals.catch(signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        self._adopt()
        self._guard.run(self._watch_log)
        self._guard.run(self._bound_logs)
        self._after(FILES_LOOK_S, self._watch_files)
        log_line(f"keeper {__version__} of {self.home.root}, pid {os.getpid()}")
        if loose := self.home.looseness():
            log_line(f"{loose}; turnout doctor --fix mends it")
        ready()
        try:
            while True:
                self._next_timer_s = 0.0  # also where one fails
                self._guard.run(self._run_timers)
                if self._done:
                    break
                for key, _ in self._selector.select(self._next_timer_s):
                    self._guard.run(key.data)
        finally:
            self._close()

    def _after(self, delay_s: float, action: Callable[[], None]) -> None:
        """Run ``action`` once, ``delay_s`` seconds from now or a little later."""
        self._timers.enter(delay_s, 0, action)

    def _run_timers(self) -> None:
        self._next_timer_s = self._timers.run(blocking=False)

    def _adopt(self) -> None:
        """Take over what an earlier keeper left: its daemons, and a router that runs and will attach by itself.

        What cannot be read of one service keeps the keeper from nothing else.
        """
        self._guard.run(self._adopt_services)
        self._guard.run(self._routers.adopt)

    def _adopt_services(self) -> None:
        for name in [*self.home.service_names(), *self.home.services_without_settings()]:
            self._guard.run(partial(self._adopt_service, name))

    def _adopt_service(self, name: str) -> None:
        """In a copy of a home the processes that it names are another keeper's: their records are ended, no more."""
        service = self.home.service(name)
        for boot_id, daemon in foreign_records(service.records).items():
            log_line(f"{name} {boot_id} (pid {daemon.identity.pid}) is a process of another home: left alone")
            record_end(service.record(boot_id), None)
        for boot_id, daemon in read_records(service.records).items():
            if daemon.ended is None or daemon.has_remains:
                if daemon.home is None and daemon.ended is None:  # 0.1.0 wrote it, and the kernel has just proven it
                    with contextlib.suppress(StateUnwritableError):
                        write_record(service.record(boot_id), daemon)
                self._log_bounds.watch(service.logs)
                self._children.adopt(daemon, name, service.record(boot_id))
                if daemon.held_fds:
                    self._activations.adopt(daemon)

    def _child_ended(self, child: Child) -> None:
        if not self._routers.is_router(child):
            self._listeners.refresh()
            self._routers.send_leader({"op": "ended", "service": child.service, "boot_id": child.boot_id})
        elif not self._requests.shutting_down:
            self._routers.on_exit(child)

    def _watch_log(self) -> None:
        self._after(CHECK_EVERY_S, self._watch_log)
        self._log_file.check()

    def _watch_files(self) -> None:
        """Make socket and lock file again where a cleaner of old files has removed them: verbs find the keeper by them.

        A home that was removed whole, or made again by another process, is let be.
        """
        self._after(FILES_LOOK_S, self._watch_files)
        trouble = ""
        try:
            if not self._is_in_home():
                trouble = f"{self.home.root} was removed: no verb can reach this keeper any more; kill {os.getpid()}"
            else:
                before, self._lock_fd = self._lock_fd, restore_keeper_lock(self.home.keeper_lock, self._lock_fd)
                if before != self._lock_fd:
                    log_line(f"made {self.home.keeper_lock} again: it was removed")
                if self._socket.restore():
                    log_line(f"made {self.home.keeper_sock} again: it was removed")
        except (TurnoutError, OSError) as error:
            trouble = f"a file of the home was removed, and cannot be made again yet: {error}"
        if trouble and trouble != self._file_trouble:  # it is tried again every second
            log_line(trouble)
        self._file_trouble = trouble

    def _is_in_home(self) -> bool:
        """Whether the home's path leads to this keeper's home: another process may have removed and made it."""
        return HomeIdentity.of(self.home.root) == self._home_identity

    def _go_down(self) -> None:
        """SIGTERM: what ``turnout down`` does, for each service. A second one does not wait for that."""
        if self._requests.going_down:
            self._shut_down()
            return
        self._requests.going_down = True
        log_line("going down")
        notify("STOPPING=1")
        services = sorted(self._served)
        patience_s = max((stop_terms(self.home.service(name)).patience_s for name in services), default=0.0)
        self._after(patience_s + DOWN_SLACK_S, lambda: self._shut_down(math.inf))  # whatever fails below
        run_down_verbs(
            partial(start_down_verb, self.home, self._routers.starts.interpreter),
            services,
            lambda fd, action: self._selector.register(fd, selectors.EVENT_READ, action),
            self._selector.unregister,
            lambda: self._shut_down(math.inf),
        )

    def _shut_down(self, most_s: float = TERM_GRACE_S) -> None:
        """Stop what is left, each daemon by its own signal and grace, or ``most_s``; then leave."""
        if self._requests.shutting_down:
            return
        self._requests.shutting_down = True
        log_line("shutting down")
        self._guard.run(partial(self._routers.send_all, {"op": "end"}))
        for served in self._served.values():
            self._guard.run(served.close)
        self._served.clear()
        longest_s = DEFAULT_TERMS.grace_s
        for child in self._children.all():  # what fails for one of them keeps the keeper from no other, and not here
            terms = stop_terms(self.home.service(child.service)) if child.service else DEFAULT_TERMS
            longest_s = max(longest_s, terms.grace_s)
            self._guard.run(partial(self._children.stop, child, terms.signal, min(terms.grace_s, most_s)))
        for boot_id in self._children.boots_with_orphans():
            grace_s = min(DEFAULT_TERMS.grace_s, most_s)
            self._guard.run(partial(self._children.end_orphans, boot_id, DEFAULT_TERMS.signal, grace_s))
        self._leave_when_alone(time.monotonic() + min(longest_s, most_s) + LEAVE_SLACK_S)

    def _leave_when_alone(self, deadline: float) -> None:
        """Leave once no child is left; at the deadline (monotonic seconds) the next keeper adopts what there is."""
        if self._children and time.monotonic() < deadline:
            self._after(0.01, partial(self._leave_when_alone, deadline))
            return
        for child in self._children.all():
            log_line(f"{child.service or 'router'} {child.boot_id} (pid {child.identity.pid}) cannot be ended")
        self._after(LEAVE_SLACK_S, partial(self._leave, []))
        OrphanReaper(Boot(""), signal.SIGKILL, 0.0, self._after, self._leave).look()

    def _leave(self, _: list[int]) -> None:
        self._done = True

    def _bound_logs(self) -> None:
        pause_s = LOOK_S
        try:
            pause_s = self._log_bounds.check()
        finally:
            self._after(pause_s, self._bound_logs)

    def _on_signal(self) -> None:
        signals = self._signals.take()
        if signals & {signal.SIGTERM, signal.SIGINT}:
            self._guard.run(self._go_down)
        if signal.SIGHUP in signals:
            log_line("SIGHUP: the routers look at their settings again; the keeper has none of its own")
            self._log_file.check()
            self._guard.run(partial(self._routers.send_all, {"op": "reload"}))
        self._children.reap()

    def _close(self) -> None:
        self._socket.close()
        for served in self._served.values():
            served.close()
        self._children.close()
        self._activations.close()
        self._selector.close()
        if self._is_in_home():
            remove(self.home.router_sock)
        self._signals.close()
        os.close(self._lock_fd)
        unlock(self._home_fd)
        log_line("keeper ended")


def _sole_keeper(home: Home) -> tuple[int, int]:
    """Become the one keeper of this home: the descriptors of its directory and of its lock file, both locked.

    Raises:
        ConflictError: another keeper lives.
        StateUnwritableError: the lock file cannot be made.
    """
    try:
        home_fd = lock_directory(home.root)
    except BlockingIOError:
        pid = holder_pid(home.root) or "unknown"
        raise ConflictError(f"a keeper already runs for {home.root}: pid {pid}", hint="turnout status") from None
    try:
        return home_fd, take_keeper_lock(home.keeper_lock)
    except OSError as error:
        unlock(home_fd)
        raise unwritable("lock", home.keeper_lock, error) from error
    except BaseException:
        unlock(home_fd)
        raise
