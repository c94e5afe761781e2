"""What tests of every layer share: their two sizes, and waiting for a condition with a deadline."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

SOAK = os.environ.get("TURNOUT_SOAK") == "1"
T = TypeVar("T")


def scaled(plain: int, full: int) -> int:
    """The count of a repeated step: ``plain`` in the ordinary run, ``full`` under ``tox -e soak``."""
    return full if SOAK else plain


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
