"""What a registry test has done in other processes: ``python registry_child.py MODE ARGUMENT...``."""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import sys
import time
from dataclasses import replace
from itertools import count
from pathlib import Path

from faulty_files import FaultyFiles, UnsyncedFiles
from turnout.core.deployment import begin_deploy
from turnout.core.model import Identity, Snapshot
from turnout.core.outcome import Outcome, Reason
from turnout.errors import TurnoutError
from turnout.state.lifecycle_lock import LifecycleLock
from turnout.state.registry.file import RegistryFile


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def begin(snapshot: Snapshot) -> Outcome:
    return begin_deploy(snapshot, "new", owner=Identity(1), expected_generation=snapshot.deployment.generation)


def add_one(snapshot: Snapshot) -> Outcome:
    block = replace(snapshot.deployment, revision=snapshot.deployment.revision + 1)
    extra = {**snapshot.extra, "n": snapshot.extra.get("n", 0) + 1}
    return Outcome(applied=True, reason=Reason.APPLIED, snapshot=replace(snapshot, deployment=block, extra=extra))


def crash(template: Path, where: Path) -> None:
    """Die by SIGKILL at step 0, 1, 2, … of one update, each in a registry of its own; print how each child ended."""
    for at in count():
        directory = where / str(at)
        directory.mkdir()
        path = directory / "registry.json"
        for old in template.iterdir():
            (directory / old.name).write_bytes(old.read_bytes())
        pid = os.fork()
        if pid == 0:

            def strike(number: int, _name: str, at: int = at) -> None:
                if number == at:
                    os.kill(os.getpid(), signal.SIGKILL)

            RegistryFile(path, files=FaultyFiles(strike)).update(begin)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        say(f"{at} {status}")
        if status == 0:
            return


def increments(path: Path, times: str) -> None:
    registry = RegistryFile(path, files=UnsyncedFiles(), lock_timeout_s=60)
    for _ in range(int(times)):
        registry.update(add_one)


def race(path: Path, generation: str, processes: str) -> None:
    """So many processes begin a deploy in the same instant; print what each was told."""
    gate, opened = os.pipe()
    results, told = os.pipe()
    children = []
    for _ in range(int(processes)):
        pid = os.fork()
        if pid == 0:
            os.close(opened)
            os.read(gate, 1)  # until the parent has closed its end
            os.write(told, f"{one_of_many(path, int(generation))}\n".encode())
            os._exit(0)
        children.append(pid)
    for fd in (opened, told, gate):
        os.close(fd)
    with os.fdopen(results) as lines:
        for line in lines:
            say(line.strip())
    for pid in children:
        assert os.waitpid(pid, 0)[1] == 0


def one_of_many(path: Path, generation: int) -> str:
    def change(snapshot: Snapshot) -> Outcome:
        time.sleep(0.01)  # the longer it thinks, the surer the others come in between if nothing keeps them out
        owner = Identity(os.getpid())
        return begin_deploy(snapshot, f"candidate-{owner.pid}", owner=owner, expected_generation=generation)

    return RegistryFile(path, lock_timeout_s=120).update(change).reason


def hold(path: Path) -> None:
    def slow(snapshot: Snapshot) -> Outcome:
        say("held")
        sys.stdin.readline()
        return begin(snapshot)

    RegistryFile(path).update(slow)


def lifecycle(directory: Path, verb: str, wish: str = "") -> None:
    with LifecycleLock(directory, timeout_s=20, verb=verb, wish=wish):
        say("held")
        sys.stdin.readline()


def old_writer(path: Path) -> None:
    """Ten times a second: read, beat, write, without the lock and without the block; until a line comes."""
    while not select.select([sys.stdin], [], [], 0.1)[0]:
        try:
            raw = json.loads(path.read_bytes())
        except FileNotFoundError:
            continue
        raw.pop("deployment", None)
        raw["beats"] = raw.get("beats", 0) + 1
        temp = path.with_name("old-writer.tmp")
        temp.write_text(json.dumps(raw))
        temp.replace(path)


def unprivileged(path: Path) -> None:
    """Drop what root may, then try to write."""
    importlib.import_module("filelock")  # it is loaded late, and other users may not read where it lies
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
    try:
        RegistryFile(path).update(begin)
    except TurnoutError as error:
        say(f"{type(error).__name__} {error.message} | {error.hint}")


if __name__ == "__main__":
    modes = {
        "crash": crash,
        "increments": increments,
        "race": race,
        "hold": hold,
        "lifecycle": lifecycle,
        "old-writer": old_writer,
    }
    first, rest = Path(sys.argv[2]), sys.argv[3:]
    if sys.argv[1] == "crash":
        crash(first, Path(rest[0]))
    elif sys.argv[1] == "unprivileged":
        unprivileged(first)
    else:
        modes[sys.argv[1]](first, *rest)  # type: ignore[operator]  # each takes what its test gives
