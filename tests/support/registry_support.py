"""What the registry's tests share: a registry to begin with, a clock that only sleeping moves, and child processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from faulty_files import UnsyncedFiles
from turnout.core.model import Daemon, Deployment, Identity, Snapshot, Workspace
from turnout.state.registry.encoder import dumps
from turnout.state.registry.file import RegistryFile
from turnout.system.files import Files

CHILD = Path(__file__).parent / "registry_child.py"
ACTIVE = Daemon(
    "active", port=40001, identity=Identity(77), version="1.0", owned=True, extra={"theirs": [1, {"a": "é"}]}
)
SNAPSHOT = Snapshot(
    {"active": ACTIVE},
    {"/root": Workspace("/root", "active")},
    Deployment(generation=4, active_boot_id="active", revision=20),
    extra={"unknown": True},
)


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += seconds


def opened(path: Path, *, files: Files | None = None, lock_timeout_s: float = 8.0) -> RegistryFile:
    time = Time()
    files = files or UnsyncedFiles()
    return RegistryFile(path, files=files, lock_timeout_s=lock_timeout_s, clock=time, sleep=time.sleep)


def write_both(path: Path, snapshot: Snapshot = SNAPSHOT) -> bytes:
    data = dumps(snapshot)
    path.write_bytes(data)
    path.with_name("registry.json.good").write_bytes(data)
    return data


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, str(CHILD), *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
