"""Whether a rollout that is under way still has somebody who carries it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from turnout.core.deployment import begin_deploy
from turnout.core.model import Deployment, Identity, Snapshot
from turnout.state.home import Home, ServiceHome
from turnout.state.lifecycle_lock import LOCK, LifecycleLock
from turnout.state.rollout_owner import is_abandoned
from turnout.system.process import own_identity

ELSEWHERE = replace(own_identity(), pid_ns=own_identity().pid_ns + 1)  # alive, as far as can be seen from here


@pytest.fixture
def home(tmp_path: Path) -> ServiceHome:
    found = Home(tmp_path).service("s")
    found.root.mkdir(parents=True)
    return found


@pytest.fixture
def held(home: ServiceHome) -> Iterator[ServiceHome]:
    """The home, with a verb that has the lock."""
    with LifecycleLock(home.root, timeout_s=5, verb="deploy"):
        yield home


def begun(owner: Identity, *, holds_lock: bool = True) -> Deployment:
    return begin_deploy(Snapshot(), "v1", owner=owner, holds_lock=holds_lock).deployment


def test_what_lives_or_is_over_is_not_abandoned(home: ServiceHome) -> None:
    assert not is_abandoned(begun(own_identity()), home)
    assert not is_abandoned(Deployment(owner=Identity(1, 1, "another boot")), home)


def test_the_dead_carry_nothing_whoever_has_the_lock(held: ServiceHome) -> None:
    assert is_abandoned(begun(replace(own_identity(), machine_boot_id="another boot")), held)
    assert is_abandoned(begun(replace(own_identity(), start_ticks=1), holds_lock=False), held)


def test_of_an_owner_that_cannot_be_seen_the_lock_tells(home: ServiceHome) -> None:
    with LifecycleLock(home.root, timeout_s=5, verb="deploy"):
        assert not is_abandoned(begun(ELSEWHERE), home)
        assert is_abandoned(begun(ELSEWHERE), home, locked=True), "it is ours"
    assert is_abandoned(begun(ELSEWHERE), home)
    with LifecycleLock(home.root, timeout_s=0.1, verb="to ask leaves it free"):
        pass


def test_of_a_program_that_takes_no_lock_nothing_is_known(home: ServiceHome) -> None:
    assert not is_abandoned(begun(ELSEWHERE, holds_lock=False), home)
    assert not is_abandoned(begun(ELSEWHERE, holds_lock=False), home, locked=True)


def test_a_lock_that_cannot_be_asked_is_not_free(home: ServiceHome) -> None:
    (home.root / LOCK).mkdir()
    assert not is_abandoned(begun(ELSEWHERE), home)
