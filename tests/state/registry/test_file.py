"""The registry file: what is read of it, and what is written to it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from faulty_files import names_in
from registry_child import add_one, begin
from registry_support import ACTIVE, SNAPSHOT, Time, opened, start, write_both
from support import scaled
from turnout.core.membership import register_daemon
from turnout.core.model import Snapshot, State
from turnout.core.outcome import Outcome, Reason
from turnout.errors import LockTimeoutError, RegistryDamagedError, RegistryUnsupportedError, StateUnwritableError
from turnout.state.registry.decoder import loads
from turnout.state.registry.encoder import dumps
from turnout.state.registry.file import RegistryFile
from turnout.system.process import command_of


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "registry.json"


@pytest.fixture
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that is in the middle of an update."""
    write_both(path)
    with start("hold", path) as child:
        try:
            assert child.stdout
            assert child.stdout.readline() == "held\n"
            yield child
        finally:
            child.kill()


# -- reading ---------------------------------------------------------------------------------------------------------


def test_no_file_at_all_is_an_idle_registry(path: Path) -> None:
    read = opened(path).read()
    assert (read.snapshot, read.source, read.report) == (Snapshot(), "empty", ())
    assert names_in(path.parent) == set()


def test_what_was_written_is_read_back(path: Path) -> None:
    write_both(path)
    read = opened(path).read()
    assert (read.snapshot, read.source, read.report) == (SNAPSHOT, "file", ())
    assert read.fingerprint.inode == path.stat().st_ino


def test_a_missing_file_is_stood_in_for_by_the_last_good_copy(path: Path) -> None:
    write_both(path)
    path.unlink()
    read = opened(path).read()
    assert (read.snapshot, read.source) == (SNAPSHOT, "good")
    assert read.report


def test_a_higher_major_version_is_refused_and_not_touched(path: Path) -> None:
    data = b'{"version": "3.0", "daemons": {}}'
    path.write_bytes(data)
    registry = opened(path)
    for attempt in (registry.read, lambda: registry.update(begin)):
        with pytest.raises(RegistryUnsupportedError):
            attempt()
    assert path.read_bytes() == data
    assert names_in(path.parent) == {"registry.json", "registry.json.lock"}


def test_a_directory_in_its_place_is_a_clear_error(path: Path) -> None:
    path.mkdir()
    with pytest.raises(StateUnwritableError, match=r"registry\.json: Is a directory"):
        opened(path).read()


def test_a_file_of_200_mb_is_refused_unread(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(200 << 20)
    with pytest.raises(StateUnwritableError, match="200 MiB, at most 64"):
        opened(path).read()


def test_a_fifo_in_its_place_does_not_hang(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(StateUnwritableError, match="not a regular file"):
        opened(path).read()


def test_a_link_into_a_loop_is_a_clear_error(path: Path) -> None:
    path.symlink_to(path.name)
    with pytest.raises(StateUnwritableError):
        opened(path).read()


# -- the block belongs to turnout ------------------------------------------------------------------------------------


def test_an_old_program_that_rewrites_the_file_without_the_block_resets_nothing(path: Path) -> None:
    write_both(path)
    raw = json.loads(path.read_bytes())
    del raw["deployment"]
    raw["daemons"] = {"client": {"port": 40002}}
    path.write_text(json.dumps(raw))
    read = opened(path).read()
    assert read.snapshot.deployment == SNAPSHOT.deployment
    assert set(read.snapshot.daemons) == {"active", "client"}
    assert read.report
    outcome = opened(path).update(begin)
    assert outcome.deployment.generation == 5
    assert set(loads(path.read_bytes()).snapshot.daemons) == {"active", "client"}


def test_an_older_file_put_back_byte_for_byte_does_not_bring_an_older_block_back(path: Path) -> None:
    data = write_both(path)
    outcome = opened(path).update(begin)
    path.write_bytes(data)
    assert opened(path).read().snapshot.deployment == outcome.deployment
    assert opened(path).update(begin).reason is Reason.IN_PROGRESS


def test_a_pruned_active_daemon_comes_back(path: Path) -> None:
    write_both(path)
    path.write_bytes(dumps(replace(SNAPSHOT, daemons={})))
    assert opened(path).read().snapshot.active == ACTIVE


def test_another_program_may_raise_the_revision(path: Path) -> None:
    write_both(path)
    other = replace(SNAPSHOT.deployment, active_boot_id="", revision=21)
    path.write_bytes(dumps(replace(SNAPSHOT, deployment=other)))
    assert opened(path).read().snapshot.deployment == other


# -- writing ---------------------------------------------------------------------------------------------------------


def test_an_applied_event_is_in_the_file_and_in_the_good_copy(path: Path) -> None:
    outcome = opened(path).update(begin)
    assert outcome.durable
    assert path.read_bytes() == path.with_name("registry.json.good").read_bytes() == dumps(outcome.snapshot)
    assert names_in(path.parent) == {"registry.json", "registry.json.good", "registry.json.lock"}
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_refused_event_leaves_the_file_byte_identical(path: Path) -> None:
    path.write_text(json.dumps(json.loads(dumps(SNAPSHOT)), indent=7))  # not as turnout would write it
    before, state = path.read_bytes(), path.stat()
    outcome = opened(path).update(lambda snap: register_daemon(snap, ACTIVE))
    assert outcome.reason is Reason.ALREADY
    assert path.read_bytes() == before
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (state.st_ino, state.st_mtime_ns)


def test_data_nested_too_deeply_to_be_written_again_is_a_clear_error(path: Path) -> None:
    data = b'{"theirs": ' + b"[" * 900 + b"]" * 900 + b"}"
    path.write_bytes(data)
    with pytest.raises((StateUnwritableError, RegistryDamagedError), match=r"nested too deeply|damaged"):
        opened(path).update(begin)
    assert path.read_bytes() == data


def test_a_linked_registry_keeps_its_link(path: Path, tmp_path: Path) -> None:
    real = tmp_path / "elsewhere" / "real.json"
    real.parent.mkdir()
    path.symlink_to(real)
    outcome = opened(path).update(begin)
    outcome = opened(path).update(add_one)
    assert path.is_symlink()
    assert loads(real.read_bytes()).snapshot == outcome.snapshot


def test_a_file_that_others_may_read_stays_readable(path: Path) -> None:
    write_both(path)
    path.chmod(0o644)
    opened(path).update(begin)
    assert path.stat().st_mode & 0o777 == 0o644


def test_what_a_killed_writer_left_is_swept_and_nothing_else(path: Path) -> None:
    stale, foreign = path.with_name(".registry.json.1-0123abcd.tmp"), path.with_name(".registry.json.b.1-0123abcd.tmp")
    stale.touch()
    foreign.touch()
    opened(path).update(begin)
    assert not stale.exists()
    assert foreign.exists()


# -- the lock --------------------------------------------------------------------------------------------------------


def test_a_held_lock_is_an_error_that_names_the_process_and_changes_nothing(
    path: Path, holder: subprocess.Popen[str]
) -> None:
    before = path.read_bytes()
    named = re.escape(command_of(holder.pid))
    with pytest.raises(LockTimeoutError, match=rf"pid {holder.pid} \({named}\).*nothing was changed") as caught:
        opened(path, lock_timeout_s=0.1).update(begin)
    assert caught.value.exit_code == 6
    assert path.read_bytes() == before


def test_a_reader_never_waits_for_the_lock(path: Path, holder: subprocess.Popen[str]) -> None:
    time = Time()
    assert RegistryFile(path, clock=time, sleep=time.sleep).read().snapshot == SNAPSHOT
    assert time.slept == 0


def test_the_lock_of_a_killed_process_is_free(path: Path, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait()
    assert path.with_name("registry.json.lock").exists()
    assert opened(path).update(begin).applied


@pytest.mark.timeout(600)
def test_four_writers_lose_no_update(path: Path) -> None:
    each = scaled(400, 2500)
    children = [start("increments", path, each) for _ in range(4)]
    for child in children:
        child.communicate(timeout=500)
        assert child.returncode == 0
    snapshot = opened(path).read().snapshot
    assert snapshot.extra["n"] == snapshot.deployment.revision == 4 * each


def test_of_50_processes_that_deploy_with_one_generation_exactly_one_wins_and_49_are_told_the_same(path: Path) -> None:
    write_both(path)
    child = start("race", path, 4, 50)
    reasons = child.communicate(timeout=170)[0].split()
    assert child.returncode == 0
    assert sorted(reasons) == ["applied", *["generation_changed"] * 49]
    block = opened(path).read().snapshot.deployment
    assert (block.generation, block.revision) == (5, SNAPSHOT.deployment.revision + 1)


def test_a_directory_that_may_not_be_written_is_a_clear_error() -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own lies where an unprivileged child cannot go
        directory = Path(name)
        write_both(directory / "registry.json")
        for entry in directory.iterdir():
            entry.chmod(0o644)
        directory.chmod(0o555)
        try:
            child = start("unprivileged", directory / "registry.json")
            said = child.communicate(timeout=60)[0]
        finally:
            directory.chmod(0o755)
        assert said.startswith("StateUnwritableError cannot lock ")
        assert "Permission denied | check the permissions" in said
        assert opened(directory / "registry.json").read().snapshot == SNAPSHOT


def test_a_missing_directory_is_made_private(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "registry.json"
    opened(path).update(begin)
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_state_is_kept_whole_over_many_events(path: Path) -> None:
    registry = opened(path)
    outcome: Outcome | None = None
    for _ in range(50):
        outcome = registry.update(add_one)
    assert outcome
    assert registry.read().snapshot == outcome.snapshot
    assert outcome.deployment.state is State.IDLE
