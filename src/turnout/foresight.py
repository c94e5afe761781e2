"""What a verb would do: told from what is, with the same rules and refusals, and without touching anything."""

from __future__ import annotations

import errno
import os
import shlex
from dataclasses import dataclass

from turnout.admin import RouterClient
from turnout.carrier import is_abandoned
from turnout.choice import build_to_return_to, last_good_build, wanted_build
from turnout.config import Address, Settings, Wanted
from turnout.core.deployment import abort_deploy, begin_deploy
from turnout.core.model import Cause, Daemon, Desired, Identity, Snapshot, State
from turnout.core.outcome import must_hold
from turnout.core.policy import abandoned
from turnout.daemon_naming import daemon_name
from turnout.errors import ConflictError, NotRunningError, TimedOutError, UsageError
from turnout.ground import check_command
from turnout.keeper_client import Hello, KeeperClient, bind_error
from turnout.scrape_address import check_scrape, to_write
from turnout.service import Service, remembered
from turnout.system.builds import Build
from turnout.system.home import Home
from turnout.system.keeper_lock import read_keeper
from turnout.system.process import is_alive, own_identity
from turnout.system.sockets import who_listens
from turnout.system.spawn import resolve_command

PREVIEW = "candidate"


@dataclass(frozen=True, slots=True)
class Intent:
    """A verb with what was said to it; the fields that a verb does not have stay as they are."""

    verb: str
    force: bool = False
    supersede: bool = False
    now: bool = False
    generation: int | None = None
    address: Address | None = None
    expected_generation: int | None = None


def must_stand_at(snapshot: Snapshot, generation: int) -> None:
    """Raises ConflictError: the deployment is at another generation."""
    stands = snapshot.deployment.generation
    if stands != generation:
        raise ConflictError(
            f"the deployment stands at generation {stands}, not {generation}; nothing was changed",
            hint="turnout status",
        )


def foretell(home: Home, service: Service, wanted: Wanted, intent: Intent) -> list[str]:
    """What ``intent`` would do, a line for each thing.

    Args:
        home: the state directory.
        service: the service, opened; it is only read.
        wanted: the settings and the build that are asked for.
        intent: the verb.

    Raises:
        TurnoutError: what the verb itself would raise, as far as that can be known before it is tried.
    """
    return _Foresight(home, service, wanted, intent).tell()


class _Foresight:
    def __init__(self, home: Home, service: Service, wanted: Wanted, intent: Intent) -> None:
        self._home = home
        self._service = service
        self._wanted = wanted
        self._settings: Settings = wanted.settings
        self._intent = intent
        self._snapshot = service.registry.read().snapshot
        self._keeper, self._silent = _hello(home)
        self._lines: list[str] = []

    def tell(self) -> list[str]:
        if self._intent.expected_generation is not None:
            must_stand_at(self._snapshot, self._intent.expected_generation)
        verb = self._intent.verb
        if verb in {"up", "start", "deploy", "attach"}:
            self._ground()
        elif not self._runs():
            if verb == "down":
                return [f"do nothing: {self._service.name} is down"]
            raise NotRunningError(f"service {self._service.name} is not running", hint="turnout up")
        self._leftovers()
        steps = {
            "up": self._up,
            "start": self._start,
            "deploy": self._deploy,
            "refresh": self._refresh,
            "rollback": self._rollback,
            "attach": self._attach,
            "detach": self._detach,
            "stop": self._stop,
            "down": self._down,
            "pause": lambda: self._turn(Desired.PAUSED, "hold new connections"),
            "resume": lambda: self._turn(Desired.RUNNING, "let held connections go"),
            "drain": self._drain,
        }
        steps[verb]()
        if verb == "up":
            self._scrape()
        return self._lines or ["do nothing: it is so already"]

    def _say(self, line: str) -> None:
        self._lines.append(line)

    # -- what is ------------------------------------------------------------------------------------------------------

    @property
    def _where(self) -> str:
        return ", ".join(map(str, self._settings.listen))

    @property
    def _active(self) -> Daemon | None:
        active = self._snapshot.active
        return active if active and is_alive(active.identity) else None

    def _runs(self) -> bool:
        return self._keeper is not None or any(
            daemon.owned and is_alive(daemon.identity) for daemon in self._snapshot.daemons.values()
        )

    # -- what all verbs that need a router do first -------------------------------------------------------------------

    def _ground(self) -> None:
        check_command(self._wanted)
        before = remembered(self._service.home)
        changed = [
            f"{field} {getattr(before, field)} -> {getattr(self._settings, field)}"
            for field in Settings.__struct_fields__
            if before and field != "source" and getattr(before, field) != getattr(self._settings, field)
        ]
        if changed:
            self._say(f"take over changed settings: {', '.join(changed)}")
        if self._keeper and self._service.name in self._keeper.services:
            return
        if self._silent:
            self._say(f"replace the keeper (pid {self._silent.pid}), should it go on saying nothing")
        elif not self._keeper:
            self._say(f"start a keeper and a router in {self._home.root}")
        for address in self._settings.listen:
            if who_listens(address.host, address.port) and not self._any_daemon_runs() and not self._silent:
                raise bind_error(address, errno.EADDRINUSE)
        self._say(f"listen on {self._where}")

    def _any_daemon_runs(self) -> bool:
        """With a daemon of ours alive the holder may be a router that outlived its keeper."""
        return any(is_alive(daemon.identity) for daemon in self._snapshot.daemons.values())

    def _leftovers(self) -> None:
        block = self._snapshot.deployment
        if is_abandoned(block, self._service.home):
            self._say(f"abort generation {block.generation}, whose owner (pid {block.owner.pid}) died")
            self._snapshot = abort_deploy(self._snapshot, block.generation, reason=abandoned(block)).snapshot

    # -- rollouts -----------------------------------------------------------------------------------------------------

    def _up(self) -> None:
        active = self._active
        build = wanted_build(self._service, self._wanted, required=False)
        barred = self._service.builds.quarantined(build.id) if build else None
        if active:
            if build is None or not active.owned or active.build == build.id:
                return
            if barred:
                self._say(f"leave {daemon_name(active)}: the configured build is quarantined ({barred})")
                return
            self._roll(build, Cause.DEPLOY)
            return
        self._roll(last_good_build(self._service, self._wanted) if build is None or barred else build, Cause.START)

    def _scrape(self) -> None:
        scrape = to_write(self._home, self._wanted)
        if scrape is None:
            return
        check_scrape(self._wanted, scrape, serves=RouterClient(self._home).metrics_address())
        self._say(f"serve metrics on http://{scrape.listen}/metrics" if scrape.listen else "serve no metrics any more")

    def _start(self) -> None:
        if not self._active:
            self._roll(last_good_build(self._service, self._wanted), Cause.START)

    def _deploy(self) -> None:
        build = wanted_build(self._service, self._wanted, required=True)
        assert build is not None
        reason = self._service.builds.quarantined(build.id)
        if reason and not self._intent.force:
            raise ConflictError(
                f"build {build.id} is quarantined: {reason}",
                hint="change the build, or deploy it all the same: --force",
            )
        self._roll(build, Cause.DEPLOY)
        if reason:
            self._say("lift the quarantine of that build")

    def _refresh(self) -> None:
        active = self._snapshot.active
        if active is None:
            raise NotRunningError(f"service {self._service.name} has no active daemon", hint="turnout start")
        build = self._service.builds.get(active.build)
        if build is None:
            raise UsageError(
                f"{daemon_name(active)} was not started by turnout", hint="restart it yourself, then attach it"
            )
        self._roll(build, Cause.REFRESH)

    def _rollback(self) -> None:
        block, old = self._snapshot.deployment, self._snapshot.old
        if self._intent.generation is None and block.state is State.SWITCHED and old and is_alive(old.identity):
            self._say(f"switch back to {daemon_name(old)}, which still runs, and end generation {block.generation}")
            self._say(f"drain and stop {daemon_name(self._snapshot.active)}")
            return
        build = build_to_return_to(self._service, self._snapshot, self._intent.generation)
        self._roll(build, Cause.ROLLBACK, supersede=block.state is State.SWITCHED)

    def _attach(self) -> None:
        address = self._intent.address
        assert address is not None
        if any(address.port == own.port for own in self._settings.listen):
            raise UsageError(f"{address} is the service's own address", hint="name the daemon's own port")
        holder = who_listens(address.host, address.port)
        if holder is None or not holder.listening:
            raise NotRunningError(f"nothing listens on {address}", hint="start the daemon first")
        self._begin(Cause.ATTACH, supersede=False)
        self._say(f"probe {holder.command} (pid {holder.pid}) on {address} until it is healthy")
        self._switch(window=True)

    def _roll(self, build: Build, cause: Cause, *, supersede: bool = False) -> None:
        resolve_command(build.command, build.cwd, {**os.environ, **build.env})
        self._begin(cause, supersede=supersede or self._intent.supersede)
        active = self._active
        recreate = self._settings.strategy == "recreate" and active is not None
        if recreate:
            self._say(
                f"hold new connections, at most {self._settings.hold_timeout_s:g} s, and stop {daemon_name(active)}"
            )
        version = f" (version {build.version})" if build.version else ""
        self._say(f"start {shlex.join(build.command)}{version} in {build.cwd}")
        health = self._settings.health
        self._say(f"probe it ({health.probe}) until it is healthy, for {self._settings.start_timeout_s:g} s at most")
        self._switch(window=cause is not Cause.REFRESH)

    def _begin(self, cause: Cause, *, supersede: bool) -> None:
        """The state machine itself says whether it would; nothing of its answer is written."""
        outcome = begin_deploy(
            self._snapshot,
            PREVIEW,
            owner=own_identity(),
            cause=cause,
            supersede=supersede,
            expected_generation=self._intent.expected_generation,
        )
        must_hold(outcome)
        self._say(f"begin generation {outcome.deployment.generation} ({cause.value})")

    def _switch(self, *, window: bool) -> None:
        active = self._active
        if active is None:
            self._say("switch new connections to it")
            return
        self._say(f"switch new connections from {daemon_name(active)} to it")
        if window:
            failures = self._settings.health.failures
            watched = f"watch it for {self._settings.observe_s:g} s"
            self._say(f"{watched}; {failures} failed checks in a row bring the previous one back")
        if self._settings.strategy != "recreate" and active.owned:
            self._say(f"then drain and stop {active.boot_id}")

    # -- the rest -----------------------------------------------------------------------------------------------------

    def _detach(self) -> None:
        active = self._snapshot.active
        if active is None:
            raise NotRunningError("nothing is attached", hint="turnout status")
        if active.owned:
            raise UsageError(f"{daemon_name(active)} was started by turnout", hint="turnout stop")
        self._say(f"let {daemon_name(active)} go; new connections are reset")

    def _stop(self) -> None:
        active = self._snapshot.active
        if active:
            self._say(
                f"stop {daemon_name(active)} ({self._settings.stop_signal}, then KILL after"
                f" {self._settings.stop_grace_s:g} s); new connections are reset"
            )

    def _down(self) -> None:
        ours = [daemon for daemon in self._snapshot.daemons.values() if daemon.owned and is_alive(daemon.identity)]
        for daemon in ours:
            self._say(f"drain {daemon_name(daemon)} for {self._settings.drain_grace_s:g} s at most, and stop it")
        self._say(f"close {self._where}")
        others = [name for name in (self._keeper.services if self._keeper else ()) if name != self._service.name]
        if self._keeper and not others:
            self._say(f"end router (pid {self._keeper.router_pid}) and keeper (pid {self._keeper.pid})")

    def _turn(self, desired: Desired, what: str) -> None:
        stands = self._snapshot.deployment.desired
        if stands is Desired.STOPPED:
            raise NotRunningError(f"service {self._service.name} is stopped", hint="turnout start")
        if stands is not desired:
            self._say(f"{what} on {self._where}")

    def _drain(self) -> None:
        named = self._snapshot.deployment.named
        how = "stop it at once" if self._intent.now else "cut its connections at their next quiet moment"
        for daemon in self._snapshot.daemons.values():
            if daemon.draining and daemon.boot_id not in named:
                self._say(f"hasten {daemon_name(daemon)}: {how}")


def _hello(home: Home) -> tuple[Hello | None, Identity | None]:
    """What the keeper says of itself; where it says nothing, which process that is."""
    try:
        with KeeperClient.connect(home) as keeper:
            return keeper.hello(timeout_s=1.0), None
    except NotRunningError:
        return None, None
    except TimedOutError:
        return None, read_keeper(home.keeper_lock)
