"""What tests of every layer share: their two sizes, and waiting for a condition with a deadline."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

SOAK = os.environ.get("TURNOUT_SOAK") == "1"
T = TypeVar("T")


def scaled(plain: int, full: int) -> int:
    """The count of a repeated step: ``plain`` in the ordinary run, ``full`` under ``tox -e soak``."""
    return full if SOAK else plain


def comes_true(condition: Callable[[], object], *, timeout_s: float, interval_s: float = 0.05) -> bool:
    """Whether ``condition`` is truthy before so many seconds are over; polled."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(interval_s)
    return True


def eventually(condition: Callable[[], T], *, timeout_s: float = 20.0, interval_s: float = 0.01, why: str = "") -> T:
    """Poll ``condition`` until it is truthy and return what it gave.

    Raises:
        AssertionError: it was not truthy before ``timeout_s`` seconds were over.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        got = condition()
        if got:
            return got
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {why or condition}"
        time.sleep(interval_s)


def report(what: str, **figures: object) -> None:
    """Keep what a counted test did: one line of JSON in the file that TURNOUT_REPORT names (tox -e soak does)."""
    target = os.environ.get("TURNOUT_REPORT")
    if target:
        line = json.dumps({"what": what, **figures, "commit": commit()}) + "\n"
        with open(target, "a", encoding="utf-8") as file:  # noqa: PTH123  # O_APPEND: several workers write
            file.write(line)


@functools.cache
def commit() -> str:
    """The commit of the checkout that is tested; empty where there is none."""
    asked = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, timeout=20, check=False).stdout.strip()
    except OSError:
        return ""
