"""On a system that lacks what the keeper needs the command ends with one line, before anything else is imported."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

NO_LINUX = "sys.platform = 'freebsd14'"
LACKING = {
    NO_LINUX: "turnout runs on Linux alone, and this is freebsd14",
    "del os.pidfd_open": "this Python has no os.pidfd_open, which the keeper needs",
    "del os.pipe2": "this Python has no os.pipe2, which the keeper needs",
}


def begun(change: str, *args: str) -> subprocess.CompletedProcess[str]:
    """The command on a system that was changed so."""
    code = f"import os, sys; from turnout.__main__ import main; {change}; main()"
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("change", LACKING)
def test_a_system_that_lacks_what_the_keeper_needs_is_told_in_one_line(change: str) -> None:
    done = begun(change, "--help")
    assert (done.returncode, done.stdout) == (1, "")
    first, hint = done.stderr.splitlines()
    assert first == f"turnout: {LACKING[change]}"
    assert hint.startswith("hint: run it on Linux 5.3")


def test_a_program_is_told_it_as_json() -> None:
    done = begun(NO_LINUX, "status", "--json")
    assert (done.returncode, done.stderr) == (1, "")
    told = json.loads(done.stdout)["error"]
    assert (told["type"], told["message"], told["exit_code"]) == ("TurnoutError", LACKING[NO_LINUX], 1)
