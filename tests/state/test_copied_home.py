"""Daemons of another home are marked in what the registry says; whose a record is, is a fake."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from turnout.core.model import Daemon, Deployment, Identity, Snapshot, State
from turnout.state import copied_home
from turnout.state.copied_home import OwnProcesses
from turnout.state.home import Home
from turnout.system.process import of_another_home

OWN = Daemon("own", identity=Identity(7, 70, "boot"), owned=True)
FOREIGN = replace(OWN, boot_id="foreign")


class Records:
    """Fake records: whose each is, by boot id; and which were read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **foreign: bool | None) -> None:
        self.foreign = foreign
        self.read: list[str] = []
        monkeypatch.setattr(copied_home, "names_foreign", self.names_foreign)

    def names_foreign(self, path: Path) -> bool | None:
        self.read.append(path.stem)
        return self.foreign[path.stem]


def snapshot(*daemons: Daemon, block: Deployment | None = None) -> Snapshot:
    return Snapshot({daemon.boot_id: daemon for daemon in daemons}, deployment=block or Deployment())


@pytest.fixture
def view(tmp_path: Path) -> OwnProcesses:
    return OwnProcesses(Home(tmp_path).service("s"))


def test_a_daemon_of_another_home_is_marked_and_those_of_this_one_stay(
    view: OwnProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    Records(monkeypatch, own=False, foreign=True)
    seen = view(snapshot(OWN, FOREIGN)).daemons
    assert seen["own"] is OWN
    assert of_another_home(seen["foreign"].identity)
    assert seen["foreign"].pid == 7


def test_where_nothing_is_another_homes_the_very_snapshot_is_returned(
    view: OwnProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    Records(monkeypatch, own=False)
    before = snapshot(OWN)
    assert view(before) is before


def test_a_daemon_that_turnout_did_not_start_or_that_has_no_pid_belongs_to_no_home(
    view: OwnProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = Records(monkeypatch, attached=True, unborn=True)
    before = snapshot(replace(OWN, boot_id="attached", owned=False), Daemon("unborn", owned=True))
    assert view(before) is before
    assert records.read == []


def test_a_record_is_read_once_but_a_missing_one_again(view: OwnProcesses, monkeypatch: pytest.MonkeyPatch) -> None:
    records = Records(monkeypatch, own=None, foreign=True)
    for _ in range(3):
        view(snapshot(OWN, FOREIGN))
    assert records.read.count("foreign") == 1
    assert records.read.count("own") == 3


def test_a_rollout_to_a_daemon_of_another_home_is_carried_by_no_verb_of_this_one(
    view: OwnProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    Records(monkeypatch, foreign=True)
    block = Deployment(state=State.READY, candidate_boot_id="foreign", owner=Identity(9, 90, "boot"))
    assert of_another_home(view(snapshot(FOREIGN, block=block)).deployment.owner)
    served = replace(block, state=State.IDLE, candidate_boot_id="", active_boot_id="foreign")
    assert view(snapshot(FOREIGN, block=served)).deployment.owner == Identity(9, 90, "boot")
