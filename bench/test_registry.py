"""What the registry costs: asking, reading, writing, watching."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from turnout import Daemon, Registry
from turnout.core.deployment import set_desired
from turnout.core.model import Deployment, Desired, Identity, Snapshot, Workspace
from turnout.state.registry.decoder import loads
from turnout.state.registry.encoder import dumps
from turnout.state.registry.file import RegistryFile
from turnout.system.file_watcher import Watcher


def registry_of(count: int) -> Snapshot:
    """So many daemons, half as many workspaces, and a deployment."""
    identity = Identity(4711, 123456, "2b4b6d80-0000-4000-8000-000000000000", 4026531836)
    daemons = {
        f"boot-{n}": Daemon(f"boot-{n}", port=1024 + n % 60000, identity=identity, version="1.2.3", start_ts=1e9 + n)
        for n in range(count)
    }
    workspaces = {f"/project/{n}": Workspace(f"/project/{n}", f"boot-{n}", 1e9) for n in range(count // 2)}
    return Snapshot(daemons, workspaces, Deployment(generation=7, active_boot_id="boot-0", revision=40))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "registry.json"


def put(path: Path, snapshot: Snapshot) -> None:
    data = dumps(snapshot)
    for name in (path, path.with_name("registry.json.good")):
        name.write_bytes(data)
        os.utime(name, (1.0, 1.0))
    time.sleep(0.05)  # past the two ticks in which a file counts as young


@pytest.mark.benchmark(group="registry: resolve from an unchanged file")
@pytest.mark.parametrize("count", [10, 1000, 10_000])
def test_resolve(benchmark: BenchmarkFixture, path: Path, count: int) -> None:
    put(path, registry_of(count))
    registry = Registry(path)
    assert benchmark(registry.resolve_upstream).boot_id == "boot-0"


@pytest.mark.benchmark(group="registry: read and parse")
@pytest.mark.parametrize("count", [10, 1000, 10_000])
def test_read(benchmark: BenchmarkFixture, path: Path, count: int) -> None:
    put(path, registry_of(count))

    def read() -> Snapshot:
        return loads(path.read_bytes()).snapshot

    assert len(benchmark(read).daemons) == count


@pytest.mark.benchmark(group="registry: one durable event")
@pytest.mark.parametrize("count", [10, 1000])
def test_durable_event(benchmark: BenchmarkFixture, path: Path, count: int) -> None:
    put(path, registry_of(count))
    registry = RegistryFile(path)
    wanted = [Desired.STOPPED, Desired.RUNNING]

    def event() -> bool:
        wanted.reverse()
        return registry.update(lambda snap: set_desired(snap, wanted[1])).applied

    benchmark.pedantic(event, rounds=50, warmup_rounds=2)  # type: ignore[no-untyped-call]  # it has no stubs


@pytest.mark.benchmark(group="registry: poll of an unchanged file")
def test_poll(benchmark: BenchmarkFixture, path: Path) -> None:
    put(path, registry_of(10))
    watcher = Watcher(path)
    assert watcher.poll()
    assert benchmark(watcher.poll) is False
