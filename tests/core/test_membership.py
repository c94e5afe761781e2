"""Daemons that register, beat and leave, and the workspaces that clients map to them."""

from __future__ import annotations

from dataclasses import replace

from turnout.core.membership import announce_daemon, beat, forget_daemon, hasten_drain, map_workspace, register_daemon
from turnout.core.model import Daemon, Deployment, DrainCause, Identity, Snapshot
from turnout.core.outcome import Reason

OWN = Daemon("a", port=4001, identity=Identity(10, 20), build="b1", owned=True, extra={"theirs": 1})
SNAP = Snapshot({"a": OWN}, deployment=Deployment(revision=5, active_boot_id="a"))


def test_a_daemon_that_registers_again_goes_on_draining_and_keeps_what_others_wrote() -> None:
    draining = replace(OWN, draining=True, drain_cause=DrainCause.REPLACED)
    outcome = register_daemon(Snapshot({"a": draining}), Daemon("a", port=4002, extra={"ours": 2}))
    registered = outcome.snapshot.daemons["a"]
    assert (registered.port, registered.draining, registered.drain_cause) == (4002, True, DrainCause.REPLACED)
    assert registered.extra == {"theirs": 1, "ours": 2}
    assert outcome.deployment.revision == 1


def test_a_daemon_cannot_say_that_turnout_started_it_nor_move_one_that_turnout_started() -> None:
    stranger = announce_daemon(SNAP, Daemon("b", port=1, build="b1", owned=True)).snapshot.daemons["b"]
    assert (stranger.owned, stranger.build) == (False, "")
    announced = Daemon("a", host="10.0.0.1", port=9, identity=Identity(99), version="2.0")
    own = announce_daemon(SNAP, announced).snapshot.daemons["a"]
    assert (own.host, own.port, own.identity, own.owned, own.build) == ("127.0.0.1", 4001, Identity(10, 20), True, "b1")
    assert own.version == "2.0", "what the daemon knows better is taken from it"


def test_a_heartbeat_and_a_mapping_raise_no_revision() -> None:
    beaten = beat(SNAP, "a", now=3.0)
    assert beaten.applied
    assert beaten.snapshot.daemons["a"].last_seen_ts == 3.0
    mapped = map_workspace(beaten.snapshot, "/p", "a", now=4.0)
    assert mapped.applied
    assert mapped.snapshot.workspaces["/p"].boot_id == "a"
    assert beaten.deployment.revision == mapped.deployment.revision == 5


def test_the_same_heartbeat_or_mapping_once_more_changes_nothing() -> None:
    snap = map_workspace(beat(SNAP, "a", now=3.0).snapshot, "/p", "a", now=4.0).snapshot
    for again in (beat(snap, "a", now=3.0), map_workspace(snap, "/p", "a", now=4.0)):
        assert again.reason is Reason.ALREADY
        assert again.snapshot is snap


def test_a_mapping_has_the_http_address_of_its_daemon() -> None:
    daemon = replace(OWN, http_host="127.0.0.1", http_port=8080, http_pid=7)
    workspace = map_workspace(Snapshot({"a": daemon}), "/p", "a", now=1.0).snapshot.workspaces["/p"]
    assert (workspace.http_host, workspace.http_port, workspace.http_pid) == ("127.0.0.1", 8080, 7)


def test_an_unknown_daemon_can_neither_beat_nor_be_mapped_nor_be_hastened() -> None:
    for outcome in (beat(SNAP, "x", now=1.0), map_workspace(SNAP, "/p", "x", now=1.0), hasten_drain(SNAP, "x")):
        assert outcome.reason is Reason.UNKNOWN_DAEMON
        assert outcome.snapshot is SNAP


def test_what_the_deployment_names_is_neither_forgotten_nor_hastened() -> None:
    assert forget_daemon(SNAP, "a").reason is Reason.STILL_NAMED
    draining = replace(SNAP, daemons={"a": replace(OWN, draining=True)})
    assert hasten_drain(draining, "a").reason is Reason.STILL_NAMED


def test_a_drain_is_hastened_once_and_a_stopped_one_is_never_made_patient() -> None:
    draining = Snapshot({"a": replace(OWN, draining=True, drain_cause=DrainCause.REPLACED)})
    hastened = hasten_drain(draining, "a")
    assert hastened.snapshot.daemons["a"].drain_cause is DrainCause.HASTENED
    assert hasten_drain(hastened.snapshot, "a").reason is Reason.ALREADY
    stopped = hasten_drain(draining, "a", DrainCause.STOPPED).snapshot
    assert hasten_drain(stopped, "a").snapshot.daemons["a"].drain_cause is DrainCause.STOPPED


def test_a_forgotten_daemon_is_gone_and_forgetting_it_again_is_no_news() -> None:
    snap = Snapshot({"a": OWN, "b": replace(OWN, boot_id="b")})
    left = forget_daemon(snap, "a")
    assert set(left.snapshot.daemons) == {"b"}
    assert forget_daemon(left.snapshot, "a").reason is Reason.ALREADY
