"""What the lifecycle verbs do: each under the service's lock, each leaving a state from which the next one goes on."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from typing import Final

from turnout.caution import Caution
from turnout.choice import build_to_return_to, last_good_build, wanted_build
from turnout.config import Address
from turnout.core.deployment import rollback_active, set_desired
from turnout.core.membership import hasten_drain
from turnout.core.model import Cause, Daemon, Desired, DrainCause, Identity, State
from turnout.core.outcome import must_hold
from turnout.daemon_naming import attached_boot_id, daemon_name
from turnout.errors import ConflictError, NotRunningError, UsageError
from turnout.ground import ROUTER_TIMEOUT_S
from turnout.locked_service import Done, LockedService
from turnout.planes.pins import pins_of
from turnout.scrape_address import check_scrape, to_write, write_scrape
from turnout.system.probe import probe
from turnout.system.process import identify, is_alive
from turnout.system.sockets import who_listens

METRICS_TIMEOUT_S: Final = 3.0


class Lifecycle(LockedService):
    """The verbs. Opened, and closed, as a :class:`LockedService`."""

    def up(self, *, supersede: bool = False, expected_generation: int | None = None) -> Done:
        """Make it so: keeper, router, and an active daemon of the wanted build.

        A person's `up` also says where metrics are served; what is started by itself never fails over them.
        """
        scrape = None if self._automatic else to_write(self.home, self.wanted)
        if scrape:
            check_scrape(self.wanted, scrape, serves=self.router.metrics_address())
        caution = Caution(self.service, self.wanted, automatic=self._automatic)
        refused = ""
        if self._automatic:
            wanted, refused = caution.judge(self.service.registry.read().snapshot)
            self._want(wanted)
        with caution:
            done = self._make_so(supersede=supersede, expected_generation=expected_generation)
        unserved = ""
        if scrape:
            write_scrape(self.home, scrape)
            where = str(scrape.listen) if scrape.listen else None
            unserved = self.router.wait_metrics(where, timeout_s=METRICS_TIMEOUT_S)
        runs = self._ground.other_plane()
        notes = f"; not deployed: {refused}" if refused else ""
        notes += f"; it runs on plane {runs} until: turnout router --replace" if runs else ""
        notes += f"; metrics are not served: {unserved}" if unserved else ""
        return replace(done, text=done.text + notes)

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
        if supersede and self._automatic:  # it was decided before the switch, over the daemon that was active then
            return Done(f"{self.service.name} is observed: its checks decide", changed=False)
        return self._roll(last_good_build(self.service, self.wanted), Cause.START, supersede=supersede)

    def _replace_unwell(self, active: Daemon) -> Done:
        """A new process of the same build; the old one serves until the switch, and gets no patience after it."""
        result = probe(active, self.service.spec_of(active), timeout_s=self.service.settings.health.timeout_s)
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
            result = probe(old, self.service.spec_of(old), timeout_s=self.service.settings.health.timeout_s)
            if result.ok:
                outcome = self.service.registry.update(
                    lambda snap: rollback_active(snap, block.generation, old.boot_id, reason="by hand")
                )
                must_hold(outcome)
                self.service.journal.write(
                    "rollback",
                    generation=block.generation,
                    revision=outcome.deployment.revision,
                    boot_id=block.active_boot_id,
                    evidence="by hand",
                )
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
            proxy_protocol=self.service.settings.proxy_protocol,
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
            self._end_steering()
            return Done(f"{self.service.name} is down", changed=False)
        snapshot = self._prepare(listen=False)
        self._say_desired(Desired.STOPPED)
        keeper = self._ground.keeper
        if snapshot.active:
            self._deactivate(snapshot.active, "down", DrainCause.REPLACED)
        self._drain_out()
        if not keeper.unlisten(self.service.name):
            keeper.shutdown()
        self._end_steering()
        return Done(f"{self.service.name} is down")

    def _end_steering(self) -> None:
        """The router ends what it had the kernel do; one that was killed cannot."""
        pins = pins_of(self.home.root, self.service.name)
        if pins and pins.exist():
            with suppress(OSError):  # doctor names what is left
                pins.remove()
