"""``turnout up`` ends with 0 only when a router serves the address, whatever becomes of the router meanwhile."""

from __future__ import annotations

import subprocess
import sys

from e2e_support import Turnout, ask, line_daemon

STOPS_THE_ROUTER_AT_THE_SWITCH = """
import os, signal
from turnout import cli
from turnout.cli.progress import Reporter
from turnout.core.rollout_step import RolloutStep
from turnout.control.keeper_client import KeeperClient
from turnout.lifecycle import bootstrap, rollout
from turnout.state.home import Home

rollout.APPLY_TIMEOUT_S, bootstrap.SILENT_AFTER_S = 1.0, 2.0  # or the test would wait for 15 s

def told(self, step, text):
    if step is RolloutStep.SWITCH:
        with KeeperClient.connect(Home.find()) as keeper:
            os.kill(keeper.hello().router_pid, signal.SIGSTOP)

Reporter.step = told
cli.main()
"""


def test_a_router_that_hangs_from_the_switch_on_is_replaced_before_up_ends(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"), observe="0s")
    command = [sys.executable, "-P", "-c", STOPS_THE_ROUTER_AT_THE_SWITCH, "up"]
    done = subprocess.run(
        command, cwd=turnout.home.root.parent, env=turnout.env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert ask(turnout.address, timeout_s=5) == "v1"


def test_up_says_which_address_is_not_served_where_no_router_comes(turnout: Turnout) -> None:
    """The keeper can start none, since the router's record cannot be written; the daemon runs all the same."""
    turnout.configure(line_daemon("--version", "v1"), observe="0s")
    code = STOPS_THE_ROUTER_AT_THE_SWITCH.replace(
        "os.kill(keeper.hello().router_pid, signal.SIGSTOP)",
        "log = Home.find().router_log; log.unlink(); log.mkdir(); os.kill(keeper.hello().router_pid, signal.SIGKILL)",
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, "up"],
        cwd=turnout.home.root.parent,
        env=turnout.env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 124
    assert f"127.0.0.1:{turnout.port} is not served" in done.stderr
    assert "router.log" in done.stderr, "the keeper's reason"
    turnout.home.router_log.rmdir()
