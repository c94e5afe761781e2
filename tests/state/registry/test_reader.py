"""An unchanged registry is not read twice, and a changed one never taken for unchanged."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from faulty_files import FaultyFiles
from registry_support import SNAPSHOT, write_both
from turnout.core.deployment import set_desired
from turnout.core.model import Desired
from turnout.state.registry import reader
from turnout.state.registry.decoder import Decoded, loads
from turnout.state.registry.encoder import dumps
from turnout.state.registry.file import RegistryFile
from turnout.state.registry.reader import Loader


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "registry.json"
    write_both(found)
    for name in (found, found.with_name("registry.json.good")):
        os.utime(name, (1.0, 1.0))
    return found


def later(path: Path) -> int:
    """A wall clock by which the file is old."""
    return path.stat().st_ctime_ns + 10**9


def test_an_unchanged_file_is_read_once(path: Path) -> None:
    files = FaultyFiles()
    loader = Loader(path, files, wall_ns=lambda: later(path))
    first = loader.look(path)
    files.steps.clear()
    assert loader.look(path) is first
    assert files.steps == ["stat", "stat"]


def test_a_file_written_a_moment_ago_is_read_again(path: Path) -> None:
    loader = Loader(path, FaultyFiles(), wall_ns=lambda: path.stat().st_ctime_ns + 1)
    first = loader.look(path)
    assert loader.look(path) is not first


@pytest.mark.parametrize("name", ["registry.json", "registry.json.good"])
def test_a_change_of_either_file_is_seen(path: Path, name: str) -> None:
    loader = Loader(path, FaultyFiles(), wall_ns=lambda: later(path))
    first = loader.look(path)
    temp = path.with_name("other")
    raw = json.loads(dumps(SNAPSHOT))
    raw["deployment"]["revision"] += 1
    raw["deployment"]["rollback_reason"] = "changed"
    temp.write_text(json.dumps(raw))
    temp.replace(path.with_name(name))
    assert loader.look(path).snapshot.deployment.rollback_reason == "changed"
    assert loader.look(path) is not first


def test_a_file_that_goes_missing_is_seen(path: Path) -> None:
    now_ns = later(path)
    loader = Loader(path, FaultyFiles(), wall_ns=lambda: now_ns)
    assert loader.look(path).source == "file"
    path.unlink()
    assert loader.look(path).source == "good"


def test_ones_own_write_is_seen_at_once(path: Path) -> None:
    registry = RegistryFile(path)
    for desired in (Desired.STOPPED, Desired.RUNNING, Desired.STOPPED) * 20:
        registry.update(lambda snap, desired=desired: set_desired(snap, desired))  # type: ignore[misc]  # bound by default
        assert registry.read().snapshot.deployment.desired is desired


def test_a_content_that_was_read_a_moment_ago_is_not_parsed_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A young file is looked at once more, and a writer of ours makes its last good copy the same as the file."""
    parsed: list[bytes] = []

    def counting(data: bytes, **more: Any) -> Decoded:
        parsed.append(data)
        return loads(data, **more)

    monkeypatch.setattr(reader, "loads", counting)
    loader = Loader(path, FaultyFiles(), wall_ns=lambda: path.stat().st_ctime_ns + 1)
    temp = path.with_name("other")
    temp.write_bytes(dumps(replace(SNAPSHOT, version="2.1")))
    temp.replace(path)
    for _ in range(3):
        loader.look(path)
    assert len(parsed) == 2, "the file and its last good copy"
    path.with_name("registry.json.good").write_bytes(path.read_bytes())
    assert loader.look(path).kept
    assert len(parsed) == 2


def test_an_unchanged_entry_of_a_changed_file_is_the_same_object(path: Path) -> None:
    loader = Loader(path, FaultyFiles(), wall_ns=lambda: later(path))
    first = loader.look(path).snapshot
    raw = json.loads(path.read_bytes())
    raw["daemons"]["theirs"] = {"port": 9}
    path.write_text(json.dumps(raw))
    second = loader.look(path).snapshot
    assert set(second.daemons) == {*first.daemons, "theirs"}
    assert second.daemons["active"] is first.daemons["active"]
