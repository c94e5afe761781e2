"""What every run says of itself: under soak, one line for the whole run beside those of the counted tests."""

from __future__ import annotations

import signal

import pytest

from support import SOAK, report

# A run in a shell's background has SIGINT ignored, and so would have the verbs that tests interrupt (execve(2)).
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    counts = {kind: len(terminalreporter.getreports(kind)) for kind in ("passed", "failed", "error", "skipped")}
    report("the whole run", soak=SOAK, seed=config.getoption("--hypothesis-seed", None), **counts)
