"""What runs: keeper, router, daemons, strays; and the holders of the locks."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from functools import partial
from typing import Final

import msgspec

from turnout import __version__
from turnout.control.router_client import RouterClient
from turnout.core.model import Daemon, Desired
from turnout.doctor.context import Context, ServiceContext
from turnout.doctor.finding import CheckResult, bad, ok, warn
from turnout.errors import TurnoutError
from turnout.lifecycle.build_selection import attach_again
from turnout.state.keeper_lock import keeper_pid
from turnout.state.lifecycle_lock import LOCK, LifecycleLock
from turnout.state.registry.inspect import examine
from turnout.state.service import Service, probe_spec
from turnout.status.collect import service_status
from turnout.system.boot_processes import Boot, processes_of
from turnout.system.files import name_of
from turnout.system.flock import holder_pid
from turnout.system.probes.probe import probe
from turnout.system.process import (
    ProcessHandle,
    command_of,
    is_alive,
    is_suspended,
    of_another_home,
    provably_dead,
    state_of,
)
from turnout.system.spawn_record import SpawnRecord, foreign_records, read_records

HELD_LONG_S: Final = 600.0
END_TIMEOUT_S: Final = 5.0
SHOWN_REMAINS: Final = 3


def check_keeper(context: Context) -> Iterator[CheckResult]:
    """The process that holds the listeners and brings a dead router back."""
    keeper = context.keeper
    if keeper and keeper.version == __version__:
        yield ok(f"pid {keeper.pid}, version {keeper.version}")
        return
    if keeper:
        evidence = f"pid {keeper.pid} is of version {keeper.version}, this is {__version__}"
        yield warn(evidence, "turnout down && turnout up")
        return
    holder = keeper_pid(context.home, proc=context.proc)
    if holder and is_suspended(holder):
        yield bad(f"pid {holder} is suspended and answers no request", f"kill -CONT {holder}")
    elif holder and name_of(context.home.keeper_sock) is None:
        removed = f"the socket of pid {holder} was removed, and it has not made it again"
        yield bad(f"{removed}: see {context.home.keeper_log}", "turnout up")
    elif context.router_processes:
        yield warn("none: a router that dies would not come back, nor would its address", "turnout up")
    elif holder:
        yield bad(f"pid {holder} ({command_of(holder)}) has its lock, and does not answer", f"kill {holder}")
    else:
        yield ok("none, and nothing that needs one")


def check_router(context: Context) -> Iterator[CheckResult]:
    """Alive, answering, and of this version."""
    router, why = context.asked_router
    if router is not None:
        version, pid = router.get("version"), router.get("pid")
        if version == __version__:
            yield ok(f"pid {pid}, version {version}")
        else:
            yield warn(f"pid {pid} is of version {version}, this is {__version__}", "turnout router --replace")
        return
    for record in context.router_processes:
        pid = record.identity.pid
        if is_suspended(pid):
            yield bad(f"pid {pid} is suspended: its clients wait for their answers", f"kill -CONT {pid}")
        else:
            yield bad(f"pid {pid} runs and is silent: {why}", "turnout up")
    if not context.router_processes:
        yield ok("none runs")


def check_service(context: Context, service: ServiceContext) -> Iterator[CheckResult]:
    """The service as ``status`` judges it."""
    if service.settings is None or not service.home.settings.is_file():
        return
    try:
        examined = examine(service.registry)
        if examined.damaged or not examined.exists:
            return  # the registry's own check says so, and reading it here would keep a copy aside
        status = service_status(Service.open(service.home, service.settings), context.router)
    except TurnoutError:
        return
    for problem in status.problems:
        yield CheckResult(problem.severity, problem.what, problem.hint or "turnout status")
    if not status.problems:
        block = status.deployment
        yield ok(f"{status.desired}, generation {block.generation}, {block.state}")


def check_daemons(_context: Context, service: ServiceContext) -> Iterator[CheckResult]:
    """Whether what the registry names is that process, listens where it says, and accepts."""
    snapshot = service.snapshot
    if snapshot is None or service.settings is None:
        return
    if snapshot.active:
        yield from _active(service, snapshot.active, stopped=snapshot.deployment.desired is Desired.STOPPED)
    if snapshot.old and not is_alive(snapshot.old.identity):
        dead = f"{snapshot.old.boot_id}, to which a rollback would go, is dead"
        yield warn(f"{dead}: there is no way back in this window", f"turnout history{service.flag}")


def _active(service: ServiceContext, daemon: Daemon, *, stopped: bool) -> Iterator[CheckResult]:
    assert service.settings is not None
    if of_another_home(daemon.identity):
        return  # check_copied says so
    if not is_alive(daemon.identity) and (daemon.owned or provably_dead(daemon.identity)):
        if not stopped:
            gone = _state(daemon.pid) in {"", "Z", "X"}
            other = f"pid {daemon.pid} is gone" if gone else f"pid {daemon.pid} is another process by now"
            again = "turnout up" if daemon.owned else attach_again(daemon)
            yield bad(f"{daemon.boot_id}: {other}", f"{again}{service.flag}")
        return
    if is_suspended(daemon.pid):
        evidence = f"{daemon.boot_id} (pid {daemon.pid}) is suspended: it accepts no connection"
        yield bad(evidence, f"kill -CONT {daemon.pid}")
        return
    door = RouterClient(service.home.home).door(service.name)
    spec = msgspec.structs.replace(probe_spec(service.settings, daemon), door=door)
    result = probe(daemon, spec, timeout_s=max(1.0, service.settings.health.timeout_s))
    evidence = f"{daemon.boot_id} (pid {daemon.pid}, port {daemon.port}): {result.reason or 'well'}"
    again = "turnout refresh" if daemon.owned else attach_again(daemon)
    yield ok(evidence) if result.ok else bad(evidence, f"{again}{service.flag}")


def check_strays(_context: Context, service: ServiceContext) -> Iterator[CheckResult]:
    """Processes that turnout started and nothing names any more, and what outlives a daemon that has ended.

    A router has the former stopped within seconds, the latter with the next daemon or `turnout down`.
    """
    known = set(service.snapshot.daemons) | service.snapshot.deployment.named if service.snapshot else set[str]()
    # what a registry that another service has, or that cannot be read, does not say, is no proof against a daemon
    unproven = service.is_taken or (service.snapshot is None and service.registry.exists())
    for boot_id, record in read_records(service.home.records).items():
        daemon_lives = record.ended is None and is_alive(record.identity)
        if not daemon_lives:
            yield from _orphans(record)
        elif boot_id not in known and not unproven:
            pid = record.identity.pid
            started = f"{boot_id} (pid {pid}, {command_of(pid)}) was started by turnout"
            yield warn(f"{started}, and the registry does not know it", f"kill {pid}", partial(_end, record))


def _orphans(record: SpawnRecord) -> Iterator[CheckResult]:
    if not record.has_remains:
        return
    with closing(processes_of(Boot(record.boot_id, None, record.shim))) as found:
        pids = [handle.identity.pid for handle in found.handles]
    if pids:
        left = ", ".join(f"pid {pid} ({command_of(pid) or 'command unknown'})" for pid in pids[:SHOWN_REMAINS])
        more = f" and {len(pids) - SHOWN_REMAINS} more" if len(pids) > SHOWN_REMAINS else ""
        evidence = f"{record.boot_id} has ended, and left behind: {left}{more}"
        yield warn(evidence, f"kill {' '.join(map(str, pids))}", partial(_end_orphans, record))


def check_copied(context: Context) -> Iterator[CheckResult]:
    """Whether the home is a copy: its records name processes of the original, which turnout leaves alone."""
    directories = [context.home.root, *(service.home.records for service in context.services)]
    pids = sorted(record.identity.pid for directory in directories for record in foreign_records(directory).values())
    if pids:
        copy = "this home is a copy: its records name processes of the original home, which turnout leaves alone"
        hint = "turnout up, with an address of its own (--listen) while the original runs"
        yield warn(f"{copy}: pid {', '.join(map(str, pids))}", hint)


def check_locks(context: Context, service: ServiceContext) -> Iterator[CheckResult]:
    """The processes that keep verbs and writes from going on."""
    lifecycle = service.home.root / LOCK
    registry = service.registry.with_name(f"{service.registry.name}.lock")
    for path, lock in ((lifecycle, "the lifecycle lock"), (registry, "the registry's lock")):
        pid = holder_pid(path, proc=context.proc)
        if not pid:
            continue
        holder = f"pid {pid} ({command_of(pid) or 'command unknown'})"
        if is_suspended(pid):
            yield bad(f"{holder} has {lock} and is suspended", f"kill -CONT {pid}")
            continue
        since = LifecycleLock(service.home.root, timeout_s=1.0, verb="doctor").holder().since
        held_s = context.clock() - since if since and path == lifecycle else 0.0
        if held_s > HELD_LONG_S:
            yield warn(f"{holder} has had {lock} for {held_s:.0f} s", f"kill {pid}")
        else:
            yield ok(f"{holder} has {lock}")


def _end(record: SpawnRecord) -> None:
    """Ask it to end, proven to be the very process that was started."""
    with ProcessHandle.open(record.identity) as handle:
        handle.signal(signal.SIGTERM)
        handle.wait(END_TIMEOUT_S)


def _end_orphans(record: SpawnRecord) -> None:
    """Ask what a dead daemon left behind to end."""
    deadline = time.monotonic() + END_TIMEOUT_S
    with closing(processes_of(Boot(record.boot_id, None, record.shim))) as found:
        for handle in found.handles:
            with suppress(ProcessLookupError, PermissionError):
                handle.signal(signal.SIGTERM)
        for handle in found.handles:
            handle.wait(deadline - time.monotonic())


def _state(pid: int) -> str:
    with suppress(ProcessLookupError, PermissionError):
        return state_of(pid)
    return ""
