"""One service inside the router: its plane, its registry, its supervisor and its drainer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import socket
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, replace
from typing import Any, Final

import msgspec

from turnout.automatic import run_verb
from turnout.cold_rollback import ColdRollback
from turnout.config import Settings, load_settings
from turnout.core.deployment import abort_deploy, deactivate
from turnout.core.membership import forget_daemon
from turnout.core.model import Daemon, Desired, DrainCause, Snapshot, State
from turnout.core.outcome import Outcome
from turnout.core.policy import RESTART_DELAYS_S
from turnout.core.proxy_protocol import LOCAL_HEADER
from turnout.deploy_world import DeployWorld
from turnout.deployer import Deployer
from turnout.drainer import Drainer
from turnout.errors import ConflictError, LockTimeoutError, TurnoutError
from turnout.keeper_link import KeeperLink
from turnout.leaving import Leaving
from turnout.planes.plane import Carried, Plane, Target
from turnout.reloading import NEEDS, Reload, Reloading
from turnout.restarter import Restarter, Started
from turnout.service import Service, policy
from turnout.status import deployment_status
from turnout.supervisor import Change, Supervisor
from turnout.system.home import Home, ServiceHome
from turnout.system.loading import Read
from turnout.system.notice import Notice
from turnout.system.probe import ProbeResult, probe
from turnout.system.process import provably_dead
from turnout.system.sockets import established_to
from turnout.system.spawn_record import read_records
from turnout.system.watcher import Watcher
from turnout.troubles import Troubles

POLL_S: Final = 0.02
HINTED_POLL_S: Final = 0.25  # where the kernel tells of changes, looking is only for what it may have missed
HINTS_AGAIN_S: Final = 1.0
SETTINGS_EVERY_S: Final = 1.0
BUSY_S: Final = 0.1  # a file that changed a moment ago may change again behind the same time stamp
# A daemon that refuses while nothing is on its way is dead, and its clients are told so; but the switch away from it
# have been written this very moment, so one poll of the registry is waited out.
REFUSED_PATIENCE_S: Final = 0.25
UNREADABLE_AGAIN_S: Final = 1.0
KEEP_EVERY_S: Final = 1.0
TROUBLES_S: Final = 1.0
FAILED_GRACE_S: Final = 5.0
OWNER_LOOK_S: Final = 0.25
log = logging.getLogger("turnout.router")


class Served:
    """Owns the plane and the tasks of one service; the loop and the executors belong to the router.

    It is the world of its supervisor and drainer: they decide, and everything they touch is here.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        executor: Executor,
        scribe: Executor,
        home: Home,
        name: str,
        plane: Plane,
        keeper: KeeperLink,
    ) -> None:
        self._loop = loop
        self._executor = executor
        self._scribe = scribe
        self._keeper = keeper
        self.plane = plane
        own = home.service(name)
        self._home = home
        self.service = Service.open(own, _settings(own))
        # until the registry is read, nobody is turned away: a router that follows a dead one finds clients waiting
        plane.point_at(None, patience_s=self.service.settings.hold_timeout_s)
        self._watcher = Watcher(self.service.registry.path)
        self._settings_watcher = Watcher(own.settings)
        self._settings_watcher.poll()
        self._settings_at = 0.0
        self._reloading = Reloading(self.service.settings, own.settings.stat().st_mtime_ns)
        self._reloaded = Reload(self.service.settings)
        self.snapshot = Snapshot()
        self.applied_revision = -1
        self.sockets: list[socket.socket] = []
        self._waiters: list[tuple[int, Callable[[int], None]]] = []
        self._applying = asyncio.Lock()
        self._deciding = 0
        self._busy = 0  # what must not be broken off: a write, and what is told of it
        self._idle = asyncio.Event()
        self._leads = asyncio.Event()
        self._leaves = asyncio.Event()
        self._rests = asyncio.Event()
        self._leaving: Leaving | None = None
        self._look_at = math.inf
        self._kept_at = -math.inf
        self.supervisor = Supervisor(self, lambda: self.service.settings)
        self.drainer = Drainer(self, lambda: self.service.settings)
        self.restarter = Restarter(self)
        self.deployer = Deployer(DeployWorld(loop, executor, home, self), lambda: self.service.settings)
        self.cold_rollback = ColdRollback(self)
        self._news = asyncio.Event()
        self._notice: Notice | None = None
        self._busy_until = 0.0
        self._hints_at = 0.0
        self._headers: dict[str, bool] = {}  # by boot
        self._troubles = Troubles()
        self._troubles_at = 0.0
        self._poller: asyncio.Handle = loop.call_soon(self._poll)

    async def run(self) -> None:
        """Follow the registry; between :meth:`lead` and :meth:`rest` also decide; until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow())
                await self._leads.wait()
                deciding = [
                    group.create_task(self._keep_running(self.supervisor.run, "supervisor")),
                    group.create_task(self._keep_running(self.drainer.run, "drainer")),
                    group.create_task(self._keep_running(self.restarter.run, "restarter")),
                    group.create_task(self._keep_running(self.deployer.run, "deployer")),
                    group.create_task(self._keep_running(self.cold_rollback.run, "cold rollback")),
                    group.create_task(self._watch_owner()),
                ]
                await self._leaves.wait()
                while self._busy:  # bounded by the time-out of the registry's lock
                    await self._idle.wait()
                for task in deciding:
                    task.cancel()
                self._leads.clear()
                self._rests.set()
        finally:
            self._rests.set()
            self._close()

    def take(self, sockets: Sequence[socket.socket]) -> None:
        """Accept on these and on no other listeners, now or once this router leads; they are owned here."""
        before = {sock.getsockname()[:2]: sock for sock in self.sockets}
        wanted = {sock.getsockname()[:2]: sock for sock in sockets}
        self.sockets = [before.get(address, sock) for address, sock in wanted.items()]
        for address, sock in before.items():
            if address not in wanted:
                self.plane.remove_listener(address)
                sock.close()
        for address, sock in wanted.items():
            if address in before:
                sock.close()  # another descriptor of the same listener
            elif self._leads.is_set():
                self.plane.add_listener(sock)

    @property
    def ready(self) -> bool:
        """The registry was read, and the plane points where it says."""
        return self.applied_revision >= 0

    def lead(self) -> None:
        """Accept, check, drain, restart from here on."""
        if not self._leads.is_set():
            self._leads.set()
            for sock in self.sockets:
                self.plane.add_listener(sock)
            self._news.set()

    async def rest(self) -> None:
        """Decide nothing any more; a write under way is brought to its end, with what is told of it."""
        self._leaves.set()
        await self._rests.wait()

    def leave(self) -> None:
        """Accept nothing any more, and let those that are here go."""
        self.plane.stop_accepting()
        for sock in self.sockets:
            sock.close()
        self.sockets.clear()
        self._leaving = Leaving(self.plane, lambda: self.service.settings, self._loop.time())
        self._point()

    def left(self) -> int:
        """How many clients a router that leaves still has; those whose time is up are cut."""
        return self._leaving.step(self.snapshot, self._loop.time()) if self._leaving else 0

    def _close(self) -> None:
        self._poller.cancel()
        self._drop_notice()
        self.plane.close()
        for sock in self.sockets:
            sock.close()
        self.sockets.clear()

    # -- following the registry --------------------------------------------------------------------------------------

    def _poll(self) -> None:
        """Look by mtime: often while something happens or nobody gives a hint, else now and then."""
        now = self._loop.time()
        if now >= self._troubles_at:
            self._troubles_at = now + TROUBLES_S
            for line in self._troubles.look(self.plane.counters, now):
                log.warning("%s: %s", self.service.name, line)
        if self._watcher.poll():
            self._busy_until = now + BUSY_S
            self._news.set()
        elif now >= self._look_at:
            self._news.set()
        if now >= self._settings_at:
            self._settings_at = now + SETTINGS_EVERY_S
            self._reload()
        if now >= self._hints_at and (self._notice is None or not self._notice.alive):
            self._hints_at = now + HINTS_AGAIN_S
            self._watch_for_hints()
        hinted = self._notice is not None and now >= self._busy_until
        pause_s = min(HINTED_POLL_S, max(POLL_S, self._look_at - now)) if hinted else POLL_S
        self._poller.cancel()
        self._poller = self._loop.call_later(pause_s, self._poll)

    def _watch_for_hints(self) -> None:
        self._drop_notice()
        self._notice = Notice.of(self.service.registry.path)
        if self._notice:
            self._loop.add_reader(self._notice.fileno(), self._hinted)

    def _hinted(self) -> None:
        if self._notice and self._notice.read():
            self._poll()

    def _drop_notice(self) -> None:
        if self._notice:
            self._loop.remove_reader(self._notice.fileno())
            self._notice.close()
            self._notice = None

    async def _follow(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            await self.look()

    async def look(self) -> None:
        """Read the registry and apply it; a file that cannot be used leaves everything as it is."""
        async with self._applying:
            self._look_at = math.inf
            self._reload()
            try:
                read = await self._loop.run_in_executor(self._executor, self.service.registry.read)
            except TurnoutError as error:
                log.warning("%s: %s", self.service.name, error.message)
                self._look_at = self._loop.time() + UNREADABLE_AGAIN_S
                return
            self._apply(read.snapshot)
            if not read.settled and self._leads.is_set() and not self._leaves.is_set():
                with self._unbroken():
                    await self._settle(read)

    async def _settle(self, read: Read) -> None:
        """Put back what a writer without the lock undid of the deployment, and keep what it rightly said."""
        now = self._loop.time()
        if not (read.repairs or read.ahead) and now < self._kept_at + KEEP_EVERY_S:
            self._look_at = self._kept_at + KEEP_EVERY_S  # heartbeats come often, and each copy is synced to disk
            return
        try:
            foreign = await self._loop.run_in_executor(
                self._executor, lambda: self.service.registry.settle(lock_timeout_s=0)
            )
        except LockTimeoutError:  # a verb is writing, and merges
            self._look_at = now + POLL_S
        except TurnoutError as error:
            log.warning("%s: %s", self.service.name, error.message)
            self._look_at = now + UNREADABLE_AGAIN_S
        else:
            self._kept_at = now
            for what in foreign.repairs:
                log.warning("%s: %s", self.service.name, what)

    def reload(self) -> None:
        """SIGHUP: read the configuration file again, whatever its time stamp says."""
        if self._reloading.follows:
            self._reload_file()
        else:
            log.info("%s: there is no configuration file; its settings are those of the last verb", self.service.name)

    def _reload(self) -> None:
        """Take changed settings over; those that this version cannot read leave what is, and switches go on."""
        if self._settings_watcher.poll():
            self._reload_settings()
        if self._reloading.is_due():
            self._reload_file()

    def _reload_settings(self) -> None:
        """A verb wrote them: they are what counts, whole."""
        before = self.service.registry.path
        home = self.service.home
        try:
            self.service = Service.open(home, _settings(home))
            self._reloading = Reloading(self.service.settings, home.settings.stat().st_mtime_ns)
            later = () if self.service.settings.plane in {"auto", self.plane.name} else (f"plane: {NEEDS['plane']}",)
            self._reloaded = Reload(self.service.settings, later=later)
        except (TurnoutError, OSError) as error:
            log.warning("%s: the old settings stay: %s", self.service.name, error)
            return
        self._take_over()
        if self.service.registry.path != before:
            self._watcher = Watcher(self.service.registry.path)
            self._drop_notice()
            self._hints_at = 0.0

    def _take_over(self) -> None:
        """Hold the plane to the settings as they are now."""
        self.plane.apply(policy(self.service.settings))
        if self.ready:
            self._point()

    def _reload_file(self) -> None:
        """A person wrote them, with no verb so far."""
        done = self._reloaded = self._reloading.reload(self.service.settings)
        name = self.service.name
        if done.changed:
            self.service = Service.open(self.service.home, done.settings)
            self._take_over()
        if done.error:
            log.warning("%s: the old settings stay: %s", name, done.error)
        else:
            log.info("%s: reloaded: %s", name, ", ".join(done.changed) or "nothing that can change has changed")
        for what in done.later:
            log.warning("%s: not taken over: %s", name, what)

    def _apply(self, snapshot: Snapshot) -> None:
        block = snapshot.deployment
        if block.revision < self.applied_revision:
            return  # a read that was overtaken by our own write
        if block.revision != self.applied_revision:
            log.info(
                "%s: applied revision %d: generation %d %s, active %s",
                self.service.name,
                block.revision,
                block.generation,
                block.state,
                block.active_boot_id or "none",
            )
        self.snapshot = snapshot
        self.applied_revision = block.revision
        self.restarter.observe(snapshot)
        self.cold_rollback.observe(snapshot)
        self._point()
        self.supervisor.observe(snapshot)
        if not self._deciding:
            self.drainer.observe(snapshot)
        self._answer_waiters()

    def _point(self) -> None:
        """Tell the plane where to go, and how patient to be with a daemon that is not there."""
        snapshot, block = self.snapshot, self.snapshot.deployment
        hold_s = self.service.settings.hold_timeout_s
        active = snapshot.active
        # A router that leaves accepts nobody, and what it holds was promised a daemon: whether one is on its way its
        # successor knows, not it.
        coming = self.restarter.due is not None or (self._leaving is not None and block.desired is not Desired.STOPPED)
        if block.desired is Desired.PAUSED:
            self.plane.point_at(None, patience_s=hold_s)
        elif active:
            target = Target(
                active.boot_id, active.host, active.port, proxy_protocol=self._expects_header(active.boot_id)
            )
            coming = coming or block.state is not State.IDLE
            self.plane.point_at(target, patience_s=hold_s if coming else REFUSED_PATIENCE_S)
        else:
            coming = coming or block.in_flight or block.generation == 0
            self.plane.point_at(None, patience_s=hold_s if coming else 0.0)

    def _expects_header(self, boot_id: str) -> bool:
        """Whether a daemon is told its clients' addresses: as the settings had it when it first came to be active.

        A changed setting goes with the daemons that come after it; the old one may be gone back to.
        """
        expects = self._headers.get(boot_id)
        if expects is None:
            self._headers = {known: self._headers[known] for known in self._headers if known in self.snapshot.daemons}
            expects = self._headers[boot_id] = self.service.settings.proxy_protocol == "v2"
        return expects

    async def _watch_owner(self) -> None:
        """Where nothing serves since a rollout lost its owner half-way, somebody must go on: clients are held."""
        while True:
            await asyncio.sleep(OWNER_LOOK_S)
            block = self.snapshot.deployment
            if block.in_flight and not block.active_boot_id and provably_dead(block.owner):
                daemon = self.snapshot.old or self.snapshot.candidate
                lost = daemon or Daemon(block.candidate_boot_id, owned=True)
                self.restarter.died(lost, f"the rollout of generation {block.generation} lost its owner")

    def when_applied(self, revision: int, reply: Callable[[int], None]) -> None:
        """Call ``reply`` with the applied revision once it is ``revision`` or later; look at the registry now."""
        if self.applied_revision >= revision:
            reply(self.applied_revision)
            return
        self._waiters.append((revision, reply))
        del self._waiters[:-256]  # verbs that gave up are not told apart from those that wait
        self._news.set()

    def _answer_waiters(self) -> None:
        waiting, self._waiters = self._waiters, []
        for revision, reply in waiting:
            if revision <= self.applied_revision:
                reply(self.applied_revision)
            else:
                self._waiters.append((revision, reply))

    # -- the world of the supervisor and the drainer -----------------------------------------------------------------

    def now(self) -> float:
        return self._loop.time()

    async def probe(self, daemon: Daemon) -> ProbeResult:
        health = self.service.settings.health
        preamble = LOCAL_HEADER if self._expects_header(daemon.boot_id) else b""
        spec = replace(self.service.probe_spec, preamble=preamble)

        def check() -> ProbeResult:
            return probe(daemon, spec, timeout_s=health.timeout_s)

        return await self._loop.run_in_executor(self._executor, check)

    async def update(self, change: Change) -> Outcome:
        # The poll may see our own write before its journal entry is made: what follows from it then waits for that.
        with self._unbroken():
            self._deciding += 1
            try:
                outcome = await self._loop.run_in_executor(self._executor, lambda: self.service.registry.update(change))
            finally:
                self._deciding -= 1
            if outcome.applied:
                async with self._applying:
                    self._apply(outcome.snapshot)
            else:
                await self.look()
        return outcome

    @contextlib.contextmanager
    def _unbroken(self) -> Generator[None]:
        """What a router that leaves waits for. What its caller then says of it comes before the wait is over."""
        self._busy += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._busy -= 1
            if not self._busy:
                self._idle.set()

    def journal(self, event: str, outcome: Outcome, **evidence: object) -> None:
        block = outcome.deployment
        told = {key: str(value) for key, value in evidence.items()} | {"outcome": outcome.reason.value}
        log.info("%s: %s generation %d %s", self.service.name, event, block.generation, told)
        self._scribe.submit(
            lambda: self.service.journal.write(event, generation=block.generation, revision=block.revision, **told)
        )

    def died(self, daemon: Daemon, reason: str) -> None:
        self.restarter.died(daemon, reason)

    def unwell(self, daemon: Daemon, reason: str) -> None:
        self.say("unwell", daemon.boot_id, evidence=reason)
        if self.service.settings.on_unhealthy == "restart":
            self.restarter.hung(daemon, reason)

    def well_again(self, daemon: Daemon) -> None:
        self.say("well_again", daemon.boot_id)
        self.restarter.recovered(daemon)

    async def start(self, hung: str) -> Started:
        return await self._automatically("start", *(("--unwell", hung) if hung else ()))

    async def roll_back(self) -> Started:
        return await self._automatically("rollback")

    async def _automatically(self, verb: str, *flags: str) -> Started:
        settings = self.service.settings
        within_s = settings.hold_timeout_s + settings.stop_grace_s + 2 * settings.start_timeout_s
        code = await run_verb(self._home, verb, self.service.name, *flags, within_s=within_s)
        if code == ConflictError.exit_code:
            return Started.BUSY
        return Started.NO if code else Started.YES

    async def nothing_to_restore(self, failed: Daemon, reason: str) -> None:
        snapshot = self.snapshot
        generation, old = snapshot.deployment.generation, snapshot.old
        if self.cold_rollback.due is None and failed.build and (old is None or old.build != failed.build):
            with self._unbroken():
                await self._loop.run_in_executor(
                    self._executor, lambda: self.service.builds.quarantine(failed.build, reason, generation)
                )
        self.cold_rollback.needed(snapshot, failed, reason)

    async def give_up(self, boot_id: str, reason: str) -> None:
        block = self.snapshot.deployment
        generation = block.generation

        def end(snap: Snapshot) -> Outcome:
            if block.in_flight:  # it is the rollout that nobody carries any more
                return abort_deploy(snap, generation, reason=reason)
            return deactivate(snap, generation, boot_id, reason=reason)

        outcome = await self.update(end)
        self.journal("crash_loop", outcome, boot_id=boot_id, evidence=reason)

    def restart_changed(self) -> None:
        self._point()

    async def rolled_back(self, outcome: Outcome, failed: Daemon, build: str, reason: str) -> None:
        self.journal("rollback", outcome, boot_id=failed.boot_id, evidence=reason)
        if build:
            generation = outcome.deployment.generation

            def keep() -> None:
                self.service.builds.quarantine(build, reason, generation)
                self.service.builds.set_result(generation, "rolled_back")

            with self._unbroken():
                await self._loop.run_in_executor(self._executor, keep)

    def carried(self, boot_id: str) -> Sequence[Carried] | None:
        """Ours; None where we have none left and a router that leaves still has some, which only it can tell apart."""
        own = self.plane.carried(boot_id)
        return own if own or own is None or not self.elsewhere(boot_id) else None

    @property
    def _nobody_leaves(self) -> bool:
        """The keeper says so; before it has said anything there may be a router that leaves."""
        return self._keeper.leaving is not None and not self._keeper.leaving

    def elsewhere(self, boot_id: str) -> int:
        """Connections of that daemon that a leaving router carries: those that the kernel knows of, without ours."""
        daemon = self.snapshot.daemons.get(boot_id)
        if self._nobody_leaves or daemon is None:
            return 0
        census = self.plane.census().get(boot_id)
        try:
            return max(0, established_to(daemon.port) - (census.connections if census else 0))
        except OSError:
            return 0

    def cut(self, boot_id: str, ids: Collection[int] | None = None) -> int:
        if ids is None and not self._nobody_leaves:
            self._keeper.tell({"op": "cut", "service": self.service.name, "boot_id": boot_id})
        return self.plane.cut(boot_id, ids)

    async def is_healthy(self, daemon: Daemon) -> bool:
        return (await self.probe(daemon)).ok

    async def stop(self, boot_id: str) -> bool:
        settings = self.service.settings
        daemon = self.snapshot.daemons.get(boot_id)
        failed = daemon is None or daemon.drain_cause is DrainCause.FAILED
        grace_s = min(settings.stop_grace_s, FAILED_GRACE_S) if failed else settings.stop_grace_s
        gone = await self._keeper.stop(self.service.name, boot_id, stop_signal=settings.stop_signal, grace_s=grace_s)
        if not gone:
            await asyncio.sleep(1.0)  # until the next `up` has started a keeper
        return gone

    async def forget(self, boot_id: str) -> None:
        await self.update(lambda snap: forget_daemon(snap, boot_id))

    async def strays(self) -> list[str]:
        """Running processes of ours that the registry knows nothing of: their verb died before it could say.

        A candidate is named in the registry before it is started, so what has a record is looked at first and the
        registry after it: whatever is not in there then is not on its way either.
        """

        def find() -> list[str]:
            records = read_records(self.service.home.records)
            running = [boot_id for boot_id, record in records.items() if record.ended is None]
            if not running:
                return []
            snapshot = self.service.registry.read().snapshot
            known = set(snapshot.daemons) | snapshot.deployment.named
            return [boot_id for boot_id in running if boot_id not in known]

        try:
            return await self._loop.run_in_executor(self._executor, find)
        except TurnoutError:
            return []

    def say(self, event: str, boot_id: str, **evidence: object) -> None:
        block = self.snapshot.deployment
        told = {key: str(value) for key, value in evidence.items()}
        log.info("%s: %s %s %s", self.service.name, event, boot_id, told or "")
        self._scribe.submit(
            lambda: self.service.journal.write(
                event, generation=block.generation, revision=block.revision, boot_id=boot_id, **told
            )
        )

    # -- for status --------------------------------------------------------------------------------------------------

    def status(self) -> Mapping[str, Any]:
        census = self.plane.census()
        return {
            "applied_revision": self.applied_revision,
            "plane": self.plane.name,
            "held": self.plane.counters.held_now,
            "counters": asdict(self.plane.counters),
            "troubles": self._troubles.lately(self.now()),
            "restart": self._restart(),
            "settings": {"later": list(self._reloaded.later), "error": self._reloaded.error},
            "unwell": self._unwell(),
            "observe_remaining_s": (remaining_s := self.supervisor.observe_remaining_s),
            "desired": self.snapshot.deployment.desired.value,
            "deployment": msgspec.to_builtins(deployment_status(self.snapshot.deployment, remaining_s)),
            "healthy": dict(self.supervisor.healthy),
            "reasons": dict(self.supervisor.reasons),
            "census": {
                boot_id: {"connections": c.connections, "bytes_in": c.bytes_in, "bytes_out": c.bytes_out}
                for boot_id, c in census.items()
            },
            "elsewhere": {boot_id: self.elsewhere(boot_id) for boot_id in self.snapshot.daemons},
        }

    def drains(self) -> Sequence[Mapping[str, Any]]:
        """Each daemon that drains, with what it still has and why, for ``turnout drain``."""
        now = self.now()
        policy = self.drainer.policy
        told: list[Mapping[str, Any]] = []
        for boot_id in list(self.drainer.drains):
            found = self.drainer.explain(boot_id)
            daemon = self.snapshot.daemons.get(boot_id)
            if found is None or daemon is None:
                continue
            drain, idle = found
            carried = self.plane.carried(boot_id, peers=True)
            age_s = now - drain.since
            told.append(
                {
                    "boot_id": boot_id,
                    "version": daemon.version,
                    "cause": "hastened" if drain.hastened else daemon.drain_cause.value,
                    "age_s": age_s,
                    "deadline_in_s": None if policy.deadline_s is None else max(0.0, policy.deadline_s - age_s),
                    "elsewhere": self.elsewhere(boot_id),
                    "connections": None
                    if carried is None
                    else [
                        {
                            "peer": one.peer,
                            "age_s": one.age_s,
                            "idle_s": idle.get(one.id),
                            "bytes_in": one.bytes_in,
                            "bytes_out": one.bytes_out,
                            "why": drain.decision.why.get(one.id, ""),
                        }
                        for one in carried
                    ],
                }
            )
        return told

    def _restart(self) -> Mapping[str, Any] | None:
        due = self.restarter.due
        if due is None:
            return None
        return {
            "attempt": due.attempt,
            "most": len(RESTART_DELAYS_S),
            "in_s": max(0.0, due.at - self.now()),
            "reason": due.reason,
            "hung": due.hung,
        }

    def _unwell(self) -> Mapping[str, Any] | None:
        unwell = self.supervisor.unwell
        if unwell is None or unwell.failures < self.service.settings.health.failures:
            return None
        return {
            "boot_id": unwell.boot_id,
            "failures": unwell.failures,
            "for_s": self.now() - unwell.since,
            "reason": unwell.reason,
        }

    async def _keep_running(self, work: Callable[[], Any], what: str) -> None:
        """A failed write (a full disk, a held lock) must not end the watch: say it, wait a moment, go on."""
        while True:
            try:
                await work()
            except TurnoutError as error:
                log.warning("%s: %s: %s", self.service.name, what, error.message)
            await asyncio.sleep(1.0)
            with contextlib.suppress(TurnoutError):
                await self.look()


def _settings(home: ServiceHome) -> Settings:
    return load_settings(home.settings.read_bytes())
