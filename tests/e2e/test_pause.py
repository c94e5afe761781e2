"""pause, resume and drain: holding new clients, and letting old ones go."""

from __future__ import annotations

import json
import socket
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from e2e_support import Turnout, ask, line_daemon
from support import eventually
from turnout.demo.load import Load, line_exchange


def test_paused_clients_wait_and_are_served_after_resume_in_a_service_that_never_refused(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    with socket.create_connection(turnout.address, 20) as lasting:
        lines = lasting.makefile("rw")
        assert "are held" in turnout.run("pause").stdout
        assert "so already" in turnout.run("pause").stdout
        answers: list[str] = []
        waiting = [threading.Thread(target=lambda: answers.append(ask(turnout.address))) for _ in range(5)]
        for thread in waiting:
            thread.start()
        eventually(lambda: turnout.status()["held"] == 5)
        assert turnout.status()["desired"] == "paused"
        lines.write("still\n")
        lines.flush()
        assert lines.readline().startswith("v1 "), "what exists goes on"
        assert answers == []
        turnout.run("resume")
        for thread in waiting:
            thread.join(20)
        assert answers == ["v1"] * 5
    assert turnout.status()["desired"] == "running"


@pytest.mark.parametrize("why", ["a pause", "a crash"])
def test_a_crowd_that_waited_together_is_served_whole(turnout: Turnout, why: str) -> None:
    """More clients than any queue of a daemon takes at once: none may be turned away for having waited long."""
    crowd = 300
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    if why == "a pause":
        turnout.run("pause")
    else:
        turnout.configure(line_daemon("--version", "v1", "--start-delay", "1.5"))
        turnout.run("deploy")
        turnout.kill(turnout.active()["pid"])
    with ThreadPoolExecutor(crowd) as clients:
        answers = [clients.submit(ask, turnout.address, timeout_s=60) for _ in range(crowd)]
        if why == "a pause":
            eventually(lambda: turnout.status()["held"] == crowd, why="they do not all wait")
            turnout.run("resume")
    assert Counter(answer.result() for answer in answers) == {"v1": crowd}


def test_a_deploy_in_the_pause_switches_what_waits_and_the_service_stays_paused(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    turnout.run("pause")
    answers: list[str] = []
    waiting = threading.Thread(target=lambda: answers.append(ask(turnout.address)))
    waiting.start()
    eventually(lambda: turnout.status()["held"] == 1)
    turnout.configure(line_daemon("--version", "v2"), version="v2")
    turnout.run("deploy")
    turnout.run("up")
    assert turnout.status()["held"] == 1
    turnout.run("resume")
    waiting.join(20)
    assert answers == ["v2"]


def drains(turnout: Turnout) -> list[dict[str, Any]]:
    """What drains, once the router knows: a verb has its verdict from the registry, maybe before the router."""
    return eventually(lambda: list(json.loads(turnout.run("drain", "--json").stdout)), why="nothing drains")


def test_pausing_what_is_stopped_or_not_running_is_said(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("pause", code=3)
    turnout.run("up")
    turnout.run("stop")
    assert "is stopped" in turnout.run("pause", code=3).stderr


def test_drain_explains_each_connection_that_is_left_and_cuts_it_when_it_is_hastened(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"), deadline="none")
    turnout.run("up")
    assert "nothing drains" in turnout.run("drain").stdout
    assert "nothing drains" in turnout.run("drain", "--explain").stdout
    old = turnout.active()["boot_id"]
    with socket.create_connection(turnout.address, 20) as lasting:
        lasting.sendall(b"hello\n")
        assert lasting.makefile().readline().startswith("v1 ")
        turnout.configure(line_daemon("--version", "v2"), version="v2", deadline="none")
        turnout.run("deploy")
        (drain,) = drains(turnout)
        (link,) = drain["connections"]
        assert (drain["boot_id"], drain["deadline_in_s"], link["bytes_in"]) == (old, None, 6)
        assert link["peer"] == f"127.0.0.1:{lasting.getsockname()[1]}"
        assert "never cut" in link["why"]
        assert link["peer"] in turnout.run("drain", "--explain").stdout
        load = Load(turnout.address, line_exchange)
        load.start()
        try:
            assert f"hastened: {old}" in turnout.run("drain").stdout
            eventually(lambda: old not in turnout.daemons(), why="the old daemon is still there")
        finally:
            load.stop()
        assert (load.failed, dict(load.errors)) == (0, {})
        lasting.settimeout(20)
        assert lasting.recv(1) == b"", "cut at a quiet moment, which is no reset"


def test_drain_now_does_not_wait_for_a_quiet_moment(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"), deadline="none")
    turnout.run("up")
    old = turnout.active()["boot_id"]
    with socket.create_connection(turnout.address, 20) as lasting:
        lasting.sendall(b"no line yet")
        turnout.configure(line_daemon("--version", "v2"), version="v2", deadline="none")
        turnout.run("deploy")
        drains(turnout)
        turnout.run("drain", "--now")
        eventually(lambda: old not in turnout.daemons(), why="the old daemon is still there")
