"""The verbs of one service never interleave: who cannot get the lock is told by whom, and has changed nothing."""

from __future__ import annotations

import os
import re
import signal
import subprocess

from e2e_support import Turnout, ask, line_daemon
from support import eventually
from turnout.core.model import State

CHANGING = [
    ("up",),
    ("start",),
    ("stop",),
    ("refresh",),
    ("deploy",),
    ("rollback",),
    ("attach", "127.0.0.1:9"),
    ("detach",),
    ("pause",),
    ("resume",),
    ("drain", "--now"),
    ("down",),
]


def _held(turnout: Turnout) -> subprocess.Popen[str]:
    """A deploy that was stopped (SIGSTOP) in the middle of its critical section."""
    turnout.configure(line_daemon("--version", "v1"), observe="5s")
    turnout.run("up")
    turnout.configure(line_daemon("--version", "v2", "--start-delay", "600"), version="v2", observe="5s")
    turnout.tune(start_timeout='"900s"', stop='{ grace = "500ms" }')
    deploy = turnout.begin("deploy")
    eventually(lambda: turnout.snapshot().candidate, why="the candidate was never started")
    turnout.kill(deploy.pid, signal.SIGSTOP)
    return deploy


def _files(turnout: Turnout) -> dict[str, bytes]:
    root = turnout.home.service("default").root
    names = ("registry.json", "registry.json.good", "settings.json", "builds.json", "journal.jsonl")
    return {name: (root / name).read_bytes() for name in names if (root / name).exists()}


def test_every_verb_that_changes_names_the_stopped_holder_exits_6_and_has_changed_nothing(turnout: Turnout) -> None:
    deploy = _held(turnout)
    before, processes = _files(turnout), turnout.processes()
    for verb in CHANGING:
        said = turnout.run(*verb, "--lock-timeout", "0.1", code=6).stderr
        found = re.search(rf"turnout: deploy \(pid {deploy.pid}, since \d\d:\d\d:\d\d\)", said)
        assert found, said
        assert "nothing was changed" in said
        assert f"kill -CONT {deploy.pid}" in said
    assert _files(turnout) == before
    assert turnout.processes() == processes
    assert ask(turnout.address) == "v1"
    for verb in (("status",), ("logs",), ("history",), ("registry", "show")):
        turnout.run(*verb)  # who only reads does not wait

    os.kill(deploy.pid, signal.SIGINT)
    os.kill(deploy.pid, signal.SIGCONT)
    _, said = deploy.communicate(timeout=60)
    assert deploy.returncode == 130, said
    turnout.run("stop")


def test_a_bad_timeout_in_the_environment_falls_to_the_default_with_a_warning(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    done = turnout.run("up", env={**turnout.env, "TURNOUT_LOCK_TIMEOUT": "soon"})
    assert "warning: lock timeout 'soon'" in done.stderr
    assert "8 s" in done.stderr
    assert "warning" not in turnout.run("up", env={**turnout.env, "TURNOUT_LOCK_TIMEOUT": "3"}).stderr


def test_the_option_wins_over_the_environment(turnout: Turnout) -> None:
    deploy = _held(turnout)
    env = {**turnout.env, "TURNOUT_LOCK_TIMEOUT": "3600"}
    said = turnout.run("stop", "--lock-timeout", "0.2", code=6, env=env).stderr
    assert "0.2 s" in said
    os.kill(deploy.pid, signal.SIGKILL)


def test_a_verb_waits_for_one_that_ends_in_time_and_says_for_whom(turnout: Turnout) -> None:
    deploy = _held(turnout)
    stop = turnout.begin("stop", "--lock-timeout", "60")
    assert stop.stderr
    line = stop.stderr.readline()
    assert f"waiting for deploy (pid {deploy.pid}" in line
    os.kill(deploy.pid, signal.SIGKILL)  # the kernel frees its lock; its rollout is aborted by who comes next
    _, said = stop.communicate(timeout=60)
    assert stop.returncode == 0, said
    block = turnout.snapshot().deployment
    assert (block.state, block.active_boot_id) == (State.IDLE, "")
    eventually(lambda: not turnout.daemons(), why="a daemon is left")


def test_an_up_waits_for_another_of_the_same_build_as_long_as_that_takes_and_for_no_other(turnout: Turnout) -> None:
    """Refused because somebody is just doing it: whoever runs `up` twice wants the service, not an error."""
    gate = turnout.home.root.parent / "gate"
    turnout.configure(
        ["sh", "-c", f"until [ -e {gate} ]; do sleep 0.05; done; exec {' '.join(line_daemon('--version', 'v1'))}"],
        observe="1s",
    )
    turnout.tune(start_timeout='"300s"')
    first = turnout.begin("up")
    eventually(lambda: turnout.snapshot().candidate, why="the candidate was never started", timeout_s=60)
    others = [turnout.begin("up", "--lock-timeout", "0.1") for _ in range(3)]
    for other in others:
        assert other.stderr
        assert f"waiting for up (pid {first.pid})" in other.stderr.readline()
    for verb, *command in (["stop"], ["deploy"], ["up", "--", *line_daemon("--version", "v2")]):
        said = turnout.run(verb, "--lock-timeout", "0.1", *command, code=6).stderr
        assert f"up (pid {first.pid}, since" in said
    assert [other.poll() for other in others] == [None] * 3, "they waited no longer than --lock-timeout"
    gate.touch()
    for process in (first, *others):
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    assert (len(turnout.daemons()), ask(turnout.address)) == (1, "v1")
