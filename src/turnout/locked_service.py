"""One service under its lifecycle lock, and the steps that its verbs are made of."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Self

from turnout.admin import RouterClient
from turnout.carrier import is_abandoned
from turnout.choice import wanted_build
from turnout.config import Wanted, dump_settings
from turnout.core.deployment import abort_deploy, deactivate, set_desired
from turnout.core.membership import register_daemon
from turnout.core.model import Cause, Daemon, Desired, DrainCause, Snapshot, State
from turnout.core.outcome import Outcome, must_hold
from turnout.core.policy import abandoned
from turnout.core.slots import source_of
from turnout.core.step import OnStep, Step
from turnout.daemon_naming import daemon_name
from turnout.errors import CandidateError, NotRunningError, SpawnError, TimedOutError, TurnoutError
from turnout.ground import POLL_S, ROUTER_TIMEOUT_S, Ground
from turnout.recreate import RecreateRun
from turnout.rollout import RolloutRun, Switched
from turnout.service import Service
from turnout.silent_keeper import SILENT_AFTER_S
from turnout.system.builds import Build
from turnout.system.files import Files, write_durably
from turnout.system.home import Home
from turnout.system.lifecycle_lock import Holder, LifecycleLock
from turnout.system.process import is_alive
from turnout.system.spawn import resolve_command
from turnout.system.spawn_record import prune_records, read_records
from turnout.verdict import serving


@dataclass(frozen=True, slots=True)
class Done:
    """What a verb did, in one line for people; ``changed`` False: it was so already."""

    text: str
    changed: bool = True
    switched: Switched | None = None


class LockedService:
    """One service in the hands of one verb. Owns the lifecycle lock and the line to the keeper while open.

    Args:
        home: the state directory.
        wanted: the service's settings and build, as configured.
        verb: the name by which a waiting verb will know this one.
        lock_timeout_s: seconds to wait for another verb, 0.1 or more.
        automatic: no person asks: what is stopped stays so, and `up` deploys with caution (:mod:`core.automatic`).
        from_router: it is the router that asks, or the keeper: besides, no keeper is started.
        on_step: called with each step before it is taken.
        on_wait: called once with the holder when the lock has to be waited for.
        on_slow: told what takes so long that clients may feel it.
    """

    def __init__(
        self,
        home: Home,
        wanted: Wanted,
        verb: str,
        *,
        lock_timeout_s: float,
        automatic: bool = False,
        from_router: bool = False,
        on_step: OnStep = lambda _step, _text: None,
        on_wait: Callable[[Holder], None] | None = None,
        on_slow: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self.home = home
        self.wanted: Wanted = wanted
        self.service = Service.open(home.service(wanted.settings.name), wanted.settings)
        self.router = RouterClient(home)
        self._verb = verb
        self._on_step = on_step
        self._on_wait = on_wait
        self._on_slow = on_slow
        self._lock_timeout_s = lock_timeout_s
        self._lock: LifecycleLock | None = None
        self._automatic = automatic
        self._starts_keeper = not from_router
        self._takes_over = False
        self._ground = Ground(home, wanted, starts_keeper=self._starts_keeper)

    def __enter__(self) -> Self:
        self.service.home.create()
        lock = LifecycleLock(
            self.service.home.root,
            timeout_s=self._lock_timeout_s,
            verb=self._verb,
            on_wait=self._on_wait,
            wish=self._wish(),
            patience_s=self._patience_s,
        )
        lock.__enter__()
        self._lock = lock
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ground.close()
        self.unlock()

    def _wish(self) -> str:
        """What another verb may have made so by the time this one gets the lock; only `up` is content with that."""
        if self._verb != "up" or not self._starts_keeper:  # the router asks again, and must not be kept waiting
            return ""
        build = wanted_build(self.service, self.wanted, required=False) or self.service.builds.latest()
        return f"up {build.id if build else ''}"

    @property
    def _patience_s(self) -> float:
        """The time that an `up` may take by itself: so long its like waits for it."""
        settings = self.service.settings
        return ROUTER_TIMEOUT_S + settings.stop_grace_s + settings.start_timeout_s

    def unlock(self) -> None:
        """Let other verbs in; what comes after (watching the window) changes nothing."""
        if self._lock:
            self._on_step(Step.UNLOCK, "")
            self._lock.__exit__(None, None, None)
            self._lock = None

    # -- steps of the verbs ------------------------------------------------------------------------------------------

    def _want(self, wanted: Wanted) -> None:
        """Go on with other settings or another build than was asked for."""
        if wanted is not self.wanted:
            self._ground.close()
            self.wanted = wanted
            self.service = Service.open(self.service.home, wanted.settings)
            self._ground = Ground(self.home, wanted, starts_keeper=self._starts_keeper)

    def _settle_places(self) -> None:
        """A keeper that found the daemons alone at the fixed address gave them other places in their group."""
        registry, records = self.service.registry, read_records(self.service.home.records)
        for boot_id, daemon in registry.read().snapshot.daemons.items():
            record = records.get(boot_id)
            source = source_of(record.slot) if record and record.listener_inode else daemon.source
            if source != daemon.source:
                registry.update(partial(register_daemon, daemon=replace(daemon, source=source)))

    def _prepare(self, *, listen: bool = True, rolls: bool = False) -> Snapshot:
        """Keeper, listener, router, and a registry without the rollout of a dead owner.

        Args:
            listen: have all of it up.
            rolls: a rollout follows, unless something serves already.
        """
        service = self.service
        if listen:
            try:
                self._ground.check()
            except SpawnError as error:
                raise self._and_who_serves(error) from error
        before = service.home.settings.read_bytes() if service.home.settings.exists() else None
        write_durably(Files(), service.home.settings, dump_settings(service.settings))
        if listen:
            try:
                self._ground.lay()
            except BaseException:
                if before is not None:  # what does not listen as it says is not in force
                    write_durably(Files(), service.home.settings, before)
                raise
            self._settle_places()
        snapshot = service.registry.read().snapshot
        block = snapshot.deployment
        prune_records(service.home.records, spare=snapshot.daemons)
        if is_abandoned(block, service.home, locked=True):
            # where nothing serves clients are held: whoever rolls out next takes over in one write
            self._takes_over = rolls and not block.active_boot_id
            if not self._takes_over:
                aborted = service.registry.update(
                    lambda snap: abort_deploy(snap, block.generation, reason=abandoned(block))
                )
                snapshot = aborted.snapshot
                if not aborted.applied:  # the router has seen it too
                    return snapshot
            service.journal.write(
                "abort",
                generation=block.generation,
                revision=snapshot.deployment.revision,
                reason=abandoned(block),
                owner_pid=block.owner.pid,
            )
            service.builds.set_result(block.generation, "aborted")
        return snapshot

    def _settled(self, snapshot: Snapshot) -> Snapshot:
        """In a window whose daemon has died the router is about to put the previous one back: let it."""
        deadline = time.monotonic() + SILENT_AFTER_S
        while snapshot.deployment.state is State.SWITCHED and time.monotonic() < deadline:
            active = snapshot.active
            if active is None or is_alive(active.identity) or snapshot.old is None:
                break
            if not is_alive(snapshot.old.identity):
                break
            time.sleep(POLL_S)
            snapshot = self.service.registry.read().snapshot
        return snapshot

    def _run(self) -> RolloutRun:
        kind = RecreateRun if self.service.settings.strategy == "recreate" else RolloutRun
        return kind(self.service, self._ground, self.router, on_step=self._on_step, on_slow=self._on_slow)

    def _roll(
        self,
        build: Build,
        cause: Cause,
        *,
        supersede: bool = False,
        expected_generation: int | None = None,
        expected_active: str | None = None,
    ) -> Done:
        try:
            resolve_command(build.command, build.cwd, {**os.environ, **build.env})
            switched = self._run().run(
                build,
                cause,
                supersede=supersede or self._takes_over,
                expected_generation=expected_generation,
                expected_active=expected_active,
            )
        except (CandidateError, SpawnError) as error:
            told = self._and_who_serves(error)
            self._ground.take_back()
            raise told from error
        except BaseException:
            self._ground.take_back()
            raise
        did = {Cause.START: "started", Cause.REFRESH: "refreshed", Cause.ROLLBACK: "rolled back to"}
        text = f"{did.get(cause, 'switched to')} {daemon_name(switched.daemon)} as generation {switched.generation}"
        return Done(f"{text}, behind {self._where()}", switched=switched)

    def _deactivate(self, active: Daemon, reason: str, cause: DrainCause) -> None:
        block = self.service.registry.read().snapshot.deployment
        outcome = self.service.registry.update(
            lambda snap: deactivate(snap, block.generation, active.boot_id, reason=reason, cause=cause)
        )
        must_hold(outcome)
        self.service.journal.write(
            "deactivate", generation=block.generation, revision=outcome.deployment.revision, reason=reason
        )
        self._applied(outcome.deployment.revision)

    def _applied(self, revision: int) -> None:
        with suppress(NotRunningError, TimedOutError, OSError):  # it polls the file anyway
            self.router.wait_applied(self.service.name, revision, timeout_s=SILENT_AFTER_S)

    def _and_who_serves(self, error: TurnoutError) -> TurnoutError:
        """The same error with what became of the service, which is what matters most."""
        told = f"{error.message}; {serving(self.service)}"
        return type(error)(told, hint=error.hint, detail=error.detail)

    def _say_desired(self, desired: Desired) -> None:
        """Keep what is wanted; a paused service stays paused until somebody resumes or stops it."""

        def change(snap: Snapshot) -> Outcome:
            paused = snap.deployment.desired is Desired.PAUSED and desired is Desired.RUNNING
            return set_desired(snap, Desired.PAUSED if paused else desired)

        self.service.registry.update(change)

    def _owned_left(self) -> list[Daemon]:
        return [d for d in self.service.registry.read().snapshot.daemons.values() if d.owned]

    def _wait_gone(self, timeout_s: float, *, ended: bool = False) -> None:
        """Until no daemon of ours has an entry; ``ended``: until none lives, since only a router forgets entries."""
        deadline = time.monotonic() + timeout_s
        while left := [daemon for daemon in self._owned_left() if not ended or is_alive(daemon.identity)]:
            if time.monotonic() > deadline:
                names = ", ".join(daemon_name(daemon) for daemon in left)
                raise TimedOutError(f"still there after {timeout_s:g} s: {names}", hint="turnout status")
            time.sleep(POLL_S)

    def _drain_out(self) -> None:
        """Give what is connected the drain grace, then stop the daemons whatever they still have."""
        settings = self.service.settings
        with suppress(TimedOutError):
            self._wait_gone(settings.drain_grace_s, ended=True)
        keeper = self._ground.keeper
        for daemon in self._owned_left():
            keeper.stop(
                self.service.name, daemon.boot_id, stop_signal=settings.stop_signal, grace_s=settings.stop_grace_s
            )
        with suppress(TimedOutError):  # their entries go with the router's next look; they are dead either way
            self._wait_gone(2.0)

    def _something_runs(self) -> bool:
        return self._ground.runs() or any(is_alive(daemon.identity) for daemon in self._owned_left())

    def _must_run(self) -> None:
        if not self._something_runs():
            raise NotRunningError(f"service {self.service.name} is not running", hint="turnout up")

    def _where(self) -> str:
        return ", ".join(str(address) for address in self.service.settings.listen)
