"""A log's line is one line, whoever had a say in it."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from turnout.log_lines import OneLine

EVIL = "boot\x1b[2J\r\n2026-11-25T01:02:03 INFO all is well\u2028\u202e"


def record(message: str, *args: object) -> logging.LogRecord:
    return logging.LogRecord("turnout", logging.INFO, __file__, 1, message, args, None)


def test_what_is_not_printable_is_spelled_out() -> None:
    line = OneLine("%(levelname)s %(message)s").format(record("default: died %s", EVIL))
    assert line.isprintable()
    assert line == r"INFO default: died boot\x1b[2J\x0d\x0a2026-11-25T01:02:03 INFO all is well\u2028\u202e"


def test_a_traceback_stays_readable_behind_its_line() -> None:
    told = record("it %s", EVIL)
    try:
        raise ValueError
    except ValueError as error:
        told.exc_info = (ValueError, error, error.__traceback__)
    first, *rest = OneLine().format(told).split("\n")
    assert first.startswith("it boot")
    assert rest[0] == "Traceback (most recent call last):"
    assert rest[-1] == "ValueError"


@pytest.mark.parametrize(
    "program",
    [
        "import sys; from turnout.logfile import log_line; log_line(sys.argv[1])",
        "import logging, sys, turnout.log_lines as it; it.log_to_stderr('%(message)s'); logging.info(sys.argv[1])",
    ],
)
def test_both_ways_to_the_log_write_one_line(program: str) -> None:
    done = subprocess.run([sys.executable, "-P", "-c", program, EVIL], capture_output=True, timeout=60, check=True)
    assert done.stderr.count(b"\n") == 1
    assert done.stderr.decode().rstrip("\n").isprintable()
