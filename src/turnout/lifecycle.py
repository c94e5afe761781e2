"""What the lifecycle verbs do: each under the service's lock, each leaving a state from which the next one goes on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from turnout.admin import RouterClient
from turnout.caution import Caution
from turnout.choice import build_to_return_to, last_good_build, wanted_build
from turnout.config import Address, Wanted, dump_settings
from turnout.core.deployment import abort_deploy, deactivate, rollback_active, set_desired
from turnout.core.membership import hasten_drain
from turnout.core.model import Cause, Daemon, Desired, DrainCause, Identity, Snapshot, State
from turnout.core.outcome import Outcome, explain
from turnout.errors import (
    CandidateError,
    ConflictError,
    NotRunningError,
    SpawnError,
    TimedOutError,
    TurnoutError,
    UsageError,
)
from turnout.ground import POLL_S, ROUTER_TIMEOUT_S, SILENT_AFTER_S, Ground
from turnout.recreate import RecreateRun
from turnout.rollout import OnStep, RolloutRun, Step, Switched, attached_boot_id, daemon_name
from turnout.service import Service
from turnout.system.builds import Build
from turnout.system.files import Files, write_durably
from turnout.system.home import Home
from turnout.system.lifecycle_lock import Holder, LifecycleLock
from turnout.system.probe import probe
from turnout.system.process import identify, is_alive, provably_dead
from turnout.system.sockets import who_listens
from turnout.system.spawn import resolve_command
from turnout.system.spawn_record import prune_records
from turnout.verdict import serving


@dataclass(frozen=True, slots=True)
class Done:
    """What a verb did, in one line for people; ``changed`` False: it was so already."""

    text: str
    changed: bool = True
    switched: Switched | None = None


class Lifecycle:
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
            self.service.home.root, timeout_s=self._lock_timeout_s, verb=self._verb, on_wait=self._on_wait
        )
        lock.__enter__()
        self._lock = lock
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ground.close()
        self.unlock()

    def unlock(self) -> None:
        """Let other verbs in; what comes after (watching the window) changes nothing."""
        if self._lock:
            self._on_step(Step.UNLOCK, "")
            self._lock.__exit__(None, None, None)
            self._lock = None

    # -- verbs -------------------------------------------------------------------------------------------------------

    def up(self, *, supersede: bool = False, expected_generation: int | None = None) -> Done:
        """Make it so: keeper, router, and an active daemon of the wanted build."""
        caution = Caution(self.service, self.wanted, automatic=self._automatic)
        refused = ""
        if self._automatic:
            wanted, refused = caution.judge(self.service.registry.read().snapshot)
            self._want(wanted)
        with caution:
            done = self._make_so(supersede=supersede, expected_generation=expected_generation)
        runs = self._ground.other_plane()
        notes = f"; not deployed: {refused}" if refused else ""
        notes += f"; it runs on plane {runs} until: turnout router --replace" if runs else ""
        return replace(done, text=done.text + notes)

    def _want(self, wanted: Wanted) -> None:
        """Go on with other settings or another build than was asked for."""
        if wanted is not self.wanted:
            self._ground.close()
            self.wanted = wanted
            self.service = Service.open(self.service.home, wanted.settings)
            self._ground = Ground(self.home, wanted, starts_keeper=self._starts_keeper)

    def _make_so(self, *, supersede: bool, expected_generation: int | None) -> Done:
        snapshot = self._settled(self._prepare(rolls=True))
        active = snapshot.active
        build = wanted_build(self.service, self.wanted, required=active is None)
        barred = self.service.builds.quarantined(build.id) if build else None
        if active and is_alive(active.identity):
            same = build is None or not active.owned or active.build == build.id
            if same or barred:
                self._say_desired(Desired.RUNNING)
                but = "" if same else f"; the configured build was rolled back ({barred}), deploy --force insists on it"
                return Done(
                    f"{self.service.name} is up: {daemon_name(active)} behind {self._where()}{but}", changed=False
                )
            assert build is not None
            return self._roll(build, Cause.DEPLOY, supersede=supersede, expected_generation=expected_generation)
        if build is None or barred:
            build = last_good_build(self.service, self.wanted)
        supersede = supersede or snapshot.deployment.state is State.SWITCHED
        return self._roll(build, Cause.START, supersede=supersede, expected_generation=expected_generation)

    def start(self, *, unwell: str = "") -> Done:
        """Start the daemon of the build that was active last; never deploys another.

        ``unwell`` names the active daemon where that one is to be replaced, should it still fail its probe.
        """
        snapshot = self._settled(self._prepare(rolls=True))
        if self._automatic and snapshot.deployment.desired is Desired.STOPPED:
            return Done(f"{self.service.name} is to be {snapshot.deployment.desired}", changed=False)
        active = snapshot.active
        if active and is_alive(active.identity):
            if active.boot_id == unwell and snapshot.deployment.state is State.IDLE:
                return self._replace_unwell(active)
            self._say_desired(Desired.RUNNING)
            return Done(f"{self.service.name} runs already: {daemon_name(active)}", changed=False)
        supersede = snapshot.deployment.state is State.SWITCHED
        return self._roll(last_good_build(self.service, self.wanted), Cause.START, supersede=supersede)

    def _replace_unwell(self, active: Daemon) -> Done:
        """A new process of the same build; the old one serves until the switch, and gets no patience after it."""
        result = probe(active, self.service.probe_spec, timeout_s=self.service.settings.health.timeout_s)
        build = self.service.builds.get(active.build)
        if result.ok or build is None:
            return Done(f"{daemon_name(active)} is well again", changed=False)
        done = self._roll(build, Cause.REFRESH, expected_active=active.boot_id)
        outcome = self.service.registry.update(lambda snap: hasten_drain(snap, active.boot_id, DrainCause.FAILED))
        if outcome.applied:
            self._applied(outcome.deployment.revision)
        return done

    def deploy(self, *, force: bool = False, supersede: bool = False, expected_generation: int | None = None) -> Done:
        """A new candidate of the wanted build, whatever runs now."""
        build = wanted_build(self.service, self.wanted, required=True)
        assert build is not None
        reason = self.service.builds.quarantined(build.id)
        if reason and not force:
            raise ConflictError(
                f"build {build.id} is quarantined: {reason}",
                hint="change the build, or deploy it all the same: --force",
            )
        snapshot = self._settled(self._prepare(rolls=True))
        if snapshot.active and not is_alive(snapshot.active.identity):
            supersede = supersede or snapshot.deployment.state is State.SWITCHED
        with Caution(self.service, self.wanted, automatic=False):
            done = self._roll(build, Cause.DEPLOY, supersede=supersede, expected_generation=expected_generation)
        if reason:
            self.service.builds.pardon(build.id)
        return done

    def refresh(self) -> Done:
        """The running build again, as a new process."""
        self._must_run()
        snapshot = self._prepare()
        active = snapshot.active
        if active is None:
            raise NotRunningError(f"service {self.service.name} has no active daemon", hint="turnout start")
        build = self.service.builds.get(active.build)
        if build is None:
            raise UsageError(
                f"{daemon_name(active)} was not started by turnout", hint="restart it yourself, then attach it"
            )
        return self._roll(build, Cause.REFRESH, expected_active=active.boot_id)

    def rollback(self, generation: int | None) -> Done:
        """In the window back to the warm daemon by one write; else a new rollout of the recorded build.

        The router asks (``automatic``) where a window's daemon failed and the previous one is gone.
        """
        self._must_run()
        snapshot = self._prepare()
        block = snapshot.deployment
        old = snapshot.old
        failed = block.state is State.SWITCHED and block.health_fail_streak >= self.service.settings.health.failures
        if self._automatic and (not failed or block.desired is Desired.STOPPED):
            return Done("nothing is to be rolled back", changed=False)
        if generation is None and block.state is State.SWITCHED and old:
            result = probe(old, self.service.probe_spec, timeout_s=self.service.settings.health.timeout_s)
            if result.ok:
                outcome = self.service.registry.update(
                    lambda snap: rollback_active(snap, block.generation, old.boot_id, reason="by hand")
                )
                if not outcome.ok:
                    raise ConflictError(explain(outcome), hint="turnout status")
                self.service.builds.set_result(block.generation, "rolled_back")
                self._condemn(snapshot.active, old.build)
                self._applied(outcome.deployment.revision)
                return Done(f"rolled back to {daemon_name(old)}; generation {block.generation} is ended")
        build = build_to_return_to(self.service, snapshot, generation)
        done = self._roll(build, Cause.ROLLBACK, supersede=block.state is State.SWITCHED)
        if block.state is State.SWITCHED:
            self.service.builds.set_result(block.generation, "rolled_back")
        self._condemn(snapshot.active, build.id)
        return done

    def _condemn(self, left: Daemon | None, chosen: str) -> None:
        """A person went back: neither the router nor a client that asks goes forward to it again by itself."""
        builds = self.service.builds
        if self._automatic:  # the router has its own reason, and has written it
            return
        if left and left.build and left.build != chosen:
            builds.quarantine(
                left.build, "rolled back by hand", self.service.registry.read().snapshot.deployment.generation
            )
        builds.pardon(chosen)

    def attach(self, address: Address) -> Done:
        """A rollout to a daemon that something else started and owns."""
        if any(address.port == own.port for own in self.service.settings.listen):
            raise UsageError(f"{address} is the service's own address", hint="name the daemon's own port")
        self._prepare()
        holder = who_listens(address.host, address.port)
        if holder is None or not holder.listening:
            raise NotRunningError(f"nothing listens on {address}", hint="start the daemon first")
        identity = Identity()
        with suppress(ProcessLookupError, PermissionError):
            identity = identify(holder.pid) if holder.pid else identity
        daemon = Daemon(
            attached_boot_id(identity, address.port),
            host=address.host,
            port=address.port,
            identity=identity,
            start_ts=time.time(),
            last_seen_ts=time.time(),
        )
        switched = self._run().adopt(daemon)
        return Done(f"attached {daemon_name(daemon)} as generation {switched.generation}", switched=switched)

    def detach(self) -> Done:
        """Let an attached daemon go; it runs on."""
        active = self._prepare().active
        if active is None:
            raise NotRunningError("nothing is attached", hint="turnout status")
        if active.owned:
            raise UsageError(f"{daemon_name(active)} was started by turnout", hint="turnout stop")
        self._deactivate(active, "detached", DrainCause.REPLACED)
        return Done(f"detached {daemon_name(active)}; new connections are reset until something is attached or started")

    def stop(self) -> Done:
        """Stop the daemon; the fixed address stays and resets what comes."""
        self._must_run()
        snapshot = self._prepare()
        self._say_desired(Desired.STOPPED)
        active = snapshot.active
        if active is None:
            return Done(f"{self.service.name} is stopped", changed=False)
        self._deactivate(active, "stopped", DrainCause.STOPPED)
        self._wait_gone(self.service.settings.stop_grace_s + ROUTER_TIMEOUT_S)
        return Done(f"stopped {daemon_name(active)}")

    def pause(self) -> Done:
        """Hold new connections from here on; those that exist go on."""
        return self._turn(Desired.PAUSED, f"new connections to {self._where()} are held, at most {self._hold()}")

    def resume(self) -> Done:
        """Let the held connections go, and new ones come."""
        return self._turn(Desired.RUNNING, f"new connections to {self._where()} are served again")

    def _turn(self, desired: Desired, text: str) -> Done:
        self._must_run()
        service = self.service
        if service.registry.read().snapshot.deployment.desired is Desired.STOPPED:
            raise NotRunningError(f"service {service.name} is stopped", hint="turnout start")
        outcome = service.registry.update(lambda snap: set_desired(snap, desired))
        if not outcome.applied:
            return Done(f"it was so already: {text}", changed=False)
        block = outcome.deployment
        event = "pause" if desired is Desired.PAUSED else "resume"
        service.journal.write(event, generation=block.generation, revision=block.revision)
        self._applied(block.revision)
        return Done(text)

    def _hold(self) -> str:
        settings = self.service.settings
        return f"{settings.hold_max} of them for {settings.hold_timeout_s:g} s each"

    def drain(self, *, now: bool = False) -> Done:
        """Do not wait so long with what drains: cut at the next quiet moment, or at once."""
        self._must_run()
        snapshot = self.service.registry.read().snapshot
        named = snapshot.deployment.named
        draining = [daemon for daemon in snapshot.daemons.values() if daemon.draining and daemon.boot_id not in named]
        cause = DrainCause.STOPPED if now else DrainCause.HASTENED
        for daemon in draining:
            outcome = self.service.registry.update(
                lambda snap, boot_id=daemon.boot_id: hasten_drain(snap, boot_id, cause)  # type: ignore[misc]  # bound here
            )
            if outcome.applied:
                self._applied(outcome.deployment.revision)
        if not draining:
            return Done("nothing drains", changed=False)
        return Done(f"hastened: {', '.join(daemon_name(daemon) for daemon in draining)}")

    def down(self) -> Done:
        """Drain and stop all of it, the router too; other services of this home go on."""
        if not self._something_runs():
            return Done(f"{self.service.name} is down", changed=False)
        snapshot = self._prepare(listen=False)
        self._say_desired(Desired.STOPPED)
        keeper = self._ground.keeper
        if snapshot.active:
            self._deactivate(snapshot.active, "down", DrainCause.REPLACED)
        self._drain_out()
        if not keeper.unlisten(self.service.name):
            keeper.shutdown()
        return Done(f"{self.service.name} is down")

    # -- parts -------------------------------------------------------------------------------------------------------

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
        snapshot = service.registry.read().snapshot
        block = snapshot.deployment
        prune_records(service.home.records, spare=snapshot.daemons)
        if block.in_flight and provably_dead(block.owner):
            # where nothing serves clients are held: whoever rolls out next takes over in one write
            self._takes_over = rolls and not block.active_boot_id
            if not self._takes_over:
                snapshot = service.registry.update(
                    lambda snap: abort_deploy(snap, block.generation, reason="its owner died")
                ).snapshot
            service.journal.write(
                "abort",
                generation=block.generation,
                revision=snapshot.deployment.revision,
                reason="its owner died",
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
        if not outcome.ok:
            raise ConflictError(explain(outcome), hint="turnout status")
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
