"""A look at a registry that another process may be writing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from registry_support import ACTIVE, SNAPSHOT
from turnout.core.model import DrainCause, Snapshot
from turnout.state.registry.commit import good_copy
from turnout.state.registry.encoder import dumps
from turnout.state.registry.inspect import examine

DRAINS = replace(ACTIVE, boot_id="old", port=40002, draining=True, drain_cause=DrainCause.REPLACED)
BEFORE = replace(SNAPSHOT, daemons={"active": ACTIVE, "old": DRAINS})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file has forgotten the drained daemon; its good copy, which is written after it, not yet."""
    path = tmp_path / "registry.json"
    path.write_bytes(dumps(SNAPSHOT))
    good_copy(path).write_bytes(dumps(BEFORE))
    return path


def sleeping(monkeypatch: pytest.MonkeyPatch, does: Callable[[], object]) -> None:
    monkeypatch.setattr("turnout.state.registry.inspect.time.sleep", lambda _seconds: does())


def promote(path: Path, snapshot: Snapshot) -> None:
    good_copy(path).write_bytes(dumps(snapshot))


def test_a_look_between_a_writers_two_files_finds_nothing_wrong(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sleeping(monkeypatch, lambda: promote(path, SNAPSHOT))
    assert examine(path).sound


def test_what_stays_so_is_found(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[None] = []
    sleeping(monkeypatch, lambda: looks.append(None))
    assert not examine(path).sound
    assert 1 <= len(looks) < 10
