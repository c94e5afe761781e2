"""Between a verb's steps the world moves on: its target is resolved once, and what it begins is nobody's stray."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from e2e_support import Turnout, ask, edit, line_daemon, retarget, under_load
from support import eventually
from turnout.cli.options import CommonOptions, resolve
from turnout.core.model import State
from turnout.core.rollout_step import RolloutStep
from turnout.errors import ConflictError
from turnout.lifecycle.progress import Progress
from turnout.lifecycle.verb_request import VerbRequest
from turnout.lifecycle.verbs import Lifecycle
from turnout.router.drain.drainer import STRAY_EVERY_S
from turnout.system.flock import take

ADDRESS_IN_USE = "OSError: [Errno 98] Address already in use"


@pytest.fixture
def running(turnout: Turnout, monkeypatch: pytest.MonkeyPatch) -> Turnout:
    """v1 is active, and this process may run verbs as the command line would."""
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    monkeypatch.setenv("TURNOUT_HOME", str(turnout.home.root))
    monkeypatch.chdir(turnout.home.root.parent)
    return turnout


def verb(turnout: Turnout, name: str, on_step: Callable[[RolloutStep, str], None]) -> Lifecycle:
    wanted = resolve(CommonOptions(), creates=name == "deploy")
    return Lifecycle(turnout.home, wanted, VerbRequest(name), lock_timeout_s=30, progress=Progress(step=on_step))


def test_a_refresh_is_one_critical_section_from_its_target_to_its_switch(running: Turnout) -> None:
    """It stops and starts a daemon, but by no verb of that name: one lock, taken once, let go of after the switch."""
    steps: list[RolloutStep] = []

    def told(step: RolloutStep, _text: str) -> None:
        if step is not RolloutStep.UNLOCK:  # a second verb cannot get in between any two steps
            running.run("stop", "--lock-timeout", "0.1", code=6)
        steps.append(step)

    with verb(running, "refresh", told) as lifecycle:
        lifecycle.run()
    assert steps == [
        RolloutStep.BEGIN,
        RolloutStep.SPAWN,
        RolloutStep.PROBE,
        RolloutStep.MARK,
        RolloutStep.REPROBE,
        RolloutStep.SWITCH,
        RolloutStep.UNLOCK,
    ]
    assert ask(running.address) == "v1"


def test_a_refresh_whose_target_another_program_replaces_meanwhile_is_refused_and_not_aimed_anew(
    running: Turnout,
) -> None:
    first = running.active()
    registry = running.home.service("default").registry

    def told(step: RolloutStep, _text: str) -> None:
        if step is RolloutStep.BEGIN:
            edit(registry, retarget("theirs", first["port"]))

    with pytest.raises(ConflictError, match="active"), verb(running, "refresh", told) as lifecycle:
        lifecycle.run()
    block = running.snapshot().deployment
    assert (block.state, block.generation, block.active_boot_id) == (State.IDLE, 1, "theirs")
    assert len(running.daemons()) == 1, "nothing was started"


def test_a_candidate_that_is_not_registered_yet_is_no_stray(running: Turnout) -> None:
    """The router looks for strays every second; the entry comes late, for somebody else holds the registry's lock."""
    running.configure(line_daemon("--version", "v2"), version="v2")
    path = running.home.service("default").registry
    looked_often = threading.Event()
    letting_go: list[threading.Timer] = []

    def told(step: RolloutStep, _text: str) -> None:
        if step is RolloutStep.SPAWN:
            lock = take(path.with_name(f"{path.name}.lock"), timeout_s=30)
            assert lock is not None

            def let_go() -> None:
                lock.release()
                looked_often.set()

            # two of the router's looks fall into that time, or three; if none did, nothing would be tried
            letting_go.append(threading.Timer(2.5 * STRAY_EVERY_S, let_go))
            letting_go[0].start()

    with under_load(running), verb(running, "deploy", told) as lifecycle:
        done = lifecycle.run()
    assert looked_often.is_set()
    assert done.switched
    assert ask(running.address) == "v2"
    spawned = running.home.service("default").records.glob("*.json")
    assert len([file for file in spawned if file.stem == done.switched.daemon.boot_id]) == 1
    assert "stopping_stray" not in [event["event"] for event in running.journal()]


def losing_its_port(marker: Path, times: int) -> list[str]:
    """A daemon that finds its port taken so many times, by a connection of somebody's that had it first."""
    daemon = " ".join(line_daemon("--version", "v2"))
    lose = f"[ $(wc -l < {marker}) -le {times} ] && {{ echo '{ADDRESS_IN_USE}'; exit 1; }}"
    return ["sh", "-c", f"echo {{port}} >> {marker}; {lose}; exec {daemon}"]


def test_a_port_that_is_taken_before_the_daemon_binds_it_is_replaced_by_another(running: Turnout) -> None:
    marker = running.home.root.parent / "ports"
    running.configure(losing_its_port(marker, 2), version="v2")
    with under_load(running):
        running.run("deploy")
    ports = marker.read_text().split()
    assert len(set(ports)) == 3
    assert running.active()["port"] == int(ports[-1])


def test_after_the_third_time_it_is_given_up_and_said(running: Turnout) -> None:
    marker = running.home.root.parent / "ports"
    running.configure(losing_its_port(marker, 99), version="v2")
    said = running.run("deploy", code=1).stderr
    assert ADDRESS_IN_USE in said
    assert "still serving generation 1" in said
    assert len(marker.read_text().split()) == 3
    eventually(lambda: len(running.snapshot().daemons) == 1)
