"""A log's line is one line, whoever had a say in it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest

from turnout.system.log_format import OneLine

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
        "import sys; from turnout.system.own_log import log_line; log_line(sys.argv[1])",
        "import logging, sys, turnout.system.log_format as f; f.log_to_stderr('%(msg)s'); logging.info(sys.argv[1])",
    ],
)
def test_both_ways_to_the_log_write_one_line(program: str) -> None:
    done = subprocess.run([sys.executable, "-P", "-c", program, EVIL], capture_output=True, timeout=60, check=True)
    assert done.stderr.count(b"\n") == 1
    assert done.stderr.decode().rstrip("\n").isprintable()


def test_a_log_whose_file_system_hangs_holds_up_nobody_and_not_the_exit() -> None:
    """Standard error is a pipe that is full: to write into it waits for ever, as a file on a dead server does."""
    program = (
        "import fcntl, logging, os, sys, time\n"
        "from turnout.system.log_format import log_to_stderr\n"
        "from turnout.system.daemon_threads import DaemonThreads\n"
        "os.set_blocking(2, False)\n"
        "try:\n"
        "    while True: os.write(2, bytes(65536))\n"
        "except BlockingIOError: os.set_blocking(2, True)\n"
        "log_to_stderr('%(message)s', threads=DaemonThreads('log'))\n"
        "for number in range(100): logging.info('line %d', number)\n"
        "print('went on', flush=True)\n"
    )
    reading, writing = os.pipe()
    try:
        process = subprocess.Popen([sys.executable, "-P", "-c", program], stdout=subprocess.PIPE, stderr=writing)
        out, _ = process.communicate(timeout=60)
    finally:
        os.close(reading)
        os.close(writing)
    assert (out, process.returncode) == (b"went on\n", 0)


def test_what_is_logged_by_a_thread_is_written_in_order_before_the_exit() -> None:
    program = (
        "import logging, turnout.system.log_format as it; from turnout.system.daemon_threads import DaemonThreads\n"
        "it.log_to_stderr('%(message)s', threads=DaemonThreads('log'))\n"
        "for number in range(500): logging.info('line %d', number)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, timeout=60, check=True, text=True)
    assert done.stderr.splitlines() == [f"line {number}" for number in range(500)]
