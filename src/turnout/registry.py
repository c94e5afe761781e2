"""The registry for programs: daemons that register themselves, and clients that look for one.

Nothing here needs a running turnout: the file is the interface. A program that uses this API takes the file's lock, as
turnout does; one in another language may as well read and rename the JSON itself.

    >>> from turnout import Daemon, Registry, this_process
    >>> registry = Registry(path)

A daemon says that it is there, and that it still is:

    >>> registry.register(Daemon("indexer-1", port=4001, identity=this_process())).applied
    True
    >>> registry.heartbeat("indexer-1").applied
    True

A client maps its workspace to it, and asks where to go. With nothing deployed, that is the workspace's daemon:

    >>> registry.map_workspace("/home/me/project", "indexer-1").applied
    True
    >>> registry.resolve_upstream("/home/me/project").port
    4001

Clients that should never notice a rollout go to the fixed address instead:

    >>> registry.resolve()
    ('127.0.0.1', 47777)

A rollout is a row of events. Each carries its generation, and one that comes too late changes nothing and says why:

    >>> begun = registry.begin_deploy("indexer-1")
    >>> generation = begun.deployment.generation
    >>> registry.mark_candidate_healthy(generation, "indexer-1").applied
    True
    >>> registry.switch_active(generation, "indexer-1").deployment.active_boot_id
    'indexer-1'
    >>> late = registry.switch_active(generation - 1, "indexer-1")
    >>> late.applied, late.reason.value
    (False, 'stale_generation')

What the deployment names stays; anything else leaves when it ends:

    >>> registry.unregister("indexer-1").reason.value
    'still_named'
    >>> registry.deactivate(generation, "indexer-1", reason="done").applied
    True
    >>> registry.unregister("indexer-1").applied
    True
    >>> registry.snapshot().daemons
    {}
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Concatenate, ParamSpec

from turnout.config.settings import DEFAULT_LISTEN, DEFAULT_SERVICE, parse_address
from turnout.core import deployment, membership
from turnout.core.addresses import reachable
from turnout.core.model import Cause, Daemon, DrainCause, Identity, Snapshot
from turnout.core.outcome import Outcome
from turnout.errors import UsageError
from turnout.state.home import Home
from turnout.state.journal import Journal
from turnout.state.registry.file import RegistryFile
from turnout.state.service import Service, remembered
from turnout.system.process import own_identity, provably_dead

DEFAULT_THRESHOLD = 3
P = ParamSpec("P")


class Registry:
    """One registry file as a program sees it. Keeps nothing open; threads and processes may share it.

    Every method that changes something answers an :class:`~turnout.core.outcome.Outcome`: whether it was applied, the
    reason, and the registry as it now stands. An event that has taken effect before answers ``already``. Throughout,
    ``generation`` is that of the rollout, as :meth:`begin_deploy` answers it; an event of another one is refused
    (``stale_generation``). ``boot_id`` is a daemon's key, ``candidate`` that of the rollout's daemon, and ``reason`` is
    for people.

    Args:
        path: the file. None: that of ``service``, as turnout keeps it in TURNOUT_HOME.
        service: whose registry, where no path is given.
        lock_timeout_s: seconds to wait for another writer, 0 or more.
        clock: wall-clock seconds, for the time stamps, which are for people only.

    Raises:
        UsageError: no service can have that name.
        StateUnwritableError: the service's settings cannot be read.

    Reading raises RegistryUnsupportedError, RegistryDamagedError and StateUnwritableError; changing also
    LockTimeoutError and ConflictError. After any of them nothing was changed.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        service: str = DEFAULT_SERVICE,
        lock_timeout_s: float = 8.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        home = Home.find().service(service)
        self._file = RegistryFile(Path(home.registry if path is None else path), lock_timeout_s=lock_timeout_s)
        self._journal: Journal | None = None
        self._listen = parse_address(DEFAULT_LISTEN)
        self._clock = clock
        settings = remembered(home) if path is None else None
        if settings is not None:  # else turnout has never served it; a daemon may well register before that
            self._listen = settings.listen[0]
            opened = Service.open(home, settings, lock_timeout_s=lock_timeout_s)
            self._file, self._journal = opened.registry, opened.journal

    @property
    def path(self) -> Path:
        """The file."""
        return self._file.path

    def __repr__(self) -> str:
        return f"Registry({str(self.path)!r})"

    # -- asking ------------------------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """The whole registry as it is now; never waits for the lock."""
        return self._file.read().snapshot

    def resolve(self) -> tuple[str, int]:
        """The fixed address, host and port, for clients that are not to notice a rollout."""
        return reachable(self._listen.host), self._listen.port

    def resolve_upstream(self, workspace: str | None = None) -> Daemon | None:
        """The daemon behind the fixed address; None where there is none.

        Args:
            workspace: the caller's key, used where no deployment says which daemon is active.
        """
        return upstream(self.snapshot(), workspace, lambda daemon: not provably_dead(daemon.identity))

    # -- daemons and workspaces --------------------------------------------------------------------------------------

    def register(self, daemon: Daemon) -> Outcome:
        """Say that a daemon is there, or renew what is known of it.

        Args:
            daemon: ``boot_id`` is its key, a new one for each boot; ``port`` 1 to 65535. ``identity`` should be
                :func:`this_process`: a daemon without one is held to be alive for as long as it is registered.

        Raises:
            UsageError: no boot id, or no port.
        """
        if not daemon.boot_id:
            raise UsageError("a daemon cannot be registered without a boot_id", hint="any text that no other boot has")
        if not 1 <= daemon.port <= 65535:
            raise UsageError(f"port {daemon.port} of {daemon.boot_id} is none", hint="1 to 65535")
        now = self._clock()
        daemon = replace(daemon, start_ts=daemon.start_ts or now, last_seen_ts=daemon.last_seen_ts or now)
        return self._file.update(lambda snap: membership.announce_daemon(snap, daemon))

    def heartbeat(self, boot_id: str) -> Outcome:
        """Keep a daemon's ``last_seen_ts`` current; nothing depends on it. ``unknown_daemon``: it is not registered."""
        now = self._clock()
        return self._file.update(lambda snap: membership.beat(snap, boot_id, now=now))

    def unregister(self, boot_id: str) -> Outcome:
        """Remove a daemon's entry; refused (``still_named``) while the deployment names it."""
        return self._file.update(lambda snap: membership.forget_daemon(snap, boot_id))

    def map_workspace(self, root: str, boot_id: str) -> Outcome:
        """Map a key of the caller's to a daemon; a rollout moves the mapping along, a rollback moves it back.

        Args:
            root: the key, for a language server a project's directory. It never influences routing.
            boot_id: the daemon; ``unknown_daemon`` where it is not registered.
        """
        now = self._clock()
        return self._file.update(lambda snap: membership.map_workspace(snap, root, boot_id, now=now))

    # -- the deployment ----------------------------------------------------------------------------------------------

    def begin_deploy(
        self,
        candidate: str,
        *,
        expected_active_boot_id: str | None = None,
        expected_generation: int | None = None,
        supersede: bool = False,
        cause: Cause = Cause.DEPLOY,
        owner: Identity | None = None,
    ) -> Outcome:
        """Start a rollout to ``candidate``, which need not be registered yet: the generation rises by one.

        Args:
            candidate: the boot id of the daemon to switch to.
            expected_active_boot_id: refuse with ``active_changed`` if another daemon is active.
            expected_generation: refuse with ``generation_changed`` if the deployment stands elsewhere.
            supersede: end another rollout first, instead of being refused with ``in_progress``.
            cause: why.
            owner: the process that carries the rollout to its switch; this one if None. When it dies before that, the
                router aborts the rollout, or else the next verb of turnout.
        """
        return self._decide(
            "begin",
            deployment.begin_deploy,
            candidate,
            owner=own_identity() if owner is None else owner,
            expected_active_boot_id=expected_active_boot_id,
            expected_generation=expected_generation,
            supersede=supersede,
            cause=cause,
        )

    def retire_active(self, generation: int, boot_id: str) -> Outcome:
        """Take the active daemon out of service for a candidate that cannot run beside it: new connections are held."""
        return self._decide("retire", deployment.retire_active, generation, boot_id)

    def mark_candidate_healthy(self, generation: int, candidate: str) -> Outcome:
        """The candidate passed its probe; it has to be registered by now."""
        return self._decide("mark", deployment.mark_candidate_healthy, generation, candidate)

    def switch_active(self, generation: int, candidate: str, *, window: bool = True) -> Outcome:
        """New connections go to the candidate from here on.

        ``window``: keep the previous daemon warm and count failures; else it drains at once.
        """
        now = self._clock()
        return self._decide("switch", deployment.switch_active, generation, candidate, now=now, window=window)

    def record_health_failure(
        self,
        generation: int,
        boot_id: str,
        *,
        reason: str,
        threshold: int = DEFAULT_THRESHOLD,
        restore: str | None = None,
    ) -> Outcome:
        """Count one failed check of the active daemon inside its window.

        Args:
            generation: that of the rollout.
            boot_id: the daemon that was checked.
            reason: the result of the check.
            threshold: failures in a row that lead to a rollback, 1 or more.
            restore: the previous daemon, if the caller has just seen it pass a probe: the failure that reaches the
                threshold then brings it back in the same write.
        """
        failure = deployment.record_health_failure
        return self._decide(
            "health_failure", failure, generation, boot_id, reason=reason, threshold=threshold, restore=restore
        )

    def record_health_success(self, generation: int, boot_id: str) -> Outcome:
        """A check of the active daemon passed: the count of failures is zero again."""
        return self._decide("health_ok", deployment.record_health_success, generation, boot_id)

    def rollback_active(self, generation: int, restore: str, *, reason: str) -> Outcome:
        """Back to ``restore``, the previous daemon, which has just passed a probe; inside the window only."""
        return self._decide("rollback", deployment.rollback_active, generation, restore, reason=reason)

    def finish_deploy(self, generation: int) -> Outcome:
        """The window is over: the previous daemon drains."""
        return self._decide("finish", deployment.finish_deploy, generation)

    def fail_window(self, generation: int, boot_id: str, *, reason: str) -> Outcome:
        """End a window that the active daemon failed, where neither the previous daemon nor its build can be restored.

        The daemon stays active.
        """
        return self._decide("window_failed", deployment.fail_window, generation, boot_id, reason=reason)

    def abort_deploy(self, generation: int, *, reason: str, restore: str = "") -> Outcome:
        """End a rollout before its switch; what is active was never touched.

        ``restore``: the daemon that it retired, if that still runs and is to serve again.
        """
        return self._decide("abort", deployment.abort_deploy, generation, reason=reason, restore=restore)

    def deactivate(
        self, generation: int, boot_id: str, *, reason: str, cause: DrainCause = DrainCause.STOPPED
    ) -> Outcome:
        """Nothing is active any more. ``cause`` decides about the connections that the daemon still has."""
        return self._decide("deactivate", deployment.deactivate, generation, boot_id, reason=reason, cause=cause)

    def _decide(
        self, name: str, event: Callable[Concatenate[Snapshot, P], Outcome], *args: P.args, **kwargs: P.kwargs
    ) -> Outcome:
        """Apply a deployment event, and write it to the journal: that of a service has those of every program."""
        outcome = self._file.update(lambda snap: event(snap, *args, **kwargs))
        if self._journal and outcome.applied:
            block = outcome.deployment
            self._journal.write(
                name,
                generation=block.generation,
                revision=block.revision,
                active=block.active_boot_id,
                reason=block.rollback_reason,
                by_pid=os.getpid(),
            )
        return outcome


def this_process() -> Identity:
    """What proves that a process is this one, also when its pid was given to another; for :meth:`Registry.register`."""
    return own_identity()


def upstream(snap: Snapshot, workspace: str | None, is_alive: Callable[[Daemon], bool]) -> Daemon | None:
    """The daemon behind the fixed address.

    That is the active daemon of the deployment; else the daemon that ``workspace`` is mapped to; else the daemon that
    started last. The latter two must be alive and not draining.
    """
    if snap.active:
        return snap.active
    mapped = snap.workspaces.get(workspace) if workspace is not None else None
    chosen = snap.daemons.get(mapped.boot_id) if mapped else None
    if chosen and not chosen.draining and is_alive(chosen):
        return chosen
    newest_first = sorted(snap.daemons.values(), key=lambda daemon: (daemon.start_ts, daemon.boot_id), reverse=True)
    return next((daemon for daemon in newest_first if not daemon.draining and is_alive(daemon)), None)
