"""Arbitrary events in arbitrary order, stale ones too: what must hold after each of them."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from support import scaled
from turnout.core.deployment import (
    abort_deploy,
    begin_deploy,
    deactivate,
    finish_deploy,
    mark_candidate_healthy,
    record_health_failure,
    record_health_success,
    retire_active,
    rollback_active,
    switch_active,
)
from turnout.core.membership import forget_daemon, map_workspace, register_daemon
from turnout.core.model import Cause, Daemon, DrainCause, Identity, Snapshot, State
from turnout.core.outcome import Outcome, Reason
from turnout.state.registry.decoder import loads
from turnout.state.registry.encoder import dumps

THRESHOLD = 3
BOOTS = ("a", "b", "c", "d")
boots = st.sampled_from(BOOTS)
offsets = st.sampled_from([0, 0, 0, 0, -1, 1])
ACTIVE = "the active one"
mostly_active = st.sampled_from([ACTIVE, ACTIVE, ACTIVE, *BOOTS])


class Deployments(RuleBasedStateMachine):
    """The model beside it is naive on purpose: the checks of the window as a list, the workspaces' way as a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.snap = Snapshot()
        self.checks: list[bool] = []
        self.before_switch: dict[str, str] = {}

    def take(self, outcome: Outcome) -> bool:
        before, after = self.snap, outcome.snapshot
        if not outcome.applied:
            assert after is before, "a refused event changed something"
            assert outcome.reason is not Reason.APPLIED
            return False
        assert after.deployment.revision == before.deployment.revision + 1
        assert after.deployment.generation >= before.deployment.generation
        self.snap = after
        return True

    def gen(self, off: int) -> int:
        return self.snap.deployment.generation + off

    @rule(boot=boots, supersede=st.booleans(), cause=st.sampled_from(Cause))
    def begin(self, boot: str, supersede: bool, cause: Cause) -> None:
        generation = self.snap.deployment.generation
        if self.take(begin_deploy(self.snap, boot, owner=Identity(1), supersede=supersede, cause=cause)):
            assert self.snap.deployment.generation == generation + 1
            assert self.snap.deployment.health_fail_streak == 0

    @rule(boot=boots, roots=st.sets(st.sampled_from(["/x", "/y"])))
    def roll_out(self, boot: str, roots: set[str]) -> None:
        """All the way to a window, whatever is in its way: most of the rules are there, and chance seldom is."""
        block = self.snap.deployment
        if block.in_flight:
            self.abort(0)
        elif block.state is State.SWITCHED:
            self.finish(0)
        active = block.active_boot_id
        if not active:
            active = next(other for other in BOOTS if other != boot)
            self.go_through(active)
        if boot != active:
            for root in sorted(roots):
                self.a_client_maps(root, active)
            condemned = self.snap.daemons[active].drain_cause is DrainCause.FAILED
            self.go_through(boot)
            assert self.snap.deployment.state is (State.IDLE if condemned else State.SWITCHED)

    def go_through(self, boot: str) -> None:
        if boot in self.snap.daemons and boot not in self.snap.deployment.named:
            self.forget(boot)  # a boot id never comes twice
        self.register(boot, 1)
        self.begin(boot, supersede=False, cause=Cause.DEPLOY)
        self.mark(0, boot)
        self.switch(0, boot, window=True)
        assert self.snap.deployment.active_boot_id == boot

    @rule(boot=boots, back=boots, starts=st.booleans(), window=st.booleans())
    def recreate(self, boot: str, back: str, starts: bool, window: bool) -> None:
        """A daemon that owns its data makes room for its successor; one that does not start is followed by another."""
        before = self.snap.deployment
        active = before.active_boot_id
        if before.state is not State.IDLE or len({boot, back, active, ""}) < 4:
            return
        for fresh in (boot, back):
            if fresh in self.snap.daemons:
                self.forget(fresh)
        self.begin(boot, supersede=False, cause=Cause.DEPLOY)
        self.retire(0, active)
        assert self.snap.deployment.retired_boot_id == active
        condemned = self.snap.daemons[active].drain_cause is DrainCause.FAILED
        self.register(boot, 3)
        if not starts:
            self.begin(back, supersede=True, cause=Cause.ROLLBACK)
            assert self.snap.deployment.retired_boot_id == active
            self.register(back, 4)
        serves = boot if starts else back
        self.mark(0, serves)
        self.switch(0, serves, window=window)
        block = self.snap.deployment
        assert block.active_boot_id == serves
        assert block.state is (State.SWITCHED if window and not condemned else State.IDLE)
        assert self.snap.daemons[active].draining, "it may be gone, and is never gone back to"

    @rule(off=offsets, boot=mostly_active)
    def retire(self, off: int, boot: str) -> None:
        before = self.snap.deployment
        boot = before.active_boot_id if boot == ACTIVE else boot
        if self.take(retire_active(self.snap, self.gen(off), boot)):
            assert off == 0
            assert before.in_flight
            assert boot == before.active_boot_id
            assert self.snap.deployment.state is before.state
            assert self.snap.deployment.active_boot_id == ""
            assert self.snap.daemons[boot].draining

    @rule(off=offsets, boot=boots)
    def abort_and_restore(self, off: int, boot: str) -> None:
        before = self.snap.deployment
        if self.take(abort_deploy(self.snap, self.gen(off), reason="given up", restore=boot)):
            assert off == 0
            assert boot == before.retired_boot_id
            assert self.snap.deployment.active_boot_id == boot

    @rule(results=st.lists(st.booleans(), max_size=5), restorable=st.booleans())
    def the_router_checks(self, results: list[bool], restorable: bool) -> None:
        for ok in results:
            if ok:
                self.success(0, ACTIVE)
            else:
                self.failure(0, ACTIVE, restorable)

    @precondition(
        lambda self: self.snap.deployment.health_fail_streak == THRESHOLD and self.snap.deployment.old_boot_id
    )
    @rule(boot=boots, passes=st.booleans())
    def the_previous_one_is_gone_and_its_build_is_started_anew(self, boot: str, passes: bool) -> None:
        """The cold rollback, as whoever watches the window does it: what is active stays until the probe is passed."""
        before = self.snap.deployment
        if boot == before.active_boot_id:
            return
        assert not any(self.checks[-THRESHOLD:])
        self.begin(boot, supersede=True, cause=Cause.ROLLBACK)
        assert self.snap.deployment.state is State.ROLLING_BACK
        assert self.snap.deployment.active_boot_id == before.active_boot_id
        self.register(boot, 2)
        if not passes:
            self.abort(0)
            assert self.snap.deployment.active_boot_id == before.active_boot_id
            return
        self.mark(0, boot)
        self.switch(0, boot, window=True)
        assert self.snap.deployment.old_boot_id == ""
        failed = self.snap.daemons[before.active_boot_id]
        assert (failed.draining, failed.drain_cause) == (True, DrainCause.FAILED)

    @rule(boot=boots, port=st.integers(1, 9))
    def register(self, boot: str, port: int) -> None:
        self.take(register_daemon(self.snap, Daemon(boot, port=port)))

    @rule(boot=boots)
    def forget(self, boot: str) -> None:
        if self.take(forget_daemon(self.snap, boot)):
            assert boot not in self.snap.daemons

    @rule(root=st.sampled_from(["/x", "/y"]), boot=boots)
    def a_client_maps(self, root: str, boot: str) -> None:
        revision = self.snap.deployment.revision
        outcome = map_workspace(self.snap, root, boot, now=1.0)
        assert outcome.deployment.revision == revision, "a mapping is no event of the deployment"
        self.snap = outcome.snapshot

    @rule(off=offsets, boot=boots)
    def mark(self, off: int, boot: str) -> None:
        if self.take(mark_candidate_healthy(self.snap, self.gen(off), boot)):
            assert off == 0
            assert boot in self.snap.daemons

    @rule(off=offsets, boot=boots, window=st.booleans())
    def switch(self, off: int, boot: str, window: bool) -> None:
        before = self.snap
        if self.take(switch_active(self.snap, self.gen(off), boot, now=1.0, window=window)):
            assert off == 0
            assert before.deployment.state is State.READY
            assert self.snap.deployment.active_boot_id == boot
            self.checks = []
            old = before.deployment.active_boot_id or before.deployment.retired_boot_id
            self.before_switch = {r: w.boot_id for r, w in before.workspaces.items() if w.boot_id == old and old}

    @rule(off=offsets, boot=mostly_active, restorable=st.booleans())
    def failure(self, off: int, boot: str, restorable: bool) -> None:
        before = self.snap
        block = before.deployment
        boot = block.active_boot_id if boot == ACTIVE else boot
        counted = off == 0 and block.state is State.SWITCHED and boot == block.active_boot_id
        restore = block.old_boot_id if restorable else None
        applied = self.take(
            record_health_failure(self.snap, self.gen(off), boot, reason="bad", threshold=THRESHOLD, restore=restore)
        )
        if not counted:
            assert not applied
            return
        self.checks.append(False)
        three = len(self.checks) >= THRESHOLD and not any(self.checks[-THRESHOLD:])
        rolled_back = self.snap.deployment.state is State.IDLE
        old = before.old
        assert rolled_back == (three and restorable and old is not None and not old.draining)
        if rolled_back:
            self.was_rolled_back(before)

    @rule(off=offsets, boot=mostly_active)
    def success(self, off: int, boot: str) -> None:
        block = self.snap.deployment
        boot = block.active_boot_id if boot == ACTIVE else boot
        counted = off == 0 and block.state is State.SWITCHED and boot == block.active_boot_id
        applied = self.take(record_health_success(self.snap, self.gen(off), boot))
        if counted:
            self.checks.append(True)
            assert self.snap.deployment.health_fail_streak == 0
        else:
            assert not applied

    @rule(off=offsets, boot=boots)
    def roll_back(self, off: int, boot: str) -> None:
        before = self.snap
        if self.take(rollback_active(self.snap, self.gen(off), boot, reason="by hand")):
            assert off == 0
            assert boot == before.deployment.old_boot_id
            self.was_rolled_back(before)

    def was_rolled_back(self, before: Snapshot) -> None:
        assert self.snap.deployment.active_boot_id == before.deployment.old_boot_id
        assert not self.snap.daemons[self.snap.deployment.active_boot_id].draining
        for root, workspace in self.snap.workspaces.items():
            moved = before.workspaces[root].boot_id == before.deployment.active_boot_id
            if root in self.before_switch and moved:  # still there, or there again
                assert workspace.boot_id == self.before_switch[root]
            else:
                assert workspace == before.workspaces[root]

    @rule(off=offsets)
    def finish(self, off: int) -> None:
        self.take(finish_deploy(self.snap, self.gen(off)))

    @rule(off=offsets)
    def abort(self, off: int) -> None:
        active = self.snap.deployment.active_boot_id
        self.take(abort_deploy(self.snap, self.gen(off), reason="given up"))
        assert self.snap.deployment.active_boot_id == active

    @rule(off=offsets, boot=boots)
    def stop(self, off: int, boot: str) -> None:
        if self.take(deactivate(self.snap, self.gen(off), boot, reason="stopped")):
            assert off == 0
            assert self.snap.deployment.active_boot_id == ""

    @invariant()
    def it_makes_sense(self) -> None:
        block = self.snap.deployment
        assert 0 <= block.health_fail_streak <= THRESHOLD
        assert not block.candidate_boot_id or block.candidate_boot_id != block.active_boot_id
        assert not block.old_boot_id or block.old_boot_id != block.active_boot_id
        retired = block.in_flight and not block.active_boot_id and block.old_boot_id
        assert bool(block.old_boot_id) == (block.state is State.SWITCHED or bool(retired))
        assert not block.candidate_boot_id or block.candidate_boot_id != block.old_boot_id
        if retired and self.snap.old:
            assert self.snap.old.draining
        assert bool(block.candidate_boot_id) == block.in_flight
        old = self.snap.old
        failed = old is not None and old.drain_cause is DrainCause.FAILED
        assert not failed or retired, "a daemon that failed is nothing to go back to"
        active = self.snap.active
        assert active is None or not active.draining
        assert not block.moves or block.state is State.SWITCHED
        if block.active_boot_id and block.state is not State.SWITCHED:
            assert block.health_fail_streak == 0 or block.rollback_reason

    @invariant()
    def it_survives_the_file(self) -> None:
        assert loads(dumps(self.snap)).snapshot == self.snap


TestDeployments = Deployments.TestCase
TestDeployments.settings = settings(max_examples=scaled(60, 2000), stateful_step_count=scaled(40, 60), deadline=None)
