"""Writers that take no lock: what they undo is put back, what they rightly say is kept, and both are told."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from faulty_files import UnsyncedFiles
from registry_child import begin
from registry_support import SNAPSHOT, opened, start, write_both
from support import eventually, report
from turnout.core.deployment import Change, begin_deploy, finish_deploy, mark_candidate_healthy, switch_active
from turnout.core.membership import register_daemon
from turnout.core.model import Daemon, Identity, Snapshot
from turnout.errors import LockTimeoutError
from turnout.state.registry.decoder import loads
from turnout.state.registry.encoder import dumps
from turnout.state.registry.file import Foreign, RegistryFile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "registry.json"
    write_both(found)
    return found


def rewrite(path: Path, edit: Callable[[dict[str, Any]], None]) -> bytes:
    """As another program does it: read, change, replace; no lock."""
    raw = json.loads(path.read_bytes())
    edit(raw)
    temp = path.with_name("theirs.tmp")
    temp.write_text(json.dumps(raw))
    temp.replace(path)
    return path.read_bytes()


def in_file(path: Path) -> Snapshot:
    return loads(path.read_bytes()).snapshot


def good(path: Path) -> Snapshot:
    return in_file(path.with_name("registry.json.good"))


def settled(path: Path) -> Foreign:
    told: list[Foreign] = []
    registry = RegistryFile(path, files=UnsyncedFiles(), tell=told.append)
    assert not registry.read().settled
    foreign = registry.settle()
    assert registry.read().settled
    assert told == ([foreign] if foreign.repairs or foreign.followed else [])
    assert good(path) == in_file(path) == foreign.snapshot
    return foreign


def drop_block(raw: dict[str, Any]) -> None:
    del raw["deployment"]
    raw["theirs"] = "kept"


def older_block(raw: dict[str, Any]) -> None:
    raw["deployment"].update(revision=3, generation=1, active_boot_id="")
    raw["theirs"] = "kept"


def prune(raw: dict[str, Any]) -> None:
    raw["daemons"] = {}
    raw["theirs"] = "kept"


def follow_nobody(raw: dict[str, Any]) -> None:
    raw["deployment"].update(revision=99, active_boot_id="nobody")
    raw["theirs"] = "kept"


@pytest.mark.parametrize("edit", [drop_block, older_block, prune, follow_nobody])
def test_what_an_old_writer_undid_is_put_back_and_the_rest_is_its_own(
    path: Path, edit: Callable[[dict[str, Any]], None]
) -> None:
    rewrite(path, edit)
    foreign = settled(path)
    assert foreign.repairs
    assert not foreign.followed
    assert in_file(path).deployment == SNAPSHOT.deployment
    assert in_file(path).active == SNAPSHOT.active
    assert in_file(path).extra["theirs"] == "kept"


@pytest.mark.parametrize("damage", [None, b"", b"garbage"], ids=["removed", "emptied", "garbage"])
def test_a_lost_file_is_put_back(path: Path, damage: bytes | None) -> None:
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage)
    registry = opened(path)
    foreign = registry.settle()
    assert foreign.repairs
    assert in_file(path) == good(path) == SNAPSHOT
    assert registry.read().settled


def test_a_heartbeat_is_kept_and_the_file_is_not_touched(path: Path) -> None:
    theirs = rewrite(path, lambda raw: raw["daemons"]["active"].update(last_seen_ts=7.0))
    foreign = settled(path)
    assert not foreign.repairs
    assert path.read_bytes() == theirs
    assert good(path).daemons["active"].last_seen_ts == 7.0


def test_a_deliberate_newer_deployment_is_followed_and_outlives_the_next_damage(path: Path) -> None:
    def retarget(raw: dict[str, Any]) -> None:
        raw["daemons"]["theirs"] = {"port": 40009}
        raw["deployment"].update(revision=21, active_boot_id="theirs")

    theirs = rewrite(path, retarget)
    foreign = settled(path)
    assert foreign.followed
    assert path.read_bytes() == theirs
    path.write_bytes(b"")
    assert opened(path).read().snapshot.deployment.active_boot_id == "theirs"


def test_a_registry_that_another_program_made_gets_its_good_copy(tmp_path: Path) -> None:
    path = tmp_path / "registry.json"
    path.write_bytes(dumps(SNAPSHOT))
    assert not settled(path).followed


def test_what_a_crashed_writer_of_ours_had_put_in_place_is_not_taken_for_foreign(path: Path) -> None:
    after = begin(SNAPSHOT).snapshot
    path.write_bytes(dumps(after))
    path.with_name("registry.json.good.new").write_bytes(dumps(after))
    assert not settled(path).followed


def test_where_nothing_is_to_do_nothing_is_done(path: Path) -> None:
    before = path.stat()
    assert opened(path).settle() == Foreign(SNAPSHOT)
    assert path.stat() == before


def test_a_writer_at_work_is_not_waited_for(path: Path) -> None:
    rewrite(path, drop_block)
    holder = start("hold", path)
    try:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(LockTimeoutError):
            RegistryFile(path).settle(lock_timeout_s=0)
    finally:
        holder.communicate("\n")
    assert in_file(path).deployment.generation == SNAPSHOT.deployment.generation + 1, "the writer merged"


def test_an_event_that_puts_something_back_tells_it_too(path: Path) -> None:
    told: list[Foreign] = []
    rewrite(path, drop_block)
    RegistryFile(path, files=UnsyncedFiles(), tell=told.append).update(begin)
    assert [bool(foreign.repairs) for foreign in told] == [True]


def test_what_comes_between_reading_and_writing_is_told_too(path: Path) -> None:
    told: list[Foreign] = []
    registry = RegistryFile(path, files=UnsyncedFiles(), tell=told.append)
    came: list[bytes] = []

    def change(snapshot: Snapshot) -> Any:
        if not came:
            came.append(rewrite(path, drop_block))
        return begin(snapshot)

    assert registry.update(change).applied
    assert [bool(foreign.repairs) for foreign in told] == [True]


class Deployer(threading.Thread):
    """Fifty deploys, each through all its events and across a heartbeat; ``switched`` is the last one that is done."""

    def __init__(self, path: Path, deploys: int) -> None:
        super().__init__()
        self.registry = RegistryFile(path, files=UnsyncedFiles(), lock_timeout_s=60)
        self.deploys = deploys
        self.switched = 0
        self.refused: list[str] = []
        self.done = threading.Event()

    def beats(self) -> int:
        return int(self.registry.read().snapshot.extra["beats"])

    def run(self) -> None:
        try:
            for number in range(1, self.deploys + 1):
                self.deploy(number)
        finally:
            self.done.set()

    def deploy(self, number: int) -> None:
        boot, generation = f"v{number}", SNAPSHOT.deployment.generation + number
        before = self.beats()
        self.must(lambda snap: begin_deploy(snap, boot, owner=Identity(1), expected_generation=generation - 1))
        self.must(lambda snap: register_daemon(snap, Daemon(boot, port=40000 + number)))
        self.must(lambda snap: mark_candidate_healthy(snap, generation, boot))
        self.must(lambda snap: switch_active(snap, generation, boot, now=1.0))
        self.switched = number
        eventually(lambda: self.beats() > before, why="the old writer does not beat")
        self.must(lambda snap: finish_deploy(snap, generation))

    def must(self, change: Change) -> None:
        outcome = self.registry.update(change)
        if not outcome.applied:
            self.refused.append(outcome.reason)


def number_of(snapshot: Snapshot) -> int:
    """Which deploy a snapshot stands at; 0: none yet, or no block at all."""
    boot = snapshot.deployment.active_boot_id
    return int(boot[1:]) if boot.startswith("v") else 0


def test_an_old_writers_heartbeats_beside_fifty_deploys_undo_no_switch_for_longer_than_two_polls(path: Path) -> None:
    """The old writer: ten times a second read, beat, forget the block, write. A poll: read, and settle if need be."""
    write_both(path, replace(SNAPSHOT, extra={"beats": 0}))
    writer = start("old-writer", path)
    guardian = RegistryFile(path, files=UnsyncedFiles())
    deployer = Deployer(path, 50)
    undone: dict[int, int] = {}  # heartbeat: polls that saw what it undid
    polls = 0
    deployer.start()
    try:
        while not deployer.done.wait(0.02):
            polls += 1
            least, raw = deployer.switched, in_file(path)
            if number_of(raw) < least:
                beat = int(raw.extra["beats"])
                undone[beat] = undone.get(beat, 0) + 1
            read = guardian.read()
            assert number_of(read.snapshot) >= least, "a reader saw a switch undone"
            if not read.settled:
                with suppress(LockTimeoutError):  # the deploy is writing, and merges
                    guardian.settle(lock_timeout_s=0)
    finally:
        deployer.join(60)
        writer.communicate("\n", timeout=20)
    guardian.settle()
    found = in_file(path)
    longest = max(undone.values(), default=0)
    report("old writer", beats=found.extra["beats"], undone=len(undone), longest_polls=longest, polls=polls)
    assert deployer.refused == []
    assert found.extra["beats"] >= 50
    assert found.deployment.generation == SNAPSHOT.deployment.generation + 50
    assert found.deployment.active_boot_id == "v50"
    assert undone, "no heartbeat undid anything: this test shows nothing"
    assert longest <= 2, undone
