"""Every way in which a registry file was ever found: one table, and the same three claims for each row.

A reader gets the last good state or what the file rightly says; the generation never falls; the next event is written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from faulty_files import names_in
from registry_child import begin
from registry_support import ACTIVE, SNAPSHOT, opened, write_both
from turnout.core.deployment import begin_deploy, mark_candidate_healthy, switch_active
from turnout.core.membership import register_daemon
from turnout.core.model import Daemon, Identity, Snapshot, State
from turnout.errors import RegistryUnsupportedError, StateUnwritableError
from turnout.state.registry.decoder import loads
from turnout.state.registry.encoder import dumps

GOOD = dumps(SNAPSHOT)
Damage = Callable[[Path], object]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "registry.json"
    write_both(path)
    return path


def holds(data: bytes) -> Damage:
    return lambda path: path.write_bytes(data)


def says(**fields: Any) -> Damage:
    """The file as it was, with other values in the block."""

    def write(path: Path) -> None:
        raw = json.loads(GOOD)
        raw["deployment"].update(fields)
        path.write_text(json.dumps(raw))

    return write


def over_and_over(data: bytes, size: int) -> Damage:
    def write(path: Path) -> None:
        with path.open("wb") as file:
            file.write(data)
            file.truncate(size)

    return write


NOT_A_REGISTRY: dict[str, Damage] = {
    "missing": lambda path: path.unlink(),
    "empty": holds(b""),
    "truncated in the middle": holds(GOOD[: len(GOOD) // 2]),
    "truncated before the last byte but one": holds(GOOD[:-2]),
    "all NUL": holds(bytes(len(GOOD))),
    "wrong root type: list": holds(b"[]"),
    "wrong root type: string": holds(b'"registry"'),
    "wrong root type: number": holds(b"2.0"),
    "wrong root type: null": holds(b"null"),
    "duplicated keys": holds(GOOD.replace(b'"daemons"', b'"daemons": {}, "daemons"', 1)),
    "UTF-16": holds(GOOD.decode().encode("utf-16")),
    "UTF-16 without a mark": holds(GOOD.decode().encode("utf-16-le")),
    "two registries in a row": holds(GOOD + GOOD),
    "an old writer's torn end": holds(GOOD + GOOD[-20:]),
}


@pytest.mark.parametrize("damage", NOT_A_REGISTRY.values(), ids=NOT_A_REGISTRY)
def test_what_is_no_registry_is_stood_in_for_kept_aside_and_repaired_by_the_next_event(
    path: Path, damage: Damage
) -> None:
    damage(path)
    was = path.read_bytes() if path.exists() else None
    read = opened(path).read()
    assert (read.snapshot, read.source) == (SNAPSHOT, "good")
    assert read.report, "it is told"
    kept = [copy.read_bytes() for copy in path.parent.glob("registry.json.damaged-*")]
    assert kept == ([] if was is None else [was])
    outcome = opened(path).update(begin)
    assert outcome.deployment.generation == SNAPSHOT.deployment.generation + 1
    assert loads(path.read_bytes()).snapshot == outcome.snapshot


BAD_FIELDS: dict[str, Damage] = {
    "BOM": holds(b"\xef\xbb\xbf" + GOOD),
    "generation negative": says(generation=-1),
    "generation as a far too old text": says(generation="3"),
    "generation as a fraction": says(generation=4.5),
    "generation as a list": says(generation=[4]),
    "generation beyond any integer": says(generation=10**40),
    "state that is none": says(state="asleep"),
    "state switched, without an old one": says(state="SWITCHED"),
    "NaN": holds(GOOD.replace(b'"switch_ts": 0.0', b'"switch_ts": NaN')),
    "Infinity": holds(GOOD.replace(b'"switch_ts": 0.0', b'"switch_ts": Infinity')),
    "-Infinity": holds(GOOD.replace(b'"switch_ts": 0.0', b'"switch_ts": -Infinity')),
    "a number beyond the largest": holds(GOOD.replace(b'"switch_ts": 0.0', b'"switch_ts": 1e999')),
    "the block as text": lambda path: path.write_text(json.dumps(json.loads(GOOD) | {"deployment": "idle"})),
    "the block as null": lambda path: path.write_text(json.dumps(json.loads(GOOD) | {"deployment": None})),
    "the daemons as a list": lambda path: path.write_text(json.dumps(json.loads(GOOD) | {"daemons": []})),
    "the workspaces as a number": lambda path: path.write_text(json.dumps(json.loads(GOOD) | {"workspaces": 7})),
}


@pytest.mark.parametrize("damage", BAD_FIELDS.values(), ids=BAD_FIELDS)
def test_a_bad_field_costs_itself_is_told_and_never_the_deployment(path: Path, damage: Damage) -> None:
    damage(path)
    assert path.read_bytes() != GOOD, "this row damages nothing"
    read = opened(path).read()
    assert (read.source, read.report != ()) == ("file", True)
    block = read.snapshot.deployment
    assert (block.generation, block.state, block.active_boot_id) == (4, State.IDLE, "active")
    assert read.snapshot.active is not None
    assert read.snapshot.active.identity == ACTIVE.identity
    outcome = opened(path).update(begin)
    assert (outcome.applied, outcome.deployment.generation) == (True, 5)
    assert opened(path).read().settled
    json.loads(path.read_bytes(), parse_constant=lambda name: pytest.fail(f"{name} was written"))
    assert not list(path.parent.glob("registry.json.damaged-*")), "it could be read: nothing is damaged"


@pytest.mark.parametrize("generation", [7, "7", 7.0])
def test_generation_as_text_is_the_number_that_it_spells_and_nothing_to_report(path: Path, generation: object) -> None:
    """Other languages write it so; nothing is lost by it."""
    says(generation=generation, revision=21)(path)
    read = opened(path).read()
    assert (read.snapshot.deployment.generation, read.report) == (7, ())


def test_state_switched_in_capitals_is_the_state_that_it_names(path: Path) -> None:
    snapshot = switched(switched(Snapshot({"a": Daemon("a", port=1), "b": Daemon("b", port=2)}), 1, "a"), 2, "b")
    assert snapshot.deployment.state is State.SWITCHED
    write_both(path, snapshot)
    path.write_bytes(dumps(snapshot).replace(b'"switched"', b'"SWITCHED"'))
    assert opened(path).read().snapshot == snapshot


def switched(snapshot: Snapshot, generation: int, boot_id: str) -> Snapshot:
    snapshot = begin_deploy(snapshot, boot_id, owner=Identity(1)).snapshot
    snapshot = mark_candidate_healthy(snapshot, generation, boot_id).snapshot
    return switch_active(snapshot, generation, boot_id, now=1.0).snapshot


def instead(make: Callable[[Path], object]) -> Damage:
    def write(path: Path) -> None:
        path.unlink()
        make(path)

    return write


REFUSED: dict[str, tuple[Damage, type[Exception], str]] = {
    "version 3.0": (holds(GOOD.replace(b'"2.0"', b'"3.0"')), RegistryUnsupportedError, "3.0"),
    "a directory": (instead(Path.mkdir), StateUnwritableError, "Is a directory"),
    "a fifo": (instead(os.mkfifo), StateUnwritableError, "not a regular file"),
    "a link into a loop": (instead(lambda path: path.symlink_to(path.name)), StateUnwritableError, "levels"),
    "200 MB": (over_and_over(GOOD, 200 << 20), StateUnwritableError, "200 MiB, at most 64"),
}


@pytest.mark.parametrize(("damage", "error", "said"), REFUSED.values(), ids=REFUSED)
def test_what_must_not_be_touched_is_refused_with_one_clear_error_and_stays(
    path: Path, damage: Damage, error: type[Exception], said: str
) -> None:
    damage(path)
    before = path.lstat()
    for attempt in (opened(path).read, lambda: opened(path).update(begin)):
        with pytest.raises(error, match=said) as caught:
            attempt()
        assert getattr(caught.value, "hint", ""), "it says what to do"
    after = path.lstat()
    assert (after.st_mode, after.st_ino, after.st_size, after.st_mtime_ns) == (
        before.st_mode,
        before.st_ino,
        before.st_size,
        before.st_mtime_ns,
    )
    assert path.with_name("registry.json.good").read_bytes() == GOOD


def test_a_symlink_is_read_and_written_through_and_stays_one(path: Path) -> None:
    real = path.with_name("elsewhere.json")
    path.rename(real)
    path.symlink_to(real.name)
    assert opened(path).read().snapshot == SNAPSHOT
    outcome = opened(path).update(lambda snap: register_daemon(snap, Daemon("client", port=7)))
    assert outcome.applied
    assert path.is_symlink()
    assert loads(real.read_bytes()).snapshot == outcome.snapshot
    assert "elsewhere.json" in names_in(path.parent)
