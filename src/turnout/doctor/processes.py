"""What runs: keeper, router, daemons, strays; and who holds the locks."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from functools import partial

from turnout import __version__
from turnout.core.model import Daemon, Desired, Snapshot
from turnout.doctor.finding import Found, bad, ok, warn
from turnout.doctor.scene import Scene, Subject
from turnout.errors import TurnoutError
from turnout.service import Service, probe_spec
from turnout.status import service_status
from turnout.system.examine import examine
from turnout.system.flock import command_of, holder_pid
from turnout.system.lifecycle_lock import LifecycleLock
from turnout.system.probe import probe
from turnout.system.process import ProcessHandle, is_alive, is_suspended, state_of
from turnout.system.spawn_record import SpawnRecord, read_records

HELD_LONG_S = 600.0


def check_keeper(scene: Scene) -> Iterator[Found]:
    """Who holds the listeners and brings a dead router back."""
    if scene.keeper:
        if scene.keeper.version == __version__:
            yield ok("keeper", f"pid {scene.keeper.pid}, version {scene.keeper.version}")
        else:
            yield warn(
                "keeper",
                f"pid {scene.keeper.pid} is of version {scene.keeper.version}, this is {__version__}",
                "turnout down && turnout up",
            )
        return
    holder = holder_pid(scene.home.keeper_lock, proc=scene.proc)
    if holder and is_suspended(holder):
        yield bad("keeper", f"pid {holder} is suspended and answers nobody", f"kill -CONT {holder}")
    elif scene.router_processes:
        yield warn("keeper", "none: a router that dies would not come back, nor would its address", "turnout up")
    elif holder:
        yield bad("keeper", f"pid {holder} ({command_of(holder)}) has its lock, and does not answer", f"kill {holder}")
    else:
        yield ok("keeper", "none, and nothing that needs one")


def check_router(scene: Scene) -> Iterator[Found]:
    """Alive, answering, and of this version."""
    router, why = scene.asked_router
    if router is not None:
        version, pid = router.get("version"), router.get("pid")
        if version == __version__:
            yield ok("router", f"pid {pid}, version {version}")
        else:
            what = f"pid {pid} is of version {version}, this is {__version__}"
            yield warn("router", what, "turnout router --replace")
        return
    for record in scene.router_processes:
        pid = record.identity.pid
        if is_suspended(pid):
            yield bad("router", f"pid {pid} is suspended: clients wait, and nobody answers them", f"kill -CONT {pid}")
        else:
            yield bad("router", f"pid {pid} runs and is silent: {why}", "turnout up")
    if not scene.router_processes:
        yield ok("router", "none runs")


def check_services(scene: Scene) -> Iterator[Found]:
    """Each service as ``status`` judges it."""
    for subject in scene.subjects:
        if subject.settings is None or not subject.home.settings.is_file():
            continue
        try:
            found = examine(subject.registry)
            if found.damaged or not found.exists:
                continue  # the registry's own check says so, and reading it here would keep a copy aside
            status = service_status(Service.open(subject.home, subject.settings), scene.router)
        except TurnoutError:
            continue
        for problem in status.problems:
            make = bad if problem.severity == "bad" else warn
            yield make("service", problem.what, problem.mend or "turnout status", service=subject.name)
        if not status.problems:
            block = status.deployment
            what = f"{status.desired}, generation {block.generation}, {block.state}"
            yield ok("service", what, service=subject.name)


def check_daemons(scene: Scene) -> Iterator[Found]:
    """Whether what the registry names is that process, listens where it says, and accepts."""
    for subject in scene.subjects:
        snapshot = subject.snapshot
        if snapshot is None or subject.settings is None:
            continue
        for daemon in (snapshot.active, snapshot.old):
            if daemon is None:
                continue
            if daemon is snapshot.active:
                yield from _active(subject, daemon, snapshot)
            elif not is_alive(daemon.identity):
                what = f"{daemon.boot_id}, to which a rollback would go, is dead: there is no way back in this window"
                yield warn("daemons", what, f"turnout history{subject.flag}", service=subject.name)


def _active(subject: Subject, daemon: Daemon, snapshot: Snapshot) -> Iterator[Found]:
    assert subject.settings is not None
    if not is_alive(daemon.identity):
        if snapshot.deployment.desired is Desired.STOPPED:
            return
        gone = _state(daemon.pid) in {"", "Z", "X"}
        other = f"pid {daemon.pid} is gone" if gone else f"pid {daemon.pid} is another process by now"
        yield bad("daemons", f"{daemon.boot_id}: {other}", f"turnout up{subject.flag}", service=subject.name)
        return
    if is_suspended(daemon.pid):
        what = f"{daemon.boot_id} (pid {daemon.pid}) is suspended: it accepts nobody"
        yield bad("daemons", what, f"kill -CONT {daemon.pid}", service=subject.name)
        return
    result = probe(daemon, probe_spec(subject.settings, daemon), timeout_s=max(1.0, subject.settings.health.timeout_s))
    if result.ok:
        what = f"{daemon.boot_id} (pid {daemon.pid}, port {daemon.port}): {result.reason or 'well'}"
        yield ok("daemons", what, service=subject.name)
    else:
        what = f"{daemon.boot_id} (pid {daemon.pid}, port {daemon.port}): {result.reason}"
        yield bad("daemons", what, f"turnout refresh{subject.flag}", service=subject.name)


def check_strays(scene: Scene) -> Iterator[Found]:
    """Processes that turnout started and nothing names any more. A router has them stopped within seconds."""
    for subject in scene.subjects:
        known = set(subject.snapshot.daemons) | subject.snapshot.deployment.named if subject.snapshot else set[str]()
        strays = [
            record
            for boot_id, record in read_records(subject.home.records).items()
            if boot_id not in known and record.ended is None and is_alive(record.identity)
        ]
        for record in strays:
            pid = record.identity.pid
            yield warn(
                "strays",
                f"{record.boot_id} (pid {pid}, {command_of(pid)}) was started by turnout, and the registry does not"
                " know it",
                f"kill {pid}",
                service=subject.name,
                fix=partial(_end, record),
            )


def check_locks(scene: Scene) -> Iterator[Found]:
    """Who keeps verbs and writes from going on."""
    for subject in scene.subjects:
        for path, what in (
            (subject.home.root / "lifecycle.lock", "the lifecycle lock"),
            (subject.registry.with_name(f"{subject.registry.name}.lock"), "the registry's lock"),
        ):
            pid = holder_pid(path, proc=scene.proc)
            if not pid:
                continue
            who = f"pid {pid} ({command_of(pid) or 'command unknown'})"
            if is_suspended(pid):
                yield bad("locks", f"{who} has {what} and is suspended", f"kill -CONT {pid}", service=subject.name)
                continue
            since = LifecycleLock(subject.home.root, timeout_s=1.0, verb="doctor").holder().since
            held_s = scene.clock() - since if since and path.name == "lifecycle.lock" else 0.0
            if held_s > HELD_LONG_S:
                told = f"{who} has had {what} for {held_s:.0f} s"
                yield warn("locks", told, f"kill {pid}", service=subject.name)
            else:
                yield ok("locks", f"{who} has {what}", service=subject.name)


def _end(record: SpawnRecord) -> None:
    """Ask it to end, proven to be the very process that was started."""
    with ProcessHandle.open(record.identity) as handle:
        handle.signal(signal.SIGTERM)
        handle.wait(5.0)


def _state(pid: int) -> str:
    try:
        return state_of(pid) if pid > 0 else ""
    except (ProcessLookupError, PermissionError):
        return ""
