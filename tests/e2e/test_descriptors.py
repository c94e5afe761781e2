"""More clients than a router has descriptors for: those that it has go on, it goes on deciding, and the others wait."""

from __future__ import annotations

import contextlib
import socket
import sys

import pytest

from direct_support import Lines, router
from e2e_support import Turnout, line_daemon
from support import eventually, report
from turnout.demo.load import line_exchange

LIMIT = 256
FEW = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, ({0}, {0}))
os.execv(sys.argv[1], sys.argv[1:])
"""


def configure(turnout: Turnout, version: str) -> None:
    turnout.configure(line_daemon("--version", version), version=version, observe="200ms")
    turnout.tune(drain='{ grace = "10m", deadline = "20m" }')  # nobody is cut here


@pytest.fixture
def few(turnout: Turnout, monkeypatch: pytest.MonkeyPatch) -> Turnout:
    """A home whose keeper was started with few descriptors, and so its router."""
    argv = turnout.argv
    limited = [sys.executable, "-S", "-E", "-c", FEW.format(LIMIT)]
    monkeypatch.setattr(turnout, "argv", lambda *args: [*limited, *argv(*args)])
    configure(turnout, "v1")
    turnout.run("up")
    monkeypatch.undo()
    return turnout


def test_a_router_without_descriptors_for_more_clients_keeps_those_that_it_has_and_deploys(few: Turnout) -> None:
    before = router(few)["pid"]
    with contextlib.ExitStack() as opened:
        lines = Lines(few.address, LIMIT // 4)  # each takes two
        opened.callback(lines.close)
        waiting = [opened.enter_context(socket.create_connection(few.address, 60)) for _ in range(LIMIT)]
        eventually(lambda: few.status()["counters"]["fd_exhausted"] > 2)
        lines.all_go_on()
        configure(few, "v2")
        few.run("deploy")
        assert few.active()["version"] == "v2"
        lines.all_go_on()
        report("no descriptors", limit=LIMIT, counters=few.status()["counters"])
        lines.close()
        for sock in waiting[:16]:  # the first that came
            assert line_exchange(sock) in {"v1", "v2"}
    assert router(few)["pid"] == before, "it ended, and all of its connections with it"
    with socket.create_connection(few.address, 60) as client:
        assert line_exchange(client) == "v2"
