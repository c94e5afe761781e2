"""What a verb prepares before it carries out its plan, and takes back where it fails."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from functools import partial

import msgspec

from turnout.config.settings import dump_settings, load_settings
from turnout.control.registry_claim import claimed, release_claim
from turnout.core.deployment import abort_deploy, set_desired
from turnout.core.membership import register_daemon
from turnout.core.model import Desired, Snapshot
from turnout.core.slots import source_of
from turnout.errors import TurnoutError
from turnout.lifecycle.bootstrap import Bootstrap
from turnout.lifecycle.build_selection import unnoted_switch
from turnout.lifecycle.progress import Progress
from turnout.state.home import Home
from turnout.state.rollout_owner import abandoned, is_abandoned
from turnout.state.service import Service, written
from turnout.system.files import Files, write_durably
from turnout.system.process import is_alive
from turnout.system.spawn_record import foreign_records, prune_records, read_records


class Preparation:
    """Settings, keeper, listener and router for one verb, and a registry without the rollout of a dead owner.

    The caller closes ``bootstrap``.
    """

    def __init__(self, home: Home, service: Service, bootstrap: Bootstrap, progress: Progress) -> None:
        self._home = home
        self._service = service
        self._bootstrap = bootstrap
        self._progress = progress
        self._before = service.registry.read().snapshot
        self._settings_before: bytes | None = None
        self.has_settings = False  # settings.json has the verb's settings, as far as it could be written
        self.takes_over = False  # the verb's rollout takes over from one whose owner died

    def run(self, *, listen: bool, rolls: bool) -> Snapshot:
        """Prepare, and return the registry as it is then.

        Args:
            listen: have keeper, listener and router up.
            rolls: a rollout follows, unless a daemon serves already.
        """
        service = self._service
        foreign = {**foreign_records(self._home.root), **foreign_records(service.home.records)}
        if foreign:
            pids = ", ".join(str(record.identity.pid) for record in foreign.values())
            self._progress.slow(
                f"this home is a copy of another, whose processes run (pid {pids}): they are left alone"
            )
        if listen:
            self._bootstrap.check()
        before = self._settings_before = written(service.home)
        if listen:
            with claimed(self._home, service.home, service.registry.path):
                self._write_settings(before)
            try:
                self._bootstrap.ensure()
            except BaseException:
                if before is not None:  # what does not listen as it says is not in force
                    self._write_settings(dump_settings(service.settings), before)
                raise
            self._update_sources()
        else:
            self._write_settings(before)
        snapshot = service.registry.read().snapshot
        if rolls:
            note_switch(service, snapshot)
        prune_records(service.home.records, spare=snapshot.daemons)
        if not is_abandoned(snapshot.deployment, service.home, locked=True):
            return snapshot
        # where no daemon serves clients are held: the next rollout takes over in one write
        self.takes_over = rolls and not snapshot.deployment.active_boot_id
        return self._abort(snapshot)

    def _abort(self, snapshot: Snapshot) -> Snapshot:
        """End the rollout of a dead owner, unless the router has done so meanwhile or the next rollout takes over."""
        service, block = self._service, snapshot.deployment
        if not self.takes_over:
            aborted = service.registry.update(
                lambda snap: abort_deploy(snap, block.generation, reason=abandoned(block))
            )
            snapshot = aborted.snapshot
            if not aborted.applied:
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

    def _update_sources(self) -> None:
        """A keeper that found the daemons alone at the fixed address gave them other indexes in their group."""
        registry, records = self._service.registry, read_records(self._service.home.records)
        given = {boot_id: source_of(record.slot) for boot_id, record in records.items() if record.listener_inode}
        for boot_id, daemon in registry.read().snapshot.daemons.items() if given else ():
            source = given.get(boot_id, daemon.source)
            if source != daemon.source:
                registry.update(partial(register_daemon, daemon=replace(daemon, source=source)))

    def _write_settings(self, there: bytes | None, data: bytes | None = None) -> None:
        """Write ``data``, by default the verb's settings, unless settings.json has it already (``there``).

        So on a full disk, too, `up` brings keeper and router back. The router takes a new time stamp for the word of a
        verb (:mod:`turnout.router.follow.settings`).
        """
        self.has_settings = True
        path = self._service.home.settings
        data = dump_settings(self._service.settings) if data is None else data
        if data == there:
            with suppress(OSError):
                os.utime(path)
        else:
            write_durably(Files(), path, data, follows_links=False)

    def undo(self, error: BaseException) -> None:
        """Where no daemon runs after ``error``, leave no keeper, router or listener that the verb started.

        Nor does the service count as one that should run, where it was stopped before or has never been up. One that
        has never been up is defined by no file, and has no claim on its registry file, either.
        """
        service, before = self._service, self._before.deployment
        snapshot = service.registry.read().snapshot
        block = snapshot.deployment
        runs = any(daemon.owned and is_alive(daemon.identity) for daemon in snapshot.daemons.values())
        if block.active_boot_id or block.in_flight or runs:
            return
        self._bootstrap.undo()
        if (before.generation == 0 or before.desired is Desired.STOPPED) and block.desired is Desired.RUNNING:
            cause = error.message if isinstance(error, TurnoutError) else type(error).__name__
            reason = block.rollback_reason or cause
            service.registry.update(lambda snap: set_desired(snap, Desired.STOPPED, reason=reason))
        if self.has_settings and not block.switch_ts and not service.home.definition.exists():
            self._write_settings(None, dump_settings(msgspec.structs.replace(service.settings, source="")))
            release_claim(self._home, service.home, service.registry.path)

    def undo_rollout(self, *, switched: bool) -> None:
        """A rollout that failed leaves keeper, router and settings as they were before.

        The addresses have moved already, and stay: clients use them.
        """
        self._bootstrap.undo()
        if switched or self._settings_before is None:
            return
        with suppress(TurnoutError):  # settings of another version, a full disk: those of this verb stay
            before = load_settings(self._settings_before)
            now = self._service.settings
            kept = msgspec.structs.replace(before, listen=now.listen, expose=now.expose, registry=now.registry)
            if kept != now:
                write_durably(Files(), self._service.home.settings, dump_settings(kept), follows_links=False)


def note_switch(service: Service, snapshot: Snapshot) -> None:
    """Note a rollout as active whose verb was killed between its switch and that note.

    The build that was switched to is the one that is started again, not the one before.
    """
    rollout = unnoted_switch(service, snapshot)
    if rollout:
        service.builds.set_result(rollout.generation, "active")
