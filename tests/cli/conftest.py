"""A turnout of its own for each test that needs one, as in e2e."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e_support import Turnout
from turnout.testing import free_port


@pytest.fixture
def turnout(tmp_path: Path) -> Iterator[Turnout]:
    port = free_port()
    harness = Turnout(tmp_path / "home", port)
    try:
        yield harness
    finally:
        harness.end()
