"""Daemons that own their data: never two at once, nobody turned away, nothing lost, and a way back."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from e2e_support import Turnout, ask, line_daemon
from recreate_support import Owner, Writers, exchange
from support import eventually, report, scaled
from turnout.core.model import Snapshot, State, Workspace
from turnout.core.outcome import Outcome, Reason
from turnout.state.builds import Builds, Rollout
from turnout.system.net.ports import choose_port
from turnout.system.net.sockets import who_listens
from turnout.system.spawn_record import read_records


@pytest.fixture
def owner(turnout: Turnout) -> Owner:
    return Owner(turnout)


def test_refreshes_and_failing_deploys_under_load_refuse_nobody_and_lose_no_acknowledged_write(owner: Owner) -> None:
    turnout = owner.turnout
    owner.configure("v1")
    turnout.run("up")
    rounds = scaled(2, 20)
    with Writers(owner) as writers:
        for number in range(rounds):
            owner.configure("v1")
            turnout.run("refresh")
            owner.bad(f"v{number + 2}")
            turnout.run("deploy", code=1)
        goal = len(writers.acknowledged) + 50
        eventually(lambda: len(writers.acknowledged) > goal, why="clients do not get on")
    report("recreate under load", rounds=rounds, writes=len(writers.acknowledged), errors=len(writers.errors))
    assert writers.errors == []
    assert writers.lost() == set()
    assert not owner.collided
    assert owner.set("last") == "v1"
    assert len(turnout.daemons()) == 1


def test_a_failed_start_brings_the_previous_build_back_and_quarantines_the_failed_one(owner: Owner) -> None:
    turnout = owner.turnout
    owner.configure("v1")
    turnout.run("up")
    before = turnout.active()
    owner.bad("v2")
    failed = turnout.run("deploy", code=1)
    assert "exit code 7" in failed.stderr, "the cause"
    assert "cannot find my hat" in failed.stderr, "the end of its log"
    assert "started again as generation 3; still serving generation 3 (v1)" in failed.stderr
    assert owner.set("x") == "v1"
    assert turnout.active()["pid"] != before["pid"]
    results = [(r.generation, r.cause, r.result) for r in _builds(turnout)]
    assert results == [(1, "start", "active"), (2, "deploy", "aborted"), (3, "rollback", "active")]
    assert "quarantined" in turnout.run("deploy", code=6).stderr
    owner.broken.unlink()
    assert "rolled back" in turnout.run("up").stdout, "what failed is not tried again by itself"
    turnout.run("deploy", "--force")
    assert owner.set("y") == "v2"
    assert not owner.collided


def test_where_the_previous_build_does_not_come_back_either_clients_are_told_and_up_goes_on_from_there(
    owner: Owner,
) -> None:
    turnout = owner.turnout
    owner.configure("v1", "--broken", str(owner.broken))
    turnout.run("up")
    owner.bad("v2")
    failed = turnout.run("deploy", code=1)
    assert "did not come back either" in failed.stderr
    assert "nothing is serving" in failed.stderr
    block = turnout.snapshot().deployment
    assert (block.state, block.active_boot_id) == (State.IDLE, "")
    assert "rollback failed" in block.rollback_reason
    assert "rollback failed" in turnout.run("status").stdout
    with pytest.raises(ConnectionError):
        owner.set("x", timeout_s=20)
    eventually(lambda: not turnout.daemons())
    owner.broken.unlink()
    turnout.run("up")
    assert owner.set("y") == "v1", "v2 is in quarantine"
    assert not owner.collided


STEPS = ("hold", "end", "stop", "spawn", "probe", "mark", "re-probe", "switch", "unlock", "return")
DIE = str(Path(__file__).parents[1] / "support" / "die_at_step.py")


@pytest.mark.parametrize("step", STEPS)
def test_a_deploy_killed_at_any_step_is_repaired_while_clients_wait_and_the_next_up_continues(
    owner: Owner, step: str
) -> None:
    turnout = owner.turnout
    owner.configure("v1")
    turnout.run("up")
    if step == "return":
        owner.bad("v2")
    else:
        owner.configure("v2")
    killed = subprocess.run(
        [sys.executable, "-P", DIE, step, "before", "deploy"],
        cwd=turnout.home.root.parent,
        env=turnout.env,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert killed.returncode == -9, killed.stderr
    # as the verb left it: the router repairs it a moment later
    assert killed.stdout.startswith("active: "), killed.stdout
    left = killed.stdout.splitlines()[0].removeprefix("active: ")
    if step in {"hold", "unlock"}:
        assert left, "it serves"
    else:
        assert left == "", "the file must not say that somebody serves"
    assert owner.set("held") == ("v2" if step == "unlock" else "v1")
    owner.configure("v2")
    eventually(lambda: turnout.snapshot().deployment.state is not State.SWITCHED)
    turnout.run("up")
    assert owner.set("after") == "v2"
    assert {"held", "after"} <= set(owner.written())
    assert not owner.collided
    eventually(lambda: len(turnout.daemons()) == 1)
    eventually(lambda: len(turnout.snapshot().daemons) == 1, why="an entry is left")


@pytest.mark.parametrize("by", ["up", "deploy"])
def test_the_next_verb_takes_over_from_a_killed_one_without_turning_away_who_is_held(owner: Owner, by: str) -> None:
    turnout = owner.turnout
    owner.configure("v1")
    turnout.run("up")
    with Writers(owner) as writers:
        eventually(lambda: len(writers.acknowledged) > 10)
        owner.configure("v2", "--start-delay", "60")
        killed = turnout.begin("deploy")
        eventually(lambda: turnout.snapshot().candidate is not None, why="no candidate")
        owner.configure("v2")
        killed.kill()
        killed.communicate()
        turnout.run(by)
        goal = len(writers.acknowledged) + 20
        eventually(lambda: len(writers.acknowledged) > goal, why="clients do not get on")
    assert writers.errors == []
    assert writers.lost() == set()
    assert not owner.collided
    assert owner.set("x") == "v2"


def test_without_anybody_who_could_repair_it_the_next_up_does(owner: Owner) -> None:
    """The verb dies half-way, and keeper and router with it."""
    turnout = owner.turnout
    owner.configure("v1")
    turnout.run("up")
    owner.configure("v2", "--start-delay", "30")
    deploy = turnout.begin("deploy")
    eventually(lambda: turnout.snapshot().candidate is not None, why="no candidate")
    pids = [turnout.keeper_pid(), turnout.router_pid(), deploy.pid]
    for pid in pids:
        turnout.kill(pid)
    deploy.communicate()
    owner.configure("v1")
    turnout.run("up")
    assert owner.set("after") == "v1"
    assert not owner.collided
    eventually(lambda: len(turnout.daemons()) == 1)


def _holds(turnout: Turnout) -> bool:
    """The active daemon was retired, and the router knows it: until then it sends clients there, who are answered."""
    block = turnout.snapshot().deployment
    applied = turnout.status()["router"]["applied_revision"]
    return bool(block.retired_boot_id) and applied is not None and applied >= block.revision


@pytest.mark.parametrize("who", ["router", "keeper"])
def test_a_router_or_keeper_killed_while_clients_are_held_is_no_end_of_the_rollout(owner: Owner, who: str) -> None:
    turnout = owner.turnout
    owner.configure("v1", "--stop-delay", "2")
    turnout.run("up")
    owner.configure("v2")
    deploy = turnout.begin("deploy")
    eventually(lambda: _holds(turnout), why="nothing was retired")
    turnout.kill(turnout.router_pid() if who == "router" else turnout.keeper_pid())
    assert owner.set("held") == "v2"
    _, said = deploy.communicate(timeout=90)
    assert deploy.returncode == 0, said
    assert not owner.collided
    turnout.run("up")
    assert owner.set("after") == "v2"
    eventually(lambda: len(turnout.daemons()) == 1)


def test_a_stop_that_takes_long_is_said_while_clients_are_held(owner: Owner) -> None:
    turnout = owner.turnout
    owner.configure("v1", "--stop-delay", "60", grace="4s")
    turnout.run("up")
    done = turnout.run("refresh")
    warning = next(line for line in done.stderr.splitlines() if line.startswith("warning:"))
    assert "has not stopped" in warning
    assert "KILL" in warning
    assert "clients are held" in warning
    assert owner.set("x") == "v1"
    assert not owner.collided


def test_three_failures_in_the_window_lead_to_a_cold_rollback_by_the_router(owner: Owner) -> None:
    turnout = owner.turnout
    owner.configure("v1", observe="30s")
    turnout.run("up")
    before = turnout.active()["boot_id"]
    _map(turnout, before)
    owner.configure("v2", "--sick", str(owner.sick), observe="30s")
    deploy = turnout.begin("deploy")
    eventually(lambda: turnout.snapshot().deployment.state is State.SWITCHED, why="v2 never became active")
    assert owner.set("with-v2") == "v2"
    owner.sick.touch()
    eventually(lambda: turnout.snapshot().deployment.generation == 3, why="no rollout back was begun")
    assert owner.set("held") == "v1", "whoever comes meanwhile waits"
    _, said = deploy.communicate(timeout=90)
    assert deploy.returncode == 5, said
    assert "rolled back" in said
    snapshot = turnout.snapshot()
    assert snapshot.workspaces["/project"].boot_id == snapshot.deployment.active_boot_id
    turnout.until_quarantined()
    assert "quarantined" in turnout.run("deploy", code=6).stderr
    assert not owner.collided
    assert {"with-v2", "held"} <= set(owner.written())
    eventually(lambda: turnout.snapshot().deployment.state is State.IDLE)
    eventually(lambda: len(turnout.daemons()) == 1)
    eventually(lambda: [r.result for r in _builds(turnout)] == ["active", "rolled_back", "active"])


def test_rollback_by_hand_stops_the_one_and_starts_the_other(owner: Owner) -> None:
    turnout = owner.turnout
    owner.configure("v1")
    turnout.run("up")
    owner.configure("v2", observe="60s")
    turnout.run("deploy", "--detach")
    assert owner.set("a") == "v2"
    turnout.run("rollback")
    assert owner.set("b") == "v1"
    turnout.run("rollback", "2", "--detach")
    assert owner.set("c") == "v2"
    assert not owner.collided


def test_ctrl_c_before_the_stop_leaves_the_daemon_that_serves_and_after_it_brings_its_build_back(owner: Owner) -> None:
    turnout = owner.turnout
    owner.configure("v1", drain="4s")
    turnout.run("up")
    before = turnout.active()["pid"]
    talking = threading.Event()

    def talk() -> None:
        """A client that is never quiet, so that its daemon is not stopped before the bound is reached."""
        with socket.create_connection(turnout.address, 60) as sock:
            number = 0
            while not talking.wait(0.05):
                number += 1
                exchange(sock, f"t{number}")

    client = threading.Thread(target=talk, daemon=True)
    client.start()
    eventually(owner.written)
    owner.configure("v2", "--start-delay", "60", drain="4s")
    deploy = turnout.begin("deploy")
    eventually(lambda: turnout.snapshot().deployment.retired_boot_id)
    deploy.send_signal(signal.SIGINT)
    _, said = deploy.communicate(timeout=60)
    assert deploy.returncode == 130, said
    assert turnout.active()["pid"] == before
    talking.set()
    client.join(30)
    assert owner.set("x") == "v1"

    deploy = turnout.begin("deploy")
    eventually(lambda: turnout.snapshot().candidate is not None, why="no candidate")
    deploy.send_signal(signal.SIGINT)
    _, said = deploy.communicate(timeout=60)
    assert deploy.returncode == 130, said
    assert owner.set("y") == "v1"
    assert turnout.active()["pid"] != before
    assert not owner.collided


def test_a_quiet_connection_is_ended_in_order_and_a_busy_one_within_the_bound(owner: Owner) -> None:
    turnout = owner.turnout
    owner.configure("v1")
    turnout.run("up")
    with socket.create_connection(turnout.address, 60) as quiet:
        exchange(quiet, "once")
        refresh = turnout.begin("refresh")
        assert quiet.recv(1) == b"", "an end, no reset"
        _, said = refresh.communicate(timeout=60)
    assert refresh.returncode == 0, said


def test_a_crash_after_the_window_is_repaired_without_a_second_daemon(owner: Owner) -> None:
    turnout = owner.turnout
    owner.configure("v1")
    turnout.run("up")
    turnout.kill(turnout.active()["pid"])
    assert owner.set("x") == "v1"
    eventually(lambda: turnout.status()["restart"] is None)
    assert not owner.collided
    assert len(turnout.daemons()) == 1


def test_an_attached_daemon_is_not_ours_to_stop_for_a_successor(owner: Owner) -> None:
    turnout = owner.turnout
    owner.configure("v1")
    with choose_port(avoid={turnout.port}) as reserved:
        port = reserved.port
        command = [sys.executable, "-P", "-m", "turnout.demo.daemon", "--port", str(port)]
        foreign = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        eventually(lambda: who_listens("127.0.0.1", port))
        turnout.run("attach", f"127.0.0.1:{port}")
        refused = turnout.run("deploy", code=2)
        assert "not started by turnout" in refused.stderr
        assert refused.stderr.count("hint:") == 1
        assert foreign.poll() is None
        assert turnout.snapshot().deployment.generation == 1, "nothing was begun"
    finally:
        foreign.kill()
        foreign.wait()


def test_recreate_is_refused_unless_the_hold_outlasts_stop_and_start(owner: Owner) -> None:
    turnout = owner.turnout
    owner.configure("v1", start_timeout="40s")
    refused = turnout.run("up", code=2)
    for number in ("60 s", "20 s", "40 s", "70s"):
        assert number in refused.stderr
    assert refused.stderr.count("hint:") == 1
    assert not turnout.home.root.exists()


def _builds(turnout: Turnout) -> list[Rollout]:
    return list(Builds(turnout.home.service("default").builds).rollouts())


def _map(turnout: Turnout, boot_id: str) -> None:
    def change(snap: Snapshot) -> Outcome:
        mapped = {"/project": Workspace("/project", boot_id)}
        changed = Snapshot(snap.daemons, mapped, snap.deployment, snap.version, snap.extra)
        return Outcome(applied=True, reason=Reason.APPLIED, snapshot=changed)

    turnout.registry.update(change)


@pytest.mark.parametrize("again", ["by itself", "refresh"])
def test_a_worker_that_outlives_its_master_and_kept_nothing_of_it_has_let_go_of_the_data_before_the_next_starts(
    turnout: Turnout, tmp_path: Path, again: str
) -> None:
    lock = tmp_path / "data.lock"
    worker = f"env -i /bin/sh -c 'setsid flock {lock} sleep 600 &'"
    held = f"while flock -n {lock} true; do sleep 0.01; done"
    turnout.configure(["sh", "-c", f"flock -n {lock} true || exit 9; {worker}; {held}; exec {' '.join(line_daemon())}"])
    turnout.tune(strategy='"recreate"', hold='{ timeout = "90s" }', stop='{ grace = "2s" }')
    turnout.run("up")
    before = turnout.active()["pid"]
    if again == "refresh":
        turnout.run("refresh")
    else:
        turnout.kill(before)

    def another() -> bool:
        active = turnout.snapshot().active
        return active is not None and active.pid != before

    eventually(another, timeout_s=60)
    assert ask(turnout.address)
    records = read_records(turnout.home.service("default").records).values()
    assert 9 << 8 not in {record.ended.status for record in records if record.ended}, "none met the worker of another"
