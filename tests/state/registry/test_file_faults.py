"""What the registry file survives: damage, errors and crashes at every step."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from faulty_files import FaultyFiles, UnsyncedFiles, names_in
from registry_child import add_one, begin
from registry_support import ACTIVE, CHILD, SNAPSHOT, Time, opened, write_both
from support import report, scaled
from turnout.core.model import Snapshot
from turnout.core.outcome import Outcome
from turnout.errors import (
    RegistryDamagedError,
    RegistryUnsupportedError,
    StateUnwritableError,
)
from turnout.state.registry.decoder import loads
from turnout.state.registry.encoder import dumps
from turnout.state.registry.file import RegistryFile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "registry.json"


def test_truncated_at_any_byte_the_last_good_state_is_found(path: Path) -> None:
    data = write_both(path)
    for length in range(len(data) - 2):
        path.write_bytes(data[:length])
        read = opened(path).read()
        assert (read.snapshot, read.source) == (SNAPSHOT, "good"), length
        assert data[:length] in {kept.read_bytes() for kept in path.parent.glob("registry.json.damaged-*")}, length
    assert sum(".damaged-" in name for name in names_in(path.parent)) == 5


def read_with_a_flipped_byte(path: Path, data: bytes, at: int, bits: int) -> str:
    """Flip, read, and check that it is the good state or a coerced and reported one; which of them."""
    flipped = bytearray(data)
    flipped[at] ^= bits
    path.write_bytes(flipped)
    try:
        read = opened(path).read()
    except RegistryUnsupportedError:  # the version's digit was hit
        assert b'"version": "2.0"' not in flipped
        return "unsupported"
    block = read.snapshot.deployment
    assert block.generation >= SNAPSHOT.deployment.generation, "the generation never falls"
    assert block.active_boot_id in read.snapshot.daemons, "what is active is known"
    assert read.snapshot.daemons["active"].identity == ACTIVE.identity
    if read.source == "good":
        assert read.snapshot == SNAPSHOT
        assert bytes(flipped) in {kept.read_bytes() for kept in path.parent.glob("registry.json.damaged-*")}
        return "good"
    assert not read.settled or read.snapshot == SNAPSHOT, "what differs from the last good copy does not go unseen"
    return "coerced"


def test_a_flipped_byte_anywhere_is_never_a_crash_and_never_an_empty_registry(path: Path) -> None:
    data = write_both(path)
    came = Counter(read_with_a_flipped_byte(path, data, at, 0x01) for at in range(len(data)))
    chance = random.Random(20261124)
    for _ in range(scaled(500, 10_000)):
        came[read_with_a_flipped_byte(path, data, chance.randrange(len(data)), chance.randrange(1, 256))] += 1
    report("byte flips", **came)
    assert came["good"]
    assert came["coerced"]


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        bytes(600),
        b"null",
        b"[]",
        b"{} {}",
        b'{"daemons": {}, "daemons": {}}',
        dumps(SNAPSHOT).decode().encode("utf-16"),
        b"[" * 100_000,
        b"\xff\xfe",
    ],
    ids=["empty", "all-nul", "null", "list", "two", "doubled-key", "utf-16", "deep", "no-text"],
)
class TestDamaged:
    def test_the_good_copy_stands_in_and_the_damage_is_kept_aside_in_place(self, path: Path, damage: bytes) -> None:
        write_both(path)
        path.write_bytes(damage)
        read = opened(path).read()
        assert (read.snapshot, read.source) == (SNAPSHOT, "good")
        kept = list(path.parent.glob("registry.json.damaged-*"))
        assert [copy.read_bytes() for copy in kept] == [damage]
        assert kept[0].name in read.report[0].what
        assert path.read_bytes() == damage

    def test_without_a_good_copy_it_is_an_error_and_never_an_empty_registry(self, path: Path, damage: bytes) -> None:
        path.write_bytes(damage)
        with pytest.raises(RegistryDamagedError, match="damaged-"):
            opened(path).read()
        with pytest.raises(RegistryDamagedError):
            opened(path).update(begin)
        assert path.read_bytes() == damage

    def test_the_next_event_repairs_the_file(self, path: Path, damage: bytes) -> None:
        write_both(path)
        path.write_bytes(damage)
        outcome = opened(path).update(begin)
        assert outcome.deployment.generation == 5
        assert loads(path.read_bytes()).snapshot == outcome.snapshot


def test_the_same_damage_is_kept_once(path: Path) -> None:
    write_both(path)
    path.write_bytes(b"{")
    registry = opened(path)
    for _ in range(3):
        registry.read()
        opened(path).read()
    assert sum(".damaged-" in name for name in names_in(path.parent)) == 1


def test_a_writer_in_the_middle_is_waited_for(path: Path) -> None:
    data = write_both(path)
    path.write_bytes(data[:50])
    time = Time()

    def sleep(seconds: float) -> None:
        time.sleep(seconds)
        if time.slept > 0.9:
            path.write_bytes(data)

    read = RegistryFile(path, clock=time, sleep=sleep).read()
    assert read.source == "file"
    assert not list(path.parent.glob("*damaged*"))


def test_a_file_that_never_stops_changing_ends_the_wait(path: Path) -> None:
    write_both(path)
    path.write_bytes(b"{")
    time = Time()

    def sleep(seconds: float) -> None:
        time.sleep(seconds)
        path.write_bytes(b"{" * int(time.slept * 100))

    assert RegistryFile(path, clock=time, sleep=sleep).read().source == "good"
    assert time.slept < 10


def test_nothing_is_named_before_it_is_synced(path: Path) -> None:
    write_both(path)
    files = FaultyFiles()
    opened(path, files=files).update(begin)
    synced = [what for name, what in files.touched if name == "fsync"]
    for name, what in files.touched:
        if name in {"rename", "exchange", "link"}:
            source = what.split()[0]
            written = [step for step in files.touched[: files.touched.index((name, what))] if step[0] == "fsync"]
            assert ("fsync", source) in written, what
    assert len(synced) == 2
    assert files.steps[-1] == "fsync_dir"


def steps_of_an_update(path: Path) -> list[str]:
    files = FaultyFiles()
    opened(path, files=files).update(begin)
    return files.steps


@pytest.mark.parametrize("known", [True, False], ids=["replaced", "first"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from-then-on"])
def test_an_error_at_any_step_leaves_the_old_or_the_new_state(
    tmp_path: Path, code: int, *, known: bool, lasting: bool
) -> None:
    old = SNAPSHOT if known else Snapshot()

    def fresh(name: str) -> Path:
        path = tmp_path / name / "registry.json"
        path.parent.mkdir()
        if known:
            write_both(path)
        return path

    steps = steps_of_an_update(fresh("rehearsal"))
    assert len(steps) >= 12
    new = begin(old).snapshot
    for at in range(len(steps)):
        path = fresh(str(at))

        def strike(number: int, name: str, at: int = at) -> None:
            if number == at or (lasting and number > at and (name != "unlink" or code == errno.EROFS)):
                raise OSError(code, os.strerror(code))

        outcome: Outcome | None = None
        refused: StateUnwritableError | None = None
        try:
            outcome = opened(path, files=FaultyFiles(strike)).update(begin)
        except StateUnwritableError as error:
            refused = error
        if outcome:
            assert outcome.snapshot == new
            assert opened(path).read().snapshot == new, (at, steps[at])
            assert outcome.durable or steps[at] in {"rename", "fsync_dir"} or lasting
        else:
            assert refused
            assert os.strerror(code) in refused.message
            assert refused.hint
            assert path.exists() == known
            assert not known or path.read_bytes() == dumps(old)
            assert not known or opened(path).read().snapshot == old, (at, steps[at])
            if not (lasting and code == errno.EROFS) and steps[at] != "unlink":
                assert not [name for name in names_in(path.parent) if name.endswith((".tmp", ".new"))]
        assert opened(path).update(add_one).applied


def test_a_failed_last_sync_is_told(path: Path) -> None:
    def strike(_number: int, name: str) -> None:
        if name == "fsync_dir":
            raise OSError(errno.EIO, "I/O error")

    outcome = opened(path, files=FaultyFiles(strike)).update(begin)
    assert outcome.applied
    assert not outcome.durable


def test_short_writes_are_carried_on(path: Path) -> None:
    class Short(UnsyncedFiles):
        def write(self, fd: int, data: memoryview) -> int:
            return super().write(fd, data[:7])

    outcome = opened(path, files=Short()).update(begin)
    assert path.read_bytes() == dumps(outcome.snapshot)


@pytest.mark.parametrize("known", [True, False], ids=["replaced", "first"])
def test_a_writer_killed_at_any_step_leaves_the_old_or_the_new_state(tmp_path: Path, *, known: bool) -> None:
    template, where = tmp_path / "template", tmp_path / "where"
    template.mkdir()
    where.mkdir()
    old = SNAPSHOT if known else Snapshot()
    if known:
        write_both(template / "registry.json")
    new = begin(old).snapshot
    done = subprocess.run(
        [sys.executable, str(CHILD), "crash", str(template), str(where)], capture_output=True, text=True, check=True
    )
    ends = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert len(ends) >= 12
    assert [status for _, status in ends] == [-9] * (len(ends) - 1) + [0]
    seen: set[int] = set()
    for at, _ in ends:
        path = where / str(at) / "registry.json"
        read = opened(path).read()
        assert read.snapshot in {old.deployment.generation: old, new.deployment.generation: new}.values(), at
        assert not read.report or not known, at
        seen.add(read.snapshot.deployment.generation)
        assert opened(path).update(add_one).applied
        assert not [name for name in names_in(path.parent) if name.endswith((".tmp", ".new"))]
    assert seen == {old.deployment.generation, new.deployment.generation}


def test_a_good_copy_that_a_killed_writer_had_ready_is_used_when_the_file_is_lost(path: Path) -> None:
    write_both(path)
    newer = begin(SNAPSHOT).snapshot
    path.with_name("registry.json.good.new").write_bytes(dumps(newer))
    assert opened(path).read().snapshot == SNAPSHOT
    path.write_bytes(b"")
    assert opened(path).read().snapshot == newer
