"""An interrupt counts whenever it comes: during the imports, and where the interpreter itself would lose it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from turnout.errors import InterruptedByUserError

SCRIPT = """
import signal, sys, threading, weakref
sys.argv = ["turnout", "--version"]
import turnout.cli
try:
    turnout.cli.main()
except SystemExit:
    pass
class Thing:
    pass
thing = Thing()
reference = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGINT))
try:
    del thing
    threading.Event().wait(600)
except KeyboardInterrupt:
    sys.exit(7)
"""


def test_an_interrupt_that_an_import_swallows_comes_again_also_where_the_verb_waits_by_now() -> None:
    """The wait would end in ten minutes: an interrupt that only counts then is as good as lost."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 7, done.stderr
    assert "ignored" not in done.stderr


def interrupted_at_import(tmp_path: Path, number: int, *args: str, **more: object) -> subprocess.CompletedProcess[str]:
    """The command, with a click in the path that has the signal come while it is imported."""
    (tmp_path / "click.py").write_text(f"import os\nos.kill(os.getpid(), {int(number)})\nfor _ in range(1000): pass\n")
    begin = "from turnout.__main__ import main; main()"
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    argv = [sys.executable, "-c", begin, *args]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, env=env, **more)  # type: ignore[call-overload,no-any-return]  # one option


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_during_the_imports_ends_with_130_and_one_line(tmp_path: Path, number: int) -> None:
    done = interrupted_at_import(tmp_path, number, "up")
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "turnout: interrupted\nhint: turnout status tells how things stand\n"


def test_it_is_told_as_json_where_json_was_asked_for(tmp_path: Path) -> None:
    done = interrupted_at_import(tmp_path, signal.SIGINT, "status", "--json")
    assert (done.returncode, done.stderr) == (InterruptedByUserError.exit_code, "")
    error = json.loads(done.stdout)["error"]
    assert (error["type"], error["exit_code"]) == ("InterruptedByUserError", 130)
    assert "interrupted" in interrupted_at_import(tmp_path, signal.SIGINT, "up", "--", "x", "--json").stderr


def test_one_that_is_ignored_from_the_start_stays_ignored(tmp_path: Path) -> None:
    done = interrupted_at_import(
        tmp_path, signal.SIGINT, "status", preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)
    )
    assert done.returncode == 1, "it went on, to a click that is none"
    assert "ImportError" in done.stderr or "AttributeError" in done.stderr
