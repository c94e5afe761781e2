"""A window whose previous daemon is gone: its build is started again, and what serves is kept until that is healthy."""

from __future__ import annotations

import re
import subprocess
from typing import Any

from e2e_support import Turnout, ask, line_daemon
from other_constants import with_constants
from support import eventually
from turnout.core.model import Identity, State
from turnout.demo.load import Load, line_exchange
from turnout.state.builds import Builds
from turnout.system.process import is_alive


def _in_window(turnout: Turnout, *flags: str, v1: list[str] | None = None) -> None:
    """v1 served, v2 has just taken over, and v1 is no more."""
    turnout.configure(v1 or line_daemon("--version", "v1"), observe="60s")
    turnout.run("up")
    old = turnout.active()
    turnout.configure(line_daemon("--version", "v2", *flags), version="v2", observe="60s")
    turnout.run("deploy", "--detach")
    assert ask(turnout.address) == "v2"
    turnout.kill(old["pid"])
    eventually(lambda: old["boot_id"] not in turnout.daemons())


def test_a_failed_daemon_whose_previous_one_is_gone_is_replaced_by_a_new_rollout_of_the_recorded_build(
    turnout: Turnout,
) -> None:
    _in_window(turnout)
    v2 = turnout.active()
    load = Load(turnout.address, line_exchange)
    load.start()
    try:
        turnout.kill(v2["pid"])
        eventually(lambda: turnout.snapshot().deployment.generation == 3, why="no rollout back was begun")
        assert ask(turnout.address) == "v1", "whoever comes meanwhile waits"
    finally:
        load.stop()
    assert load.failed <= 7, dict(load.errors)  # what the dead one carried or had queued
    eventually(lambda: turnout.snapshot().deployment.state is State.IDLE)
    assert turnout.snapshot().deployment.old_boot_id == ""
    eventually(lambda: len(turnout.daemons()) == 1)
    results = [("start", "active"), ("deploy", "rolled_back"), ("rollback", "active")]
    eventually(lambda: [(r.cause, r.result) for r in _builds(turnout).rollouts()] == results)
    refused = turnout.run("deploy", code=6).stderr
    assert "quarantined" in refused
    assert "by hand" not in refused, "the checks' reason is kept"
    assert turnout.journaled("rollback_refused")
    assert turnout.journaled("cold_rollback")


def test_a_rollback_that_cannot_begin_is_explained_and_begins_once_it_can(turnout: Turnout) -> None:
    _in_window(turnout)
    builds = turnout.home.service("default").builds
    builds.rename(builds.with_suffix(".away"))
    builds.mkdir()  # root reads whatever has permissions
    v2 = turnout.active()
    turnout.kill(v2["pid"])

    def blocked() -> dict[str, Any] | None:
        status = turnout.status()
        return status if status["restart"] and status["restart"]["blocked"] else None

    status = eventually(blocked, timeout_s=60)
    assert status
    assert status["restart"]["rolls_back"]
    (problem,) = status["problems"]
    assert "failed its observe window" in problem["what"]
    assert f"the rollback cannot begin: cannot read {builds}" in problem["what"]
    assert "cannot begin for now, and is tried again: cannot read" in turnout.run("why").stdout
    refused = turnout.run("rollback", code=1).stderr
    assert f"mv {builds} {builds}.unreadable" in refused
    builds.rmdir()
    builds.with_suffix(".away").rename(builds)
    eventually(lambda: turnout.snapshot().deployment.generation == 3, timeout_s=60, why="it was not tried again")
    assert ask(turnout.address) == "v1"
    eventually(lambda: _builds(turnout).quarantined(_builds(turnout).rollouts()[1].build))
    assert turnout.journaled("rollback_unblocked")
    assert len(turnout.journaled("rollback_blocked")) == 1, "not at each attempt"


def test_what_an_unreadable_list_of_builds_has_typed_lets_up_work(turnout: Turnout) -> None:
    _in_window(turnout)
    builds = turnout.home.service("default").builds
    builds.unlink()
    builds.mkdir()
    turnout.kill(turnout.active()["pid"])
    refused = turnout.run("up", code=1).stderr
    command = next(part for part in re.split(r"hint: |; or: |, which", refused) if part.startswith("mv "))
    subprocess.run(["sh", "-c", command], check=True)
    turnout.run("up")
    assert ask(turnout.address) == "v2"


def test_a_deploy_that_waits_for_its_verdict_hears_of_a_cold_rollback_as_of_any_other(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"), observe="60s")
    turnout.run("up")
    old = turnout.active()
    turnout.configure(line_daemon("--version", "v2"), version="v2", observe="60s")
    deploy = turnout.begin("deploy")
    eventually(lambda: turnout.snapshot().deployment.state is State.SWITCHED)
    turnout.kill(old["pid"])
    v2 = turnout.snapshot().active
    assert v2
    turnout.kill(v2.pid)
    _, said = deploy.communicate(timeout=90)
    assert deploy.returncode == 5, said
    assert "generation 2 was rolled back" in said
    assert "serves again" in said
    assert "by hand" not in said


def test_a_restart_that_was_decided_before_a_switch_does_not_end_the_window_after_it(turnout: Turnout) -> None:
    """The router saw the daemon die that the switch had just retired: what is active now is the window's business."""
    patient = '{ probe = "alive", failures = 1000 }'
    turnout.configure(line_daemon("--version", "v1"), observe="60s")
    turnout.tune(health=patient)
    turnout.run("up")
    turnout.configure(line_daemon("--version", "v2"), version="v2", observe="60s")
    turnout.tune(health=patient)
    turnout.run("deploy", "--detach")
    v2 = turnout.active()
    turnout.kill(v2["pid"])
    # with these checks the router switches back only after minutes; a verb waits 5 s for that before it goes on
    soon = {"turnout.lifecycle.verbs.SILENT_AFTER_S": 1.0}
    env = turnout.env | with_constants(turnout.home.root.parent / "constants", soon)
    turnout.run("start", "--automatic", "--service", "default", env=env)
    block = turnout.snapshot().deployment
    assert (block.generation, block.state, block.active_boot_id) == (2, State.SWITCHED, v2["boot_id"])
    turnout.run("start", env=env)
    assert turnout.snapshot().deployment.generation == 3, "a person insists"


def test_what_is_active_stays_active_where_its_predecessor_never_gets_healthy_and_status_says_so(
    turnout: Turnout,
) -> None:
    """The rollback must not destroy what there is, nor flap for ever: it is tried once."""
    broken = turnout.home.root.parent / "broken"
    program = f"[ -e {broken} ] && exit 3; exec {' '.join(line_daemon('--version', 'v1'))}"
    v1 = ["sh", "-c", program]
    turnout.configure(v1, observe="60s", probe="expect", extra=', send = "HEALTH\\n", match = "^ok"')
    turnout.run("up")
    old = turnout.active()
    v2 = line_daemon("--version", "v2", "--unwell-after-lines", "3")
    turnout.configure(v2, version="v2", observe="60s", probe="expect", extra=', send = "HEALTH\\n", match = "^ok"')
    turnout.run("deploy", "--detach")
    broken.touch()
    turnout.kill(old["pid"])
    for _ in range(4):
        assert ask(turnout.address) == "v2"
    reason = eventually(
        lambda: turnout.snapshot().deployment.state is State.IDLE and turnout.snapshot().deployment.rollback_reason,
        timeout_s=60,
        why="the rollback was not tried, or has no end",
    )
    assert "a rollback failed" in str(reason)
    assert "exit code 3" in str(reason)
    assert ask(turnout.address) == "v2", "it is unwell, and better than nothing"
    assert str(reason) in turnout.run("status").stdout
    # the verb that tried it takes its candidate out of the registry after the reason is there
    eventually(lambda: len(turnout.snapshot().daemons) == 1, why="the candidate of the rollback is not forgotten")
    rollouts = len(_builds(turnout).rollouts())
    checked = turnout.snapshot().deployment.revision
    assert ask(turnout.address) == "v2"
    eventually(lambda: turnout.active()["healthy"] is False)
    assert (turnout.snapshot().deployment.revision, len(_builds(turnout).rollouts())) == (checked, rollouts)


def test_rollback_by_hand_goes_to_any_generation_whose_build_is_recorded(turnout: Turnout) -> None:
    for number in (1, 2, 3):
        turnout.configure(line_daemon("--version", f"v{number}"), version=f"v{number}", observe="100ms")
        turnout.run("up")
    for generation in (1, 3, 2):
        turnout.run("rollback", str(generation))
        assert ask(turnout.address) == f"v{generation}"
    refused = turnout.run("rollback", "99", code=2)
    assert "99" in refused.stderr
    assert ask(turnout.address) == "v2"


def test_what_the_router_starts_never_starts_a_keeper(turnout: Turnout) -> None:
    _in_window(turnout)
    keeper = turnout.keeper_pid()
    turnout.kill(keeper)
    eventually(lambda: not is_alive(Identity(keeper)))
    turnout.run("rollback", "--automatic", code=3)
    assert ask(turnout.address) == "v2"


def test_an_automatic_rollback_that_nobody_needs_any_more_changes_nothing(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"), observe="60s")
    turnout.run("up")
    turnout.configure(line_daemon("--version", "v2"), version="v2", observe="60s")
    turnout.run("deploy", "--detach")
    before = turnout.snapshot()
    assert "nothing is to be rolled back" in turnout.run("rollback", "--automatic").stdout
    assert turnout.snapshot().deployment == before.deployment


def _builds(turnout: Turnout) -> Builds:
    return Builds(turnout.home.service("default").builds)
