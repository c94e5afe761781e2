"""A copy of a home names the processes of the original: none of them is taken for one of the copy."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from turnout.core.deployment import set_desired
from turnout.core.membership import register_daemon
from turnout.core.model import Daemon, Desired, Identity, Snapshot, State
from turnout.state.copied_home import OwnProcesses
from turnout.state.home import Home, ServiceHome
from turnout.state.registry.file import RegistryFile
from turnout.system.process import identify, is_alive, of_another_home, provably_dead
from turnout.system.spawn_record import (
    EndRecord,
    SpawnRecord,
    foreign_records,
    prune_records,
    read_records,
    record_end,
    write_record,
)

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.service("default").create()
    return home


@pytest.fixture
def start() -> Iterator[Start]:
    children: list[subprocess.Popen[bytes]] = []

    def begin(*, cwd: Path | None = None, stdout: Path | None = None) -> subprocess.Popen[bytes]:
        with (stdout or Path(os.devnull)).open("ab") as out:
            children.append(subprocess.Popen(["sleep", "600"], cwd=cwd, stdout=out, stderr=out))
        return children[-1]

    yield begin
    for child in children:
        child.kill()
        child.wait()


def recorded(service: ServiceHome, boot_id: str, identity: Identity, *, old: bool = False) -> Path:
    """Write the record of a daemon of this home; ``old``: as 0.1.0 wrote it, which named no home."""
    path = service.record(boot_id)
    write_record(path, SpawnRecord(boot_id, service.name, identity, str(service.log(boot_id)), time.time()))
    if old:
        told = json.loads(path.read_bytes())
        del told["home"]
        path.write_text(json.dumps(told))
    return path


def copy_of(home: Home) -> Home:
    """As ``cp -a`` makes it."""
    target = home.root.with_name("copy")
    shutil.copytree(home.root, target, symlinks=True)
    return Home(target)


def test_the_processes_in_the_records_of_a_copy_are_those_of_the_original(home: Home, start: Start) -> None:
    service, child = home.service("default"), start()
    recorded(service, "b1", identify(child.pid))
    copied = copy_of(home).service("default")
    assert set(read_records(service.records)) == {"b1"}
    assert foreign_records(service.records) == {}
    assert read_records(copied.records) == {}
    assert set(foreign_records(copied.records)) == {"b1"}


def test_so_are_the_routers(home: Home, start: Start) -> None:
    child = start()
    record = SpawnRecord("router-1", "", identify(child.pid), str(home.router_log), time.time())
    write_record(home.router_record("router-1"), record)
    copied = copy_of(home)
    assert set(read_records(home.root)) == {"router-1"}
    assert read_records(copied.root) == {}
    assert set(foreign_records(copied.root)) == {"router-1"}


def test_a_home_that_is_moved_keeps_its_processes(home: Home, start: Start) -> None:
    recorded(home.service("default"), "b1", identify(start().pid))
    home.root.rename(home.root.with_name("elsewhere"))
    moved = Home(home.root.with_name("elsewhere")).service("default")
    assert set(read_records(moved.records)) == {"b1"}
    assert read_records(moved.records)["b1"].log == str(moved.log("b1"))


def test_a_backup_put_in_the_place_of_a_home_does_not_own_what_the_old_one_started(home: Home, start: Start) -> None:
    service = home.service("default")
    recorded(service, "b1", identify(start(stdout=service.log("b1")).pid))
    backup = copy_of(home)
    shutil.rmtree(home.root)
    shutil.copytree(backup.root, home.root)
    assert read_records(service.records) == {}
    assert set(foreign_records(service.records)) == {"b1"}


def test_a_service_copied_from_another_home_does_not_bring_its_processes(
    home: Home, start: Start, tmp_path: Path
) -> None:
    recorded(home.service("default"), "b1", identify(start().pid))
    other = Home(tmp_path / "other")
    other.create()
    shutil.copytree(home.services, other.services)
    assert read_records(other.service("default").records) == {}


def test_what_has_ended_is_history_in_a_copy_too_with_the_logs_of_the_copy(home: Home) -> None:
    service = home.service("default")
    path = recorded(service, "b1", Identity(1, 1, "another boot"))
    record_end(path, 0)
    service.log("b1").write_text("said")
    copied = copy_of(home).service("default")
    assert read_records(copied.records)["b1"].log == str(copied.log("b1"))
    record = replace(read_records(copied.records)["b1"], boot_id="b2", ended=EndRecord(0, time.time() + 1))
    write_record(copied.record("b2"), record)
    prune_records(copied.records, keep=1)
    assert not copied.log("b1").exists()
    assert service.log("b1").read_text() == "said", "the log of the original is not the copy's to remove"


def test_a_process_that_is_dead_is_recorded_here_whatever_home_its_record_names(home: Home) -> None:
    """After a reboot a file system may have another device number: the keeper must still note the end."""
    service = home.service("default")
    path = recorded(service, "b1", Identity(os.getpid(), 1, "another boot"))
    told = json.loads(path.read_bytes())
    path.write_text(json.dumps({**told, "home": [0, 0]}))
    assert set(read_records(service.records)) == {"b1"}
    assert foreign_records(service.records) == {}


# -- records of 0.1.0, which name no home ------------------------------------------------------------------------------


def test_an_old_record_of_a_daemon_that_joined_by_itself_is_read_with_its_place(home: Home, start: Start) -> None:
    service = home.service("default")
    path = recorded(service, "b1", identify(start().pid), old=True)
    told = json.loads(path.read_bytes())
    path.write_text(json.dumps({**told, "slot": 2, "listener_inode": 77, "joins": True}))
    record = read_records(service.records)["b1"]
    assert (record.slot, record.listener_inode) == (2, 77)


def test_an_old_record_is_proven_by_the_log_that_the_daemon_writes(home: Home, start: Start) -> None:
    service = home.service("default")
    recorded(service, "b1", identify(start(stdout=service.log("b1")).pid), old=True)
    copied = copy_of(home).service("default")
    assert set(read_records(service.records)) == {"b1"}
    assert read_records(copied.records) == {}
    assert set(foreign_records(copied.records)) == {"b1"}


def test_an_old_router_is_proven_by_the_directory_it_runs_in(home: Home, start: Start) -> None:
    identity = identify(start(cwd=home.root).pid)
    path = home.router_record("router-1")
    write_record(path, SpawnRecord("router-1", "", identity, str(home.router_log), time.time()))
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_bytes()).items() if k != "home"}))
    copied = copy_of(home)
    assert set(read_records(home.root)) == {"router-1"}
    assert read_records(copied.root) == {}


def test_an_old_record_is_proven_by_the_keeper_that_holds_the_lock(home: Home, start: Start) -> None:
    """A daemon whose descriptors cannot be looked at is a child of the keeper, which holds the home's lock."""
    code = (
        "import fcntl, os, subprocess, sys, time\n"
        "fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT); fcntl.flock(fd, fcntl.LOCK_EX)\n"
        "child = subprocess.Popen(['sleep', '600']); print(child.pid, flush=True)\n"
        "sys.stdin.read(); child.kill()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(home.keeper_lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as keeper:
        assert keeper.stdout
        pid = int(keeper.stdout.readline())
        recorded(home.service("default"), "b1", identify(pid), old=True)
        copied = copy_of(home)
        own = os.open(copied.keeper_lock, os.O_RDWR)
        fcntl.flock(own, fcntl.LOCK_EX)  # the copy has a keeper, too: this process
        try:
            assert set(read_records(home.service("default").records)) == {"b1"}
            assert read_records(copied.service("default").records) == {}
        finally:
            os.close(own)
            keeper.communicate()


# -- the registry ------------------------------------------------------------------------------------------------------


def registered(home: Home, pid: int, *, state: State = State.IDLE) -> RegistryFile:
    """A registry with an active daemon that this home started, and one that something else did."""
    service, identity = home.service("default"), identify(pid)
    recorded(service, "b1", identity)
    file = RegistryFile(service.registry)
    for daemon in (Daemon("b1", port=1, identity=identity, owned=True), Daemon("theirs", port=2, identity=identity)):
        assert file.update(lambda snap, daemon=daemon: register_daemon(snap, daemon)).applied  # type: ignore[misc]
    data = json.loads(service.registry.read_bytes())
    data["deployment"] |= {
        "generation": 1,
        "revision": 9,
        "state": state.value,
        "active_boot_id" if state is State.IDLE else "candidate_boot_id": "b1",
        "owner": {"pid": os.getpid(), "start_ticks": identify(os.getpid()).start_ticks},
    }
    service.registry.write_text(json.dumps(data))
    return file


def seen(home: Home) -> RegistryFile:
    service = home.service("default")
    return RegistryFile(service.registry, view=OwnProcesses(service))


def test_the_registry_of_a_copy_has_no_living_daemon_of_the_original(home: Home, start: Start) -> None:
    child = start()
    registered(home, child.pid)
    copied = copy_of(home)
    own, other = seen(home).read().snapshot, seen(copied).read().snapshot
    assert own.active
    assert is_alive(own.active.identity)
    assert other.active
    assert of_another_home(other.active.identity)
    assert provably_dead(other.active.identity)
    assert is_alive(other.daemons["theirs"].identity), "an attached daemon belongs to no home"


def test_what_is_written_in_a_copy_says_so_to_those_who_only_read_the_file(home: Home, start: Start) -> None:
    registered(home, start().pid)
    copied = copy_of(home)
    assert seen(copied).update(lambda snap: set_desired(snap, Desired.STOPPED)).applied
    plain = RegistryFile(copied.service("default").registry).read()
    assert plain.settled
    assert plain.snapshot.active
    assert of_another_home(plain.snapshot.active.identity)


def test_a_rollout_that_was_under_way_when_the_home_was_copied_is_carried_by_no_verb_of_the_copy(
    home: Home, start: Start
) -> None:
    registered(home, start().pid, state=State.STARTING)
    copied = copy_of(home)
    assert not provably_dead(seen(home).read().snapshot.deployment.owner)
    assert provably_dead(seen(copied).read().snapshot.deployment.owner)


def test_a_daemon_without_a_record_is_what_the_registry_says(home: Home, start: Start) -> None:
    child = start()
    snapshot = Snapshot({"b1": Daemon("b1", identity=identify(child.pid), owned=True)})
    assert OwnProcesses(home.service("default"))(snapshot) is snapshot


def test_a_record_of_0_1_0_is_of_the_home_whose_log_it_names_whatever_became_of_keeper_and_output(
    home: Home, start: Start
) -> None:
    """A database that sends its output elsewhere, under a keeper that has died: nothing but the path is left."""
    service, child = home.service("default"), start()
    recorded(service, "b1", identify(child.pid), old=True)
    copied = copy_of(home).service("default")
    assert set(read_records(service.records)) == {"b1"}
    assert read_records(copied.records) == {}
    assert set(foreign_records(copied.records)) == {"b1"}
