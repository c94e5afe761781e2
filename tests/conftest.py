"""What every run says of itself: under soak, one line for the whole run beside those of the counted tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import hypothesis
import pytest

from support import SOAK, report

# What may be skipped although TURNOUT_REQUIRE says "everything": root in a container may still not raise its limits.
FORGIVEN = "CAP_SYS_RESOURCE"

# Its own deadline is 200 ms of wall time for each example, which a busy machine breaks.
hypothesis.settings.register_profile("turnout", deadline=None)
hypothesis.settings.load_profile("turnout")

# A run in a shell's background has SIGINT ignored, and so would have the verbs that tests interrupt (execve(2)).
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _handlers_of_signals() -> Iterator[None]:
    """A loop that took signals in a test does not keep them: uvloop leaves its handler where a test closes the loop."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    counts = {kind: len(terminalreporter.getreports(kind)) for kind in ("passed", "failed", "error", "skipped")}
    report("the whole run", soak=SOAK, seed=config.getoption("--hypothesis-seed", None), **counts)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where everything is required, a test that was skipped fails the run: a green one must not hide a missing tool."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or "everything" not in os.environ.get("TURNOUT_REQUIRE", "").split(","):
        return
    unforgiven = [report for report in reporter.getreports("skipped") if FORGIVEN not in str(report.longrepr)]
    if unforgiven and session.exitstatus == pytest.ExitCode.OK:
        reporter.write_line(f"{len(unforgiven)} tests were skipped, and TURNOUT_REQUIRE says everything", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
