"""An interrupt that falls into a callback of the interpreter's own must not be lost."""

from __future__ import annotations

import subprocess
import sys

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
    threading.Event().wait(20)
except KeyboardInterrupt:
    sys.exit(7)
"""


def test_an_interrupt_that_an_import_swallows_comes_again() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 7, done.stderr
    assert "ignored" not in done.stderr
