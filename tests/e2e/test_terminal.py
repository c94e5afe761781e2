"""Keeper, router and daemon outlive the terminal that they were started in, and a verb needs none."""

from __future__ import annotations

import shlex
import subprocess
import sys

from e2e_support import Turnout, ask, line_daemon
from support import eventually
from turnout.system.process import identify, is_alive

# A terminal of its own: the program gets it as its controlling one, and it hangs up when this process ends.
TERMINAL = """
import os, pty, sys
pid, terminal = pty.fork()
if pid == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
said = b""
try:
    while b" is up" not in said and b"started " not in said:
        said += os.read(terminal, 4096)
except OSError:
    pass
sys.stdout.buffer.write(said)
"""


def test_they_survive_the_hangup_of_the_terminal_that_up_ran_in(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    script = f"{shlex.join(turnout.argv('up'))}; sleep 60"  # the shell is still there when the terminal goes
    done = subprocess.run(
        [sys.executable, "-P", "-c", TERMINAL, "sh", "-c", script],
        cwd=turnout.home.root.parent,
        env=turnout.env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=90,
        check=True,
    )
    assert b"started " in done.stdout
    keeper, router = turnout.keeper_pid(), turnout.router_pid()
    daemon = turnout.active()["pid"]
    for pid in (keeper, router, daemon):
        assert identify(pid).pid == pid
    assert ask(turnout.address) == "v1"
    assert (turnout.keeper_pid(), turnout.router_pid()) == (keeper, router)


def test_verbs_work_with_stdin_stdout_and_stderr_closed(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    closed = f"exec {shlex.join(turnout.argv('up'))} <&- >&- 2>&-"
    subprocess.run(["sh", "-c", closed], cwd=turnout.home.root.parent, env=turnout.env, timeout=90, check=True)
    assert ask(turnout.address) == "v1"
    keeper = identify(turnout.keeper_pid())
    subprocess.run(
        ["sh", "-c", f"exec {shlex.join(turnout.argv('down'))} <&- >&- 2>&-"],
        cwd=turnout.home.root.parent,
        env=turnout.env,
        timeout=90,
        check=True,
    )
    eventually(lambda: not is_alive(keeper))
    assert turnout.processes() == {}
