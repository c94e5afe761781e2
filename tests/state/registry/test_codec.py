"""The registry's text, both ways: what other programs wrote survives, and what is bad costs only itself."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry_support import SNAPSHOT
from support import scaled
from turnout.core.model import (
    Cause,
    Daemon,
    Deployment,
    Desired,
    DrainCause,
    Identity,
    Move,
    Snapshot,
    State,
    Workspace,
)
from turnout.errors import RegistryUnsupportedError
from turnout.state.registry.decoder import EntryCache, NotARegistry, decode, loads
from turnout.state.registry.encoder import dumps

names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)
counts = st.integers(0, 2**40)
times = st.floats(0, 1e12)
extras = st.dictionaries(
    names.map("x-".__add__),
    st.recursive(st.none() | st.booleans() | counts | names, lambda inner: st.lists(inner, max_size=3), max_leaves=5),
    max_size=2,
)
identities = st.builds(Identity, counts, counts, names, counts)
http = {
    "http_host": st.none() | names,
    "http_port": st.none() | st.integers(1, 65535),
    "http_pid": st.none() | st.integers(1, 2**30),
}


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    boots = draw(st.lists(names, max_size=3, unique=True))
    roots = draw(st.lists(names, max_size=3, unique=True))
    daemon = {
        "port": st.integers(0, 65535),
        "identity": identities,
        "start_ts": times,
        "last_seen_ts": times,
        "draining": st.booleans(),
        "drain_cause": st.sampled_from(DrainCause),
        "version": names,
        "build": names,
        "owned": st.booleans(),
        "own_port": st.integers(0, 65535),
        "proxy_protocol": st.sampled_from(["", "none", "v2"]),
        "extra": extras,
    }
    moves = st.lists(st.builds(Move, names, names, **http), max_size=2).map(tuple)
    block = st.builds(
        Deployment,
        generation=counts,
        state=st.sampled_from(State),
        active_boot_id=names,
        old_boot_id=names,
        switch_ts=times,
        health_fail_streak=counts,
        rollback_reason=names,
        revision=counts,
        cause=st.sampled_from(Cause),
        desired=st.sampled_from(Desired),
        owner=identities,
        owner_holds_lock=st.booleans(),
        moves=moves,
        extra=extras,
    )
    return Snapshot(
        {boot: draw(st.builds(Daemon, st.just(boot), **daemon, **http)) for boot in boots},
        {root: draw(st.builds(Workspace, st.just(root), names, times, **http, extra=extras)) for root in roots},
        coherent(draw(block)),
        extra=draw(extras),
    )


def coherent(block: Deployment) -> Deployment:
    """As the state machine leaves it: each name only in the state that has it."""
    if block.in_flight:
        return replace(block, candidate_boot_id=f"{block.active_boot_id}+", old_boot_id="", moves=())
    if block.state is State.SWITCHED:
        return replace(block, old_boot_id=f"{block.active_boot_id}-")
    return replace(block, old_boot_id="", moves=())


@given(snapshots())
@settings(max_examples=scaled(150, 5000), deadline=None)
def test_what_is_written_is_read_back_the_same_and_written_the_same(snapshot: Snapshot) -> None:
    text = dumps(snapshot)
    read = loads(text)
    assert read.report == ()
    assert read.snapshot == snapshot
    assert dumps(read.snapshot) == text


@given(snapshots(), st.data())
@settings(max_examples=scaled(150, 5000), deadline=None)
def test_a_damaged_text_is_refused_or_coerced_and_never_an_accident(snapshot: Snapshot, data: st.DataObject) -> None:
    text = bytearray(dumps(snapshot))
    for _ in range(data.draw(st.integers(1, 3))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    try:
        read = loads(bytes(text))
    except (NotARegistry, RegistryUnsupportedError):
        return
    assert loads(dumps(read.snapshot)).snapshot == read.snapshot


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(
    st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(
            ("version", "daemons", "workspaces", "deployment", "instances", "their key"), json_values
        ),
    )
)
@settings(max_examples=scaled(150, 5000), deadline=None)
def test_any_json_object_is_read_or_refused(raw: dict[str, Any]) -> None:
    try:
        snapshot = decode(raw).snapshot
    except (NotARegistry, RegistryUnsupportedError):
        return
    text = dumps(snapshot)
    again = loads(text)
    assert dumps(again.snapshot) == text
    assert replace(again.snapshot.deployment, extra={}) == replace(snapshot.deployment, extra={})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 4096,
        b"[]",
        b'"text"',
        b"17",
        b"null",
        b"{",
        b'{"a": 1, "a": 2}',
        b'{"daemons": {"x": {"port": 1, "port": 2}}}',
        '{"version": "2.0"}'.encode("utf-16"),
        b"\xff\xfe",
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        b'{"a":' * 200 + b"1" + b"}" * 200,
    ],
)
def test_what_is_no_registry_is_said_to_be_none(data: bytes) -> None:
    with pytest.raises(NotARegistry):
        loads(data)


@pytest.mark.parametrize(
    ("field", "value", "becomes"),
    [
        ("generation", -1, 0),
        ("generation", "7", 7),
        ("generation", 7.0, 7),
        ("generation", 7.5, 0),
        ("generation", True, 0),
        ("generation", None, 0),
        ("generation", 10**40, 0),
        ("state", "SWITCHED", State.SWITCHED),
        ("state", "asleep", State.IDLE),
        ("state", 3, State.IDLE),
        ("switch_ts", "soon", 0.0),
        ("active_boot_id", 5, ""),
        ("health_fail_streak", "two", 0),
        ("desired", "STOPPED", Desired.STOPPED),
    ],
)
def test_a_bad_field_of_the_block_falls_to_its_default_and_costs_nothing_else(
    field: str, value: object, becomes: object
) -> None:
    raw = {"deployment": {"revision": 41, "active_boot_id": "a", "old_boot_id": "o", field: value}}
    read = decode(raw)
    assert getattr(read.snapshot.deployment, field) == becomes
    assert read.snapshot.deployment.revision == 41


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_is_not_finite_is_bad(text: str) -> None:
    read = loads(f'{{"deployment": {{"switch_ts": {text}, "generation": 3}}, "theirs": {text}}}'.encode())
    assert read.snapshot.deployment.switch_ts == 0.0
    assert read.snapshot.deployment.generation == 3
    assert read.report
    json.loads(dumps(read.snapshot), parse_constant=lambda name: pytest.fail(f"{name} was written"))


@pytest.mark.parametrize(
    ("value", "becomes"), [("false", False), ("true", False), (0, False), (1, False), (True, True)]
)
def test_only_true_is_true(value: object, becomes: bool) -> None:
    read = decode({"daemons": {"a": {"port": 1, "draining": value}}})
    assert read.snapshot.daemons["a"].draining is becomes


@pytest.mark.parametrize(
    ("port", "becomes"), [(0, 0), (1, 1), (65535, 65535), (65536, 0), (-1, 0), ("80", 80), ("x", 0)]
)
def test_ports_lie_between_1_and_65535(port: object, becomes: int) -> None:
    assert decode({"daemons": {"a": {"port": port}}}).snapshot.daemons["a"].port == becomes


def test_entries_that_are_no_objects_are_dropped_and_reported() -> None:
    read = decode({"daemons": {"a": 5, "b": {"port": 1}}, "workspaces": {"/w": None}})
    assert list(read.snapshot.daemons) == ["b"]
    assert {finding.where for finding in read.report} == {"daemons.a", "workspaces./w"}


def test_a_byte_order_mark_is_tolerated_and_reported() -> None:
    read = loads(b'\xef\xbb\xbf{"version": "2.0"}')
    assert len(read.report) == 1


def test_unknown_keys_survive_at_every_level() -> None:
    raw = {
        "version": "2.0",
        "daemons": {"a": {"port": 1, "colour": {"deep": [1]}}},
        "workspaces": {"/w": {"boot_id": "a", "mood": "good"}},
        "deployment": {"generation": 1, "later": 1},
        "top": 1,
    }
    again = json.loads(dumps(decode(raw).snapshot))
    assert again["top"] == 1
    assert again["daemons"]["a"]["colour"] == {"deep": [1]}
    assert again["workspaces"]["/w"]["mood"] == "good"
    assert again["deployment"]["later"] == 1


def test_half_a_surrogate_pair_survives_as_the_escape_that_it_was() -> None:
    read = loads(b'{"theirs": "\\ud800", "daemons": {"\\udfff": {"port": 1}}}')
    assert loads(dumps(read.snapshot)).snapshot == read.snapshot


def test_a_file_of_a_program_without_rollouts_is_idle() -> None:
    read = decode({"version": "2.0", "daemons": {}, "workspaces": {}})
    assert read.snapshot.deployment == Deployment()


def test_a_lost_block_comes_back_from_the_last_good_copy_with_the_daemons_it_names() -> None:
    good = Snapshot({"a": Daemon("a", port=1), "z": Daemon("z")}, deployment=Deployment(7, active_boot_id="a"))
    read = decode({"version": "2.0", "daemons": {"n": {"port": 2}}}, good=good)
    assert read.snapshot.deployment.generation == 7
    assert set(read.snapshot.daemons) == {"n", "a"}
    assert read.report


def test_schema_1_becomes_daemons_and_workspaces() -> None:
    raw = {"version": "1.3", "instances": {"/p": {"pid": 5, "port": 80, "start_ts": 1.5, "version": "0.9"}}}
    read = decode(raw)
    daemon = read.snapshot.daemons["legacy-5-80"]
    assert (daemon.pid, daemon.port, daemon.start_ts, daemon.version) == (5, 80, 1.5, "0.9")
    assert read.snapshot.workspaces["/p"].boot_id == "legacy-5-80"
    assert json.loads(dumps(read.snapshot))["version"] == "2.0"


@pytest.mark.parametrize("version", ["3.0", "10", "3", 3, 3.5])
def test_a_higher_major_version_is_refused(version: object) -> None:
    with pytest.raises(RegistryUnsupportedError) as caught:
        decode({"version": version})
    assert caught.value.hint


@pytest.mark.parametrize(
    ("block", "becomes"),
    [
        ({"state": "switched", "active_boot_id": "a", "old_boot_id": "a"}, {"state": "idle", "old_boot_id": ""}),
        ({"state": "switched", "active_boot_id": "a"}, {"state": "idle"}),
        ({"state": "switched", "old_boot_id": "o"}, {"state": "idle", "old_boot_id": ""}),
        (
            {"state": "ready", "active_boot_id": "a", "candidate_boot_id": "a"},
            {"state": "idle", "candidate_boot_id": ""},
        ),
        ({"state": "starting"}, {"state": "idle"}),
        ({"state": "idle", "candidate_boot_id": "c", "old_boot_id": "o"}, {"candidate_boot_id": "", "old_boot_id": ""}),
    ],
)
def test_a_block_that_contradicts_itself_is_put_right_and_reported(
    block: dict[str, Any], becomes: dict[str, Any]
) -> None:
    read = decode({"deployment": {**block, "revision": 5, "generation": 2}})
    found = read.snapshot.deployment
    assert {key: getattr(found, key) for key in becomes} == becomes
    assert (found.revision, found.generation, found.active_boot_id) == (5, 2, block.get("active_boot_id", ""))
    assert read.report


# -- a registry that is read again and again ---------------------------------------------------------------------------

odd = st.sampled_from(
    [None, True, False, 0, 1, 1.0, 0.0, -0.0, 80, 80.0, "", "1", "80", 2**70, "\ud800", [1], {"a": 1}]
)
entries = st.one_of(
    odd,
    st.dictionaries(
        st.sampled_from(
            ["host", "port", "pid", "draining", "version", "start_ts", "boot_id", "http_port", "owned", "x"]
        ),
        odd,
        max_size=5,
    ),
)
sections = st.dictionaries(st.sampled_from(["a", "b", "c"]), entries, max_size=3)
raws = st.fixed_dictionaries({"daemons": sections, "workspaces": sections})


def told_alike(*versions: dict[str, Any]) -> None:
    """Whatever stood there before; repr tells 1 from 1.0, which equality does not."""
    cache: EntryCache = {}
    for raw in versions:
        data = json.dumps(raw).encode()
        found, plain = loads(data, cache=cache), loads(data)
        assert found.report == plain.report
        assert repr(found.snapshot) == repr(plain.snapshot)


@settings(max_examples=scaled(300, 10_000))
@given(st.lists(raws, min_size=2, max_size=4))
def test_a_memo_changes_nothing_of_what_is_read(versions: list[dict[str, Any]]) -> None:
    told_alike(*versions)


@pytest.mark.parametrize("field", ["draining", "port", "start_ts", "owned", "theirs"])
@pytest.mark.parametrize("values", [(1, True), (1, 1.0), (0, False), (0.0, -0.0), (True, "true"), (80, "80")], ids=str)
def test_a_memo_takes_nothing_for_what_is_only_equal_to_it(field: str, values: tuple[object, object]) -> None:
    one, other = ({"daemons": {"a": {field: value}}} for value in values)
    told_alike(one, other, one)
    told_alike(other, one)


@pytest.mark.parametrize("value", ["no object", {"port": "bad"}])
def test_what_has_to_be_mended_is_reported_each_time(value: object) -> None:
    raw = {"daemons": {"a": value}}
    told_alike(raw, raw, raw)


def test_with_a_memo_an_entry_that_stayed_is_the_same_object() -> None:
    cache: EntryCache = {}
    first = loads(dumps(SNAPSHOT), cache=cache).snapshot
    changed = replace(SNAPSHOT, daemons={**SNAPSHOT.daemons, "new": Daemon("new", port=7)})
    second = loads(dumps(changed), cache=cache).snapshot
    for boot_id in SNAPSHOT.daemons:
        assert second.daemons[boot_id] is first.daemons[boot_id]
    for root in SNAPSHOT.workspaces:
        assert second.workspaces[root] is first.workspaces[root]
    assert second == changed


def test_a_memo_forgets_what_is_gone() -> None:
    cache: EntryCache = {}
    loads(dumps(SNAPSHOT), cache=cache)
    loads(dumps(Snapshot()), cache=cache)
    assert not any(cache.values())
