"""Going back by hand where the daemon to go back to is not as it was."""

from __future__ import annotations

import signal

import pytest

from e2e_support import Turnout, ask, line_daemon
from support import eventually
from turnout.core.model import State


def in_the_window(turnout: Turnout) -> tuple[str, int]:
    """Version 2 is active and observed, version 1 is warm; its boot and its pid."""
    turnout.configure(line_daemon("--version", "v1"), observe="60s")
    turnout.run("up")
    warm = turnout.active()
    turnout.configure(line_daemon("--version", "v2"), version="v2", observe="60s")
    turnout.run("deploy", "--detach")
    assert turnout.snapshot().deployment.state is State.SWITCHED
    assert ask(turnout.address) == "v2"
    return warm["boot_id"], warm["pid"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["dead", "stopped"])
def test_a_rollback_to_a_restore_that_does_not_serve_starts_its_build_again(
    turnout: Turnout, how: signal.Signals
) -> None:
    """A stopped one still completes handshakes; only a look at the process tells."""
    boot_id, pid = in_the_window(turnout)
    turnout.kill(pid, how)
    turnout.run("rollback")
    assert ask(turnout.address) == "v1"
    block = turnout.snapshot().deployment
    assert block.active_boot_id not in {"", boot_id}, "nobody is given to a daemon that does not serve"
    assert block.state is State.IDLE
    eventually(lambda: set(turnout.daemons()) == {block.active_boot_id}, why="the others are not stopped")
