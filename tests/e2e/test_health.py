"""What is checked, what is counted, and what follows from it, with real daemons under load."""

from __future__ import annotations

import http.client
import signal
import sys
from typing import Any

import pytest

from e2e_support import Turnout, ask, line_daemon, under_load
from process_support import Running, Started
from support import eventually, scaled
from turnout.core.model import Snapshot, State, Workspace
from turnout.core.outcome import Outcome, Reason

PATIENCE_S = 60.0
# Well, until the file "plan" says otherwise: a word for each check of v2, "well" or "bad"; what was asked is counted.
CHECK = """#!/bin/sh
[ "$TURNOUT_VERSION" = v2 ] && plan=$(readlink plan) || exit 0
echo >> "$plan.asked"
word=$(sed -n "$(wc -l < "$plan.asked")p" "$plan")
echo "$word" >> done
[ "$word" != bad ] || { echo "the plan says bad"; exit 1; }
"""


def planned(turnout: Turnout, version: str, *, observe: str, interval: str = "100ms", timeout: str = "2s") -> None:
    """A daemon that serves well all the while, with a check that says what the test planned."""
    check = turnout.home.root.parent / "check"
    if not check.exists():
        check.write_text(CHECK)
        check.chmod(0o755)
    turnout.configure(
        line_daemon("--version", version),
        version=version,
        observe=observe,
        probe="exec",
        interval=interval,
        timeout=timeout,
        extra=', command = ["./check"]',
    )


def plan(turnout: Turnout, *words: str) -> None:
    """From now on these words; a file of its own for each plan, so that a check under way writes into no other."""
    here = turnout.home.root.parent
    name = f"plan-{len(list(here.glob('plan-*')))}"
    (here / name).write_text("".join(f"{word}\n" for word in words))
    (here / "plan.new").symlink_to(name)
    (here / "plan.new").replace(here / "plan")


def checks(turnout: Turnout) -> list[str]:
    done = turnout.home.root.parent / "done"
    return done.read_text().split() if done.exists() else []


def events(turnout: Turnout, kind: str) -> list[dict[str, Any]]:
    return [event for event in turnout.journal() if event["event"] == kind]


def map_workspace(turnout: Turnout, root: str, boot_id: str) -> None:
    def change(snap: Snapshot) -> Outcome:
        mapped = {**snap.workspaces, root: Workspace(root, boot_id)}
        changed = Snapshot(snap.daemons, mapped, snap.deployment, snap.version, snap.extra)
        return Outcome(applied=True, reason=Reason.APPLIED, snapshot=changed)

    turnout.registry.update(change)


def begin_v2(turnout: Turnout, *, observe: str) -> Any:
    """v1 with a workspace, then a deploy of v2 as far as its switch."""
    planned(turnout, "v1", observe=observe)
    turnout.run("up")
    v1 = turnout.active()["boot_id"]
    map_workspace(turnout, "/project", v1)
    planned(turnout, "v2", observe=observe)
    deploy = turnout.begin("deploy")
    eventually(lambda: turnout.snapshot().deployment.state is State.SWITCHED, timeout_s=PATIENCE_S)
    assert turnout.snapshot().workspaces["/project"].boot_id != v1
    return deploy


def test_three_failures_in_a_row_roll_back_with_the_workspace_and_no_client_notices(turnout: Turnout) -> None:
    planned(turnout, "v1", observe="120s")
    turnout.run("up")
    v1 = turnout.active()
    with under_load(turnout):
        deploy = begin_v2(turnout, observe="120s")
        eventually(lambda: ask(turnout.address) == "v2")
        plan(turnout, "bad", "bad", "bad", *["well"] * 100)
        _, said = deploy.communicate(timeout=PATIENCE_S)
        assert ask(turnout.address) == "v1"
    assert deploy.returncode == 5, said
    assert "the plan says bad" in said
    assert turnout.snapshot().workspaces["/project"].boot_id == v1["boot_id"]
    assert turnout.active()["pid"] == v1["pid"], "it was never restarted"
    assert len(turnout.journaled("rollback")) == 1
    turnout.until_quarantined()
    assert "quarantined" in turnout.run("deploy", code=6).stderr


def test_two_failures_and_a_success_over_and_over_do_not_roll_back(turnout: Turnout) -> None:
    rounds = scaled(4, 60)
    deploy = begin_v2(turnout, observe="2s")
    plan(turnout, *["bad", "bad", "well"] * rounds, *["well"] * 10_000)
    with under_load(turnout):
        _, said = deploy.communicate(timeout=PATIENCE_S + rounds)
    assert deploy.returncode == 0, said
    assert checks(turnout).count("bad") >= 2
    turnout.journaled("finish", generation=2)
    applied = [e for e in events(turnout, "health_failure") if e["outcome"] == "applied"]
    assert {e["streak"] for e in applied} <= {"1", "2"}
    assert events(turnout, "rollback") == []
    assert ask(turnout.address) == "v2"


def test_failures_before_the_switch_and_after_it_do_not_add_up(turnout: Turnout) -> None:
    planned(turnout, "v1", observe="2s")
    turnout.run("up")
    planned(turnout, "v2", observe="2s")
    plan(turnout, "bad", "bad", "well", "well", "bad", *["well"] * 10_000)
    turnout.run("deploy")
    assert checks(turnout)[:5] == ["bad", "bad", "well", "well", "bad"]
    assert ask(turnout.address) == "v2"


def test_a_daemon_that_hangs_after_its_window_is_reported_and_left_alone(turnout: Turnout) -> None:
    planned(turnout, "v2", observe="200ms")
    turnout.run("up")
    before = turnout.active()
    plan(turnout, *["bad"] * 10_000)
    unwell = eventually(lambda: turnout.status()["unwell"], timeout_s=PATIENCE_S, why="status says nothing")
    assert unwell["boot_id"] == before["boot_id"]
    assert unwell["failures"] >= 3
    assert "the plan says bad" in unwell["reason"]
    plan(turnout, *["well"] * 10_000)
    eventually(lambda: turnout.status()["unwell"] is None, timeout_s=PATIENCE_S, why="its recovery was not noticed")
    turnout.journaled("well_again")
    assert [len(events(turnout, kind)) for kind in ("unwell", "well_again", "replacing")] == [1, 1, 0]
    assert turnout.active()["pid"] == before["pid"]


def test_a_daemon_that_hangs_is_replaced_where_the_operator_wants_that(turnout: Turnout) -> None:
    """It is stopped (SIGSTOP): it accepts, as the kernel does that, and answers nothing for ever."""
    turnout.configure(line_daemon("--version", "v1"), observe="200ms")
    turnout.tune(on_unhealthy='"restart"')
    turnout.run("up")
    before = turnout.active()
    turnout.kill(before["pid"], signal.SIGSTOP)
    eventually(lambda: turnout.snapshot().deployment.active_boot_id != before["boot_id"], timeout_s=PATIENCE_S)
    after = turnout.applied().deployment.active_boot_id
    assert ask(turnout.address) == "v1"
    eventually(lambda: set(turnout.daemons()) == {after}, timeout_s=PATIENCE_S, why="the hung one is left")
    assert len(turnout.journaled("replacing")) == 1
    eventually(lambda: turnout.status()["restart"] is None)


def test_a_web_server_is_probed_over_http_and_rolled_back_when_it_answers_badly(turnout: Turnout) -> None:
    root = turnout.home.root.parent / "www"
    root.mkdir()
    (root / "healthz").write_text("well\n")
    command = [sys.executable, "-m", "http.server", "{port}", "--bind", "127.0.0.1", "--directory", str(root)]
    asks = ', path = "/healthz", match = "^well"'
    turnout.configure(command, probe="http", extra=asks, observe="120s")
    turnout.run("up")
    first = turnout.active()
    assert "/healthz" in first["reason"]
    other = turnout.home.root.parent / "other"
    other.mkdir()
    (other / "healthz").write_text("well\n")
    command[-1] = str(other)
    turnout.configure(command, probe="http", extra=asks, observe="120s", version="v2")
    turnout.run("deploy", "--detach")
    (other / "healthz").unlink()
    eventually(lambda: turnout.snapshot().deployment.active_boot_id == first["boot_id"], timeout_s=PATIENCE_S)
    assert "404" in turnout.applied().deployment.rollback_reason
    client = http.client.HTTPConnection(*turnout.address, timeout=20)
    client.request("GET", "/healthz")
    assert client.getresponse().read() == b"well\n"


def test_a_check_that_outlives_its_generation_is_counted_against_nobody(turnout: Turnout) -> None:
    """v2's check hangs while a person goes back to v1: its failure comes when v1 is active again."""
    planned(turnout, "v1", observe="120s", timeout="60s")
    turnout.run("up")
    planned(turnout, "v2", observe="120s", timeout="60s")
    here = turnout.home.root.parent
    shebang, rest = CHECK.split("\n", 1)
    again = '[ "$TURNOUT_VERSION" = v2 ] || [ ! -e back ] || touch again'
    slow = '[ "$word" != slow ] || { touch slow; until [ -e back ]; do sleep 0.05; done; exit 1; }'
    (here / "check").write_text(f"{shebang}\n{again}\n{rest}{slow}\n")
    turnout.run("deploy", "--detach")
    plan(turnout, "slow", *["well"] * 100)
    eventually((here / "slow").exists, timeout_s=PATIENCE_S)
    turnout.run("rollback")
    v1 = turnout.active()["boot_id"]
    (here / "back").touch()
    eventually((here / "again").exists, timeout_s=PATIENCE_S, why="v1 is not checked: v2's check has not ended")
    eventually(lambda: turnout.active()["healthy"] is True, timeout_s=PATIENCE_S)
    block = turnout.snapshot().deployment
    assert (block.state, block.active_boot_id, block.health_fail_streak) == (State.IDLE, v1, 0)
    assert [each["evidence"] for each in events(turnout, "rollback")] == ["by hand"], "none by the router"


@pytest.mark.parametrize("previous", ["lives", "restarted as well"])
def test_an_attached_daemon_that_its_owner_restarts_in_the_window_ends_the_verb_with_a_verdict(
    turnout: Turnout, previous: str
) -> None:
    """The new process on the same port is another daemon: back to the previous one, or an error that names both."""
    turnout.configure(line_daemon(), observe="60s")

    def restart(started: Started, running: Running) -> None:
        running.process.kill()
        running.process.wait()
        started.demo("--port", str(running.port), version="restarted")

    with Started() as started:
        first, second = started.demo(version="first"), started.demo(version="second")
        turnout.run("attach", f"127.0.0.1:{first.port}")
        if previous != "lives":
            restart(started, first)
        verb = turnout.begin("attach", f"127.0.0.1:{second.port}")
        eventually(lambda: turnout.snapshot().deployment.state is State.SWITCHED, timeout_s=PATIENCE_S)
        restart(started, second)
        _, said = verb.communicate(timeout=PATIENCE_S)
        block = turnout.snapshot().deployment
        assert block.state is State.IDLE
        assert f"pid {second.process.pid} has ended" in block.rollback_reason
        if previous == "lives":
            assert verb.returncode == 5, said
            assert block.active_boot_id.startswith(f"attached-{first.process.pid}-")
            return
        assert verb.returncode == 1, said
        assert f"pid {first.process.pid} has ended" in said
        assert f"hint: turnout attach 127.0.0.1:{second.port}" in said
        assert len(turnout.journaled("window_failed")) == 1
        assert len(turnout.journaled("health_failure")) == 3


@pytest.mark.parametrize("end", ["rollback", "failed checks", "stop", "down"])
def test_a_daemon_that_somebody_else_started_is_switched_to_probed_and_never_killed(turnout: Turnout, end: str) -> None:
    with Started() as started:
        theirs = started.demo(version="theirs")
        turnout.configure(line_daemon("--version", "v1"), observe="120s")
        turnout.run("up")
        turnout.begin("attach", f"127.0.0.1:{theirs.port}")  # it waits until the window is over
        eventually(lambda: ask(turnout.address) == "theirs", timeout_s=PATIENCE_S)
        if end == "failed checks":
            theirs.process.send_signal(signal.SIGSTOP)
            eventually(
                lambda: (active := turnout.snapshot().active) and active.version == "v1",
                timeout_s=PATIENCE_S,
                why="it was not probed",
            )
            theirs.process.send_signal(signal.SIGCONT)
        else:
            turnout.run(end)
        if end != "down":
            gone = theirs.process.pid
            eventually(lambda: all(d.pid != gone for d in turnout.snapshot().daemons.values()), timeout_s=PATIENCE_S)
        assert theirs.process.poll() is None
        assert ask(theirs.address) == "theirs", "it serves on, for whoever knows it"
