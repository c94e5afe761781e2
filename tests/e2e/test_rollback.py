"""A new version that turns bad after the switch is taken back, and nobody but its own clients notices."""

from __future__ import annotations

import signal
import time

import pytest

from e2e_support import Turnout, ask, line_daemon
from support import eventually
from turnout.core.model import Snapshot, State, Workspace
from turnout.core.outcome import Outcome, Reason


def _map_workspaces(turnout: Turnout, boot_id: str) -> None:
    """As a client program would: two projects that are served by this daemon, and one by nobody."""

    def change(snapshot: Snapshot) -> Outcome:
        workspaces = {
            "/project/a": Workspace("/project/a", boot_id, extra={"theirs": 1}),
            "/project/b": Workspace("/project/b", boot_id),
            "/project/c": Workspace("/project/c", "somebody-else"),
        }
        changed = Snapshot(snapshot.daemons, workspaces, snapshot.deployment, snapshot.version, snapshot.extra)
        return Outcome(applied=True, reason=Reason.APPLIED, snapshot=changed)

    turnout.registry.update(change)


def _mapped(turnout: Turnout) -> dict[str, str]:
    return {root: workspace.boot_id for root, workspace in turnout.snapshot().workspaces.items()}


@pytest.mark.parametrize("how", ["stopped", "exited"])
def test_three_failed_checks_in_a_row_bring_the_previous_daemon_back(turnout: Turnout, how: str) -> None:
    turnout.configure(line_daemon("--version", "v1"), observe="30s")
    turnout.run("up")
    before = turnout.active()
    _map_workspaces(turnout, before["boot_id"])
    turnout.configure(line_daemon("--version", "v2"), version="v2", observe="30s")
    deploy = turnout.begin("deploy")
    eventually(lambda: turnout.snapshot().deployment.state is State.SWITCHED, why="v2 never became active")
    v2 = turnout.snapshot().active
    assert v2 is not None
    eventually(lambda: ask(turnout.address) == "v2", why="the router did not apply the switch")
    assert _mapped(turnout) == {"/project/a": v2.boot_id, "/project/b": v2.boot_id, "/project/c": "somebody-else"}

    turnout.kill(v2.pid, signal.SIGSTOP if how == "stopped" else signal.SIGKILL)
    _, said = deploy.communicate(timeout=60)

    assert deploy.returncode == 5, said
    assert "rolled back" in said
    assert ("stopped" if how == "stopped" else "ended") in said or "exit" in said
    block = turnout.snapshot().deployment
    assert block.state is State.IDLE
    assert block.rollback_reason
    assert _mapped(turnout) == {
        "/project/a": before["boot_id"],
        "/project/b": before["boot_id"],
        "/project/c": "somebody-else",
    }
    assert ask(turnout.address) == "v1"
    after = turnout.active()
    assert (after["boot_id"], after["pid"]) == (before["boot_id"], before["pid"]), "it was never restarted"
    eventually(lambda: v2.boot_id not in turnout.daemons(), why="the failed daemon is still there")
    turnout.journaled("rollback")
    checks = [e for e in turnout.journal() if e["event"] == "health_failure" and e.get("outcome") == "applied"]
    assert [e["streak"] for e in checks][-3:] in (["1", "2", "3"], ["1", "2", "0"]), checks


def test_a_build_that_was_rolled_back_is_deployed_again_only_by_force(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"), observe="30s")
    turnout.run("up")
    turnout.configure(line_daemon("--version", "v2"), version="v2", observe="30s")
    code, said = turnout.deploy_that_dies()
    assert code == 5, said
    refused = turnout.run("deploy", code=6)
    assert "quarantined" in refused.stderr
    assert "hint:" in refused.stderr
    assert "rolled back" in turnout.run("up").stdout, "what is configured is bad: what works stays"
    assert ask(turnout.address) == "v1"
    turnout.kill(turnout.active()["pid"])
    turnout.run("up")
    assert ask(turnout.address) == "v1", "what worked last is started, not what was rolled back"
    code, said = turnout.deploy_that_dies("--force")
    assert code == 5, said


def test_two_failures_and_a_success_do_not_roll_back(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"), observe="5s", interval="1s")
    turnout.run("up")
    turnout.configure(line_daemon("--version", "v2"), version="v2", observe="5s", interval="1s")
    deploy = turnout.begin("deploy")
    eventually(lambda: turnout.snapshot().deployment.state is State.SWITCHED)
    v2 = turnout.snapshot().active
    assert v2 is not None
    turnout.kill(v2.pid, signal.SIGSTOP)
    eventually(lambda: turnout.snapshot().deployment.health_fail_streak >= 1, interval_s=0.002)
    turnout.kill(v2.pid, signal.SIGCONT)
    _, said = deploy.communicate(timeout=60)
    assert deploy.returncode == 0, said
    assert ask(turnout.address) == "v2"


def test_rollback_by_hand_in_the_window_returns_to_the_warm_daemon(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"), observe="60s")
    turnout.run("up")
    before = turnout.active()
    turnout.configure(line_daemon("--version", "v2"), version="v2", observe="60s")
    turnout.run("deploy", "--detach")
    assert ask(turnout.address) == "v2"
    failed = turnout.active()["boot_id"]
    turnout.run("rollback")
    assert ask(turnout.address) == "v1"
    assert turnout.active()["pid"] == before["pid"]
    (told,) = (event for event in turnout.journal() if event["event"] == "rollback")
    assert (told["generation"], told["boot_id"], told["evidence"]) == (2, failed, "by hand")
    assert "put back: by hand" in turnout.run("why").stdout


def test_rollback_after_the_window_starts_the_recorded_build_again(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    before = turnout.active()
    turnout.configure(line_daemon("--version", "v2"), version="v2")
    turnout.run("deploy")
    eventually(lambda: before["boot_id"] not in turnout.daemons(), why="v1 was never stopped")
    turnout.run("rollback")
    assert ask(turnout.address) == "v1"
    turnout.run("rollback", "2")
    assert ask(turnout.address) == "v2"


def test_a_window_that_the_router_slept_through_is_not_passed(turnout: Turnout) -> None:
    """A paused machine, or a stalled router: what nobody checked has not been well."""
    turnout.configure(line_daemon("--version", "v1"), version="v1")
    turnout.run("up")
    first = turnout.active()["pid"]
    turnout.configure(line_daemon("--version", "v2"), version="v2", observe="2s", timeout="300ms")
    turnout.run("deploy", "--detach")
    candidate, router = turnout.active()["pid"], turnout.router_pid()
    turnout.kill(router, signal.SIGSTOP)
    turnout.kill(candidate, signal.SIGSTOP)
    time.sleep(2.5)  # what is tried: the window is over before the router looks again
    turnout.kill(router, signal.SIGCONT)
    eventually(lambda: turnout.snapshot().deployment.state is State.IDLE, why="the window does not end")
    assert turnout.active()["pid"] == first
    assert ask(turnout.address) == "v1"
