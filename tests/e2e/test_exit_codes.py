"""Each exit code that the design names, from the verb that ends with it."""

from __future__ import annotations

import signal

from e2e_support import Turnout, ask, line_daemon
from support import eventually
from turnout.core.model import State


def test_a_deploy_that_fails_prints_the_cause_the_end_of_the_candidates_log_and_who_serves(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    turnout.configure(["sh", "-c", "echo cannot find my hat; exit 7"], version="v2")
    failed = turnout.run("deploy", code=1)
    lines = failed.stderr.splitlines()
    assert "  | cannot find my hat" in lines
    (error,) = [line for line in lines if line.startswith("turnout: ")]
    assert "exit code 7" in error
    assert error.endswith("still serving generation 1 (v1)")
    assert lines[-1].startswith("hint: ")
    turnout.configure(["no-such-program"], version="v3")
    missing = turnout.run("deploy", code=1)
    assert "no-such-program" in missing.stderr
    assert "still serving generation 1 (v1)" in missing.stderr
    assert ask(turnout.address) == "v1"


def test_each_exit_code_of_the_design(turnout: Turnout) -> None:
    turnout.run("status", code=3)
    turnout.run("up", "--service", "nobody", code=4)
    turnout.run("up", "--no-such-option", code=2)
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up", code=0)
    turnout.run("deploy", "--if-generation", "77", code=6)

    turnout.configure(line_daemon("--version", "v2"), version="v2", observe="60s")
    late = turnout.run("deploy", "--timeout", "100ms", code=124)
    assert "still observed" in late.stderr
    turnout.run("rollback", code=0)

    turnout.configure(line_daemon("--version", "v3"), version="v3", observe="60s")
    code, said = turnout.deploy_that_dies()
    assert code == 5, said

    turnout.configure(line_daemon("--version", "v4", "--start-delay", "60"), version="v4")
    interrupted = turnout.begin("deploy")
    eventually(lambda: turnout.snapshot().deployment.state is State.STARTING)
    interrupted.send_signal(signal.SIGINT)
    _, said = interrupted.communicate(timeout=60)
    assert interrupted.returncode == 130, said
    assert ask(turnout.address) == "v1"
    turnout.run("down", code=0)
