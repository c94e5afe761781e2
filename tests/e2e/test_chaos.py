"""Anything may die or hang at any moment: after each fault, and one ``up`` at most, all is as it should be."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos import Chaos, SmallDisk, checked_exchange, seed_of_this_run
from e2e_support import Turnout
from support import report, scaled
from turnout.demo.load import Load
from turnout.testing import free_port

CLIENTS = 3


def load_on(turnout: Turnout, rng: random.Random) -> Load:
    load = Load(turnout.address, checked_exchange(random.Random(rng.random())), clients=CLIENTS)
    load.start()
    load.let_long_one_go()  # faults end it sooner or later, and then it would count nothing any more
    return load


@pytest.fixture(params=["relay", "stream", "reuseport", "sk_lookup"])
def plane(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    if chosen == "sk_lookup":
        request.getfixturevalue("home_with_bpffs")
    return chosen


def judge(load: Load, chaos: Chaos, seed: int, what: str) -> None:
    load.stop()
    wrong = {error: count for error, count in load.errors.items() if error.startswith("ValueError")}
    assert wrong == {}, f"TURNOUT_CHAOS_SEED={seed}"
    assert load.answered, "nobody was ever answered"
    report(what, seed=seed, faults=chaos.done.total(), ups=chaos.ups, made=load.made, lost=load.failed, **chaos.done)


@pytest.mark.timeout(3600)
def test_after_any_fault_and_at_most_one_up_the_service_answers_and_nothing_is_left_over(
    turnout: Turnout, plane: str
) -> None:
    seed = seed_of_this_run()
    rng = random.Random(seed)
    chaos = Chaos(turnout, rng, plane)
    chaos.begin()
    load = load_on(turnout, rng)
    count = scaled(20 if plane == "relay" else 6, 200)
    faults = chaos.faults()
    # each of them at least once, the rest by lot
    sequence = rng.sample(faults, len(faults)) + [rng.choice(faults) for _ in range(count)]
    try:
        for fault in sequence[:count]:
            chaos.strike(fault)
    finally:
        judge(load, chaos, seed, f"chaos on {plane}")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    if shutil.which("mount") is None:
        pytest.skip("no mount(8)")
    disk = SmallDisk(tmp_path / "disk")
    if disk.refused:
        pytest.skip(f"a tmpfs cannot be mounted here: {disk.refused}")
    try:
        yield disk
    finally:
        disk.close()


@pytest.mark.timeout(3600)
def test_a_full_disk_ends_nothing_and_once_there_is_room_at_most_one_up_brings_all_back(small_disk: SmallDisk) -> None:
    seed = seed_of_this_run()
    rng = random.Random(seed)
    port = free_port()
    turnout = Turnout(small_disk.path / "home", port)
    chaos = Chaos(turnout, rng)
    try:
        chaos.begin()
        load = load_on(turnout, rng)

        def fault_full_disk() -> None:
            hit = rng.choice([chaos.fault_kill_router, chaos.fault_kill_active, chaos.fault_kill_keeper, None])
            verb = rng.choice(["deploy", "refresh", "up", "stop"])
            with small_disk.full():
                if hit:
                    hit()
                turnout.run(verb, "--lock-timeout", "5", code=None, timeout_s=150)

        try:
            for _ in range(scaled(4, 40)):
                chaos.strike(fault_full_disk)
        finally:
            judge(load, chaos, seed, "chaos on a full disk")
    finally:
        turnout.end()
