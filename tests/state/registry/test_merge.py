"""Merging turnout's registry with that of a writer who took no lock."""

from __future__ import annotations

from dataclasses import replace

import pytest

from turnout.core.model import Daemon, Deployment, DrainCause, Snapshot, State, Workspace
from turnout.state.registry.merge import merge

OLD = Daemon("old", port=1000, version="1")
NEW = Daemon("new", port=2000, version="2")
OTHER = Daemon("other", port=3000)
BLOCK = Deployment(generation=3, state=State.SWITCHED, active_boot_id="new", old_boot_id="old", revision=9)
OURS = Snapshot({"old": OLD, "new": NEW}, {"/a": Workspace("/a", "new")}, BLOCK)


def test_a_registry_merged_with_itself_is_itself_and_says_nothing() -> None:
    assert merge(OURS, OURS) == (OURS, ())


def test_a_lost_block_comes_back_with_the_daemons_that_it_names() -> None:
    merged, notes = merge(OURS, Snapshot({"other": OTHER}))
    assert merged.deployment == BLOCK
    assert set(merged.daemons) == {"old", "new", "other"}
    assert len(notes) == 3


@pytest.mark.parametrize("revision", [1, 9])
def test_a_block_of_lower_or_equal_revision_does_not_win(revision: int) -> None:
    theirs = replace(OURS, deployment=replace(BLOCK, revision=revision, active_boot_id="old", old_boot_id=""))
    merged, notes = merge(OURS, theirs)
    assert merged.deployment == BLOCK
    assert notes


def test_a_block_of_higher_revision_wins() -> None:
    theirs = replace(OURS, deployment=replace(BLOCK, revision=10, active_boot_id="old", old_boot_id=""))
    assert merge(OURS, theirs) == (theirs, ())


@pytest.mark.parametrize("change", [{"active_boot_id": "nobody"}, {"generation": 2}])
def test_a_higher_revision_that_cannot_be_followed_does_not_win(change: dict[str, object]) -> None:
    theirs = replace(OURS, deployment=replace(BLOCK, revision=10, **change))  # type: ignore[arg-type]  # as parametrized
    assert merge(OURS, theirs)[0].deployment == BLOCK


def test_a_named_daemon_keeps_its_identity_and_takes_the_heartbeat() -> None:
    theirs = replace(OURS, daemons={"old": OLD, "new": replace(NEW, port=1, last_seen_ts=7.0, http_port=80)})
    merged, _ = merge(OURS, theirs)
    assert merged.daemons["new"] == replace(NEW, last_seen_ts=7.0, http_port=80)


def test_what_the_block_does_not_own_is_the_last_writers() -> None:
    theirs = replace(
        OURS,
        daemons={**OURS.daemons, "other": OTHER},
        workspaces={"/b": Workspace("/b", "other")},
        extra={"theirs": 1},
    )
    assert merge(replace(OURS, extra={"ours": 1}), theirs)[0] == theirs


def test_unknown_keys_in_an_older_block_survive() -> None:
    theirs = replace(OURS, deployment=replace(BLOCK, extra={"note": "keep"}))
    merged, notes = merge(OURS, theirs)
    assert merged.deployment == replace(BLOCK, extra={"note": "keep"})
    assert notes == ()


# -- a daemon that drains ----------------------------------------------------------------------------------------------

DRAINING = replace(OTHER, draining=True, drain_cause=DrainCause.REPLACED)


def with_draining(snap: Snapshot) -> Snapshot:
    return replace(snap, daemons={**snap.daemons, "other": DRAINING})


def test_a_daemon_that_drains_keeps_its_entry_whoever_prunes_it() -> None:
    merged, notes = merge(with_draining(OURS), OURS)
    assert merged == with_draining(OURS)
    assert notes == ("daemon other, which drains, was put back",)


def test_a_writer_who_moves_the_deployment_on_prunes_no_daemon_that_drains() -> None:
    theirs = replace(OURS, deployment=replace(BLOCK, revision=10, active_boot_id="old", old_boot_id=""))
    merged, _ = merge(with_draining(OURS), theirs)
    assert merged == replace(with_draining(OURS), deployment=theirs.deployment)


def test_a_writer_who_makes_a_draining_daemon_active_is_followed() -> None:
    block = replace(BLOCK, revision=10, active_boot_id="other", old_boot_id="")
    theirs = replace(OURS, daemons={**OURS.daemons, "other": OTHER}, deployment=block)
    assert merge(with_draining(OURS), theirs) == (theirs, ())


def test_a_stale_heartbeat_does_not_undo_a_drain() -> None:
    """Another program writes back what it read before the daemon began to drain."""
    stale = replace(OURS, daemons={**OURS.daemons, "other": replace(OTHER, last_seen_ts=5.0)})
    merged, notes = merge(with_draining(OURS), stale)
    assert merged.daemons["other"] == replace(DRAINING, last_seen_ts=5.0)
    assert len(notes) == 1


# -- with the common ancestor ----------------------------------------------------------------------------------------

BASE = replace(
    OURS,
    daemons={"old": OLD, "new": NEW, "gone": Daemon("gone")},
    workspaces={"/a": Workspace("/a", "old", last_active_ts=1.0)},
    deployment=replace(BLOCK, state=State.READY, active_boot_id="old", candidate_boot_id="new", revision=8),
)


def test_a_heartbeat_does_not_undo_the_move_of_a_workspace() -> None:
    theirs = replace(BASE, workspaces={"/a": Workspace("/a", "old", last_active_ts=2.0)})
    merged, _ = merge(OURS, theirs, base=BASE)
    assert merged.workspaces == {"/a": Workspace("/a", "new", last_active_ts=2.0)}


def test_a_client_that_maps_its_workspace_elsewhere_wins() -> None:
    theirs = replace(BASE, workspaces={"/a": Workspace("/a", "other", last_active_ts=1.0)})
    assert merge(OURS, theirs, base=BASE)[0].workspaces["/a"].boot_id == "other"


def test_what_we_removed_stays_removed_unless_they_changed_it() -> None:
    assert "gone" not in merge(OURS, BASE, base=BASE)[0].daemons
    beating = replace(BASE, daemons={**BASE.daemons, "gone": Daemon("gone", last_seen_ts=5.0)})
    assert "gone" in merge(OURS, beating, base=BASE)[0].daemons


def test_what_they_removed_stays_removed_unless_the_block_names_it() -> None:
    ours = replace(BASE, deployment=replace(BASE.deployment, revision=9))
    merged, notes = merge(ours, replace(BASE, daemons={}), base=BASE)
    assert set(merged.daemons) == {"old", "new"}
    assert len(notes) == 3


def test_what_both_added_is_all_there() -> None:
    theirs = replace(BASE, daemons={**BASE.daemons, "other": OTHER})
    ours = replace(OURS, daemons={**BASE.daemons, "fresh": Daemon("fresh")})
    assert {"fresh", "other"} <= set(merge(ours, theirs, base=BASE)[0].daemons)


def test_draining_that_we_set_on_a_daemon_no_longer_named_is_kept() -> None:
    finished = replace(BLOCK, state=State.IDLE, old_boot_id="", revision=10)
    ours = replace(OURS, daemons={"old": replace(OLD, draining=True), "new": NEW}, deployment=finished)
    theirs = replace(OURS, daemons={"old": replace(OLD, last_seen_ts=4.0), "new": NEW})
    assert merge(ours, theirs, base=OURS)[0].daemons["old"] == replace(OLD, draining=True, last_seen_ts=4.0)
