"""Writers that take no lock: what they write between turnout's read and its write is merged, not lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from faulty_files import OldSystem, UnsyncedFiles
from registry_child import begin
from turnout.core.model import Daemon, Deployment, Snapshot, Workspace
from turnout.core.outcome import Outcome, Reason
from turnout.errors import ConflictError
from turnout.state.registry.decoder import loads
from turnout.state.registry.encoder import dumps
from turnout.state.registry.file import RegistryFile
from turnout.system.files import Files

ACTIVE = Daemon("active", port=40001, version="1.0")
SNAPSHOT = Snapshot(
    {"active": ACTIVE},
    {"/a": Workspace("/a", "active")},
    Deployment(generation=4, active_boot_id="active", revision=20),
)
WITH_EXCHANGE = pytest.param(UnsyncedFiles, id="exchange")
WITHOUT = pytest.param(OldSystem, id="rename")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "registry.json"
    path.write_bytes(dumps(SNAPSHOT))
    path.with_name("registry.json.good").write_bytes(dumps(SNAPSHOT))
    return path


def once(act: Callable[[], object]) -> Callable[[Snapshot], Outcome]:
    """An event during which somebody else writes, the first time."""
    acted = False

    def change(snapshot: Snapshot) -> Outcome:
        nonlocal acted
        if not acted:
            acted = True
            act()
        return begin(snapshot)

    return change


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """As other programs do it: parse, change, write a new file, rename."""
    raw = json.loads(path.read_bytes())
    change(raw)
    temp = path.with_name("theirs.tmp")
    temp.write_text(json.dumps(raw))
    temp.replace(path)


def beat(raw: dict[str, Any]) -> None:
    raw["daemons"]["active"]["last_seen_ts"] = 5.0
    raw["daemons"]["client"] = {"port": 40002}
    raw["theirs"] = "kept"


def in_file(path: Path) -> Snapshot:
    return loads(path.read_bytes()).snapshot


@pytest.mark.parametrize("files", [WITH_EXCHANGE, WITHOUT])
class TestBetween:
    def test_a_heartbeat_and_the_event_are_both_there(self, path: Path, files: type[Files]) -> None:
        outcome = RegistryFile(path, files=files()).update(once(lambda: rewrite(path, beat)))
        assert outcome.applied
        found = in_file(path)
        assert found == outcome.snapshot
        assert found.deployment.generation == 5
        assert found.daemons["active"].last_seen_ts == 5.0
        assert "client" in found.daemons
        assert found.extra == {"theirs": "kept"}

    def test_a_lost_block_does_not_lose_the_event(self, path: Path, files: type[Files]) -> None:
        def forget(raw: dict[str, Any]) -> None:
            del raw["deployment"]
            raw["daemons"] = {}

        outcome = RegistryFile(path, files=files()).update(once(lambda: rewrite(path, forget)))
        assert in_file(path).deployment == outcome.deployment
        assert in_file(path).deployment.generation == 5
        assert in_file(path).active == ACTIVE

    def test_a_deliberate_newer_deployment_meets_the_event_again(self, path: Path, files: type[Files]) -> None:
        def deploy(raw: dict[str, Any]) -> None:
            raw["deployment"].update(generation=9, revision=40, active_boot_id="other")
            raw["daemons"]["other"] = {"port": 40003}

        seen: list[int] = []
        inner = once(lambda: rewrite(path, deploy))

        def change(snapshot: Snapshot) -> Outcome:
            seen.append(snapshot.deployment.generation)
            return inner(snapshot)

        outcome = RegistryFile(path, files=files()).update(change)
        assert seen == [4, 9]
        assert in_file(path) == outcome.snapshot
        assert (outcome.deployment.generation, outcome.deployment.revision) == (10, 41)

    def test_an_event_refused_by_the_newer_deployment_leaves_that_one(self, path: Path, files: type[Files]) -> None:
        def deploy(raw: dict[str, Any]) -> None:
            raw["deployment"].update(generation=9, revision=40)

        def change(snapshot: Snapshot) -> Outcome:
            if snapshot.deployment.generation != 4:
                return Outcome(applied=False, reason=Reason.GENERATION_CHANGED, snapshot=snapshot)
            rewrite(path, deploy)
            return begin(snapshot)

        outcome = RegistryFile(path, files=files()).update(change)
        assert not outcome.applied
        assert in_file(path) == outcome.snapshot
        assert in_file(path).deployment == replace(SNAPSHOT.deployment, generation=9, revision=40)

    def test_a_file_removed_meanwhile_is_written_again(self, path: Path, files: type[Files]) -> None:
        outcome = RegistryFile(path, files=files()).update(once(path.unlink))
        assert in_file(path) == outcome.snapshot

    def test_a_file_that_comes_meanwhile_is_merged(self, path: Path, files: type[Files]) -> None:
        path.unlink()
        path.with_name("registry.json.good").unlink()
        theirs = Snapshot({"client": Daemon("client", port=40002)})
        outcome = RegistryFile(path, files=files()).update(once(lambda: path.write_bytes(dumps(theirs))))
        assert in_file(path) == outcome.snapshot
        assert set(outcome.snapshot.daemons) == {"client"}

    def test_nothing_is_left_behind(self, path: Path, files: type[Files]) -> None:
        RegistryFile(path, files=files()).update(once(lambda: rewrite(path, beat)))
        names = {entry.name for entry in path.parent.iterdir()}
        assert names == {"registry.json", "registry.json.good", "registry.json.lock"}


def test_an_in_place_writer_that_was_in_the_middle_is_followed(path: Path) -> None:
    theirs = replace(SNAPSHOT, extra={"in place": 1})
    file = path.open("r+b")

    def begin_writing() -> None:
        file.truncate()
        file.write(dumps(theirs)[:40])
        file.flush()

    def finish_writing(_seconds: float) -> None:
        if not file.closed:
            file.write(dumps(theirs)[40:])
            file.close()

    outcome = RegistryFile(path, files=UnsyncedFiles(), sleep=finish_writing).update(once(begin_writing))
    assert outcome.snapshot.extra == {"in place": 1}
    assert in_file(path) == outcome.snapshot


@pytest.mark.parametrize("theirs", [b"garbage", b'{"version": "3.0"}'], ids=["garbage", "newer-version"])
def test_what_cannot_be_merged_is_kept_aside(path: Path, theirs: bytes) -> None:
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 0.3
        return now

    registry = RegistryFile(path, files=UnsyncedFiles(), clock=clock, sleep=lambda _s: None)
    outcome = registry.update(once(lambda: path.write_bytes(theirs)))
    assert outcome.applied
    assert in_file(path) == outcome.snapshot
    assert [kept.read_bytes() for kept in path.parent.glob("registry.json.displaced-*")] == [theirs]


def test_what_cannot_be_written_again_is_kept_aside_and_the_event_counts(path: Path) -> None:
    theirs = b'{"theirs": ' + b"[" * 900 + b"]" * 900 + b"}"
    registry = RegistryFile(path, files=UnsyncedFiles(), sleep=lambda _s: None)
    outcome = registry.update(once(lambda: path.write_bytes(theirs)))
    assert outcome.applied
    assert in_file(path).deployment == outcome.deployment
    assert [kept.read_bytes() for kept in path.parent.glob("registry.json.displaced-*")] == [theirs]


def test_a_writer_that_never_stops_ends_in_an_error_or_a_merge_and_not_in_a_loop(path: Path) -> None:
    beats = 0

    def change(snapshot: Snapshot) -> Outcome:
        nonlocal beats
        beats += 1
        rewrite(path, lambda raw: raw.update(beats=beats))
        return begin(snapshot)

    with pytest.raises(ConflictError, match="keeps writing"):
        RegistryFile(path, files=OldSystem()).update(change)
    assert in_file(path).deployment.generation == 4
    assert RegistryFile(path, files=UnsyncedFiles()).update(change).applied
    assert in_file(path).extra == {"beats": beats}
