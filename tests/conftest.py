"""What every run says of itself: under soak, one line for the whole run beside those of the counted tests."""

from __future__ import annotations

import pytest

from support import SOAK, report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    counts = {kind: len(terminalreporter.getreports(kind)) for kind in ("passed", "failed", "error", "skipped")}
    report("the whole run", soak=SOAK, seed=config.getoption("--hypothesis-seed", None), **counts)
