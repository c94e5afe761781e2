"""The registry file under two writers at once: turnout, which takes the lock, and one who reads, thinks and writes.

The other writer's reading and its writing are steps of their own, and either may happen before any file call of
turnout's, so that everything it knows may be outdated. The model beside it is naive: the deployment is what the events
say, and of the rest the last word counts.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from faulty_files import FaultyFiles, OldSystem
from support import scaled
from turnout.core.deployment import (
    Change,
    abort_deploy,
    begin_deploy,
    deactivate,
    fail_window,
    finish_deploy,
    mark_candidate_healthy,
    record_health_failure,
    record_health_success,
    rollback_active,
    switch_active,
)
from turnout.core.membership import beat, forget_daemon, map_workspace, register_daemon
from turnout.core.model import Daemon, Deployment, Identity, Snapshot
from turnout.core.outcome import Outcome
from turnout.state.registry.decoder import loads
from turnout.state.registry.encoder import dumps
from turnout.state.registry.file import RegistryFile

BOOTS = ("a", "b", "c")
boots = st.sampled_from(BOOTS)
offsets = st.sampled_from([0, 0, 0, 0, -1, 1])
EVENTS: dict[str, Callable[[Snapshot, int, str], Outcome]] = {
    "begin": lambda snap, gen, boot: begin_deploy(snap, boot, owner=Identity(1), supersede=gen % 2 == 0),
    "register": lambda snap, _gen, boot: register_daemon(snap, Daemon(boot, port=ord(boot))),
    "mark": mark_candidate_healthy,
    "switch": lambda snap, gen, boot: switch_active(snap, gen, boot, now=1.0),
    "fail": lambda snap, gen, boot: record_health_failure(
        snap, gen, boot, reason="bad", threshold=2, restore=snap.deployment.old_boot_id
    ),
    "ok": record_health_success,
    "roll back": lambda snap, gen, boot: rollback_active(snap, gen, boot, reason="by hand"),
    "finish": lambda snap, gen, _boot: finish_deploy(snap, gen),
    "fail window": lambda snap, gen, boot: fail_window(snap, gen, boot, reason="bad"),
    "abort": lambda snap, gen, _boot: abort_deploy(snap, gen, reason="no"),
    "deactivate": lambda snap, gen, boot: deactivate(snap, gen, boot, reason="stop"),
    "forget": lambda snap, _gen, boot: forget_daemon(snap, boot),
    "beat": lambda snap, gen, boot: beat(snap, boot, now=float(gen)),
    "map": lambda snap, gen, boot: map_workspace(snap, "/w", boot, now=float(gen)),
}
FORGETS: dict[str, Callable[[dict[str, Any]], None]] = {
    "everything but its own": lambda raw: raw.pop("deployment", None),
    "the newest revision": lambda raw: raw.get("deployment", {}).update(revision=0, generation=0, active_boot_id=""),
    "the daemons": lambda raw: raw.update(daemons={}),
    "nothing": lambda raw: None,
}
# what the other writer does, and before which of turnout's file calls
interference = st.lists(
    st.tuples(st.integers(0, 14), st.sampled_from(["reads", *FORGETS])), max_size=3, unique_by=lambda at: at[0]
)


class TwoWriters(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="turnout-store-"))
        self.path = self.directory / "registry.json"
        self.model = Deployment()
        self.known: bytes | None = None
        self.wrote = 0
        self.interfered = False
        self.due: dict[int, str] = {}
        self.registry = RegistryFile(self.path)

    @initialize(exchange=st.booleans())
    def system(self, exchange: bool) -> None:
        kind = FaultyFiles if exchange else _WithoutExchange
        self.registry = RegistryFile(self.path, files=kind(self.before_call))

    def teardown(self) -> None:
        shutil.rmtree(self.directory)

    # -- the other writer --------------------------------------------------------------------------------------------

    def before_call(self, _number: int, name: str) -> None:
        step = self.calls
        self.calls += 1
        what = self.due.pop(step, None)
        # where the system cannot exchange, a writer between the last look and the rename is overwritten: documented
        if what and not (name == "rename" and isinstance(self.registry._files, _WithoutExchange)):
            self.interfered = True
            self.they(what)

    calls = 0

    def they(self, what: str) -> None:
        if what == "reads":
            self.known = self.path.read_bytes() if self.path.exists() else None
            return
        raw = json.loads(self.known) if self.known else {"version": "2.0"}
        FORGETS[what](raw)
        self.wrote += 1
        raw["theirs"] = self.wrote
        temp = self.directory / "theirs.tmp"
        temp.write_text(json.dumps(raw))
        temp.replace(self.path)
        self.known = None

    @rule(what=st.sampled_from(["reads", *FORGETS]))
    def the_other(self, what: str) -> None:
        self.they(what)

    # -- turnout -----------------------------------------------------------------------------------------------------

    @rule(event=st.sampled_from(sorted(EVENTS)), off=offsets, boot=boots, between=interference)
    def turnout(self, event: str, off: int, boot: str, between: list[tuple[int, str]]) -> None:
        generation = self.model.generation + off
        self.does(lambda snap: EVENTS[event](snap, generation, boot), dict(between))

    @rule(boot=boots, between=interference)
    def rolls_out(self, boot: str, between: list[tuple[int, str]]) -> None:
        """All the way, for chance seldom gets there; the other writer interferes with the switch."""
        if boot == self.model.active_boot_id:
            return
        for event in ("register", "begin", "mark", "switch"):
            self.turnout(event, 0, boot, between if event == "switch" else [])

    def does(self, change: Change, between: dict[int, str]) -> None:
        before = self.path.read_bytes() if self.path.exists() else None
        was = self.registry.read()
        self.calls, self.interfered, self.due = 0, False, between
        outcome: Outcome = self.registry.update(change)
        self.due = {}
        if outcome.applied:
            assert loads(self.path.read_bytes()).snapshot == outcome.snapshot or self.interfered
            self.model = outcome.deployment
            assert self.model == change(was.snapshot).deployment or self.interfered
        elif not self.interfered:
            assert (self.path.read_bytes() if self.path.exists() else None) == before
            assert outcome.deployment == self.model

    @rule(between=interference)
    def settles(self, between: list[tuple[int, str]]) -> None:
        self.calls, self.interfered, self.due = 0, False, dict(between)
        foreign = self.registry.settle()
        self.due = {}
        assert not foreign.followed
        if not self.interfered:
            assert self.registry.read().settled
            assert self.file() == foreign.snapshot

    def file(self) -> Snapshot:
        return loads(self.path.read_bytes()).snapshot if self.path.exists() else Snapshot()

    # -- what must hold ----------------------------------------------------------------------------------------------

    @invariant()
    def the_deployment_is_what_the_events_say(self) -> None:
        block = self.registry.read().snapshot.deployment
        assert replace(block, extra={}) == replace(self.model, extra={})

    @invariant()
    def what_the_deployment_names_and_was_registered_is_there(self) -> None:
        snapshot = self.registry.read().snapshot
        block = snapshot.deployment
        assert not block.active_boot_id or snapshot.active
        assert not block.old_boot_id or snapshot.old

    @invariant()
    def of_the_rest_the_last_word_counts(self) -> None:
        if self.wrote:
            assert self.registry.read().snapshot.extra.get("theirs") == self.wrote

    @invariant()
    def nothing_is_left_lying_about(self) -> None:
        names = {entry.name for entry in self.directory.iterdir()}
        assert names <= {"registry.json", "registry.json.good", "registry.json.lock"}

    @invariant()
    def the_last_good_copy_can_stand_in(self) -> None:
        good = self.path.with_name("registry.json.good")
        assert not good.exists() or dumps(loads(good.read_bytes()).snapshot) == good.read_bytes()


class _WithoutExchange(FaultyFiles, OldSystem):
    pass


TestTwoWriters = TwoWriters.TestCase
TestTwoWriters.settings = settings(max_examples=scaled(60, 1500), stateful_step_count=scaled(30, 50), deadline=None)
