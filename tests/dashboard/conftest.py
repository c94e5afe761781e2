"""Homes to look at: one that a test brings to life, and one where nothing runs and everything lies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dashboard_support import EVIL, Served
from e2e_support import Turnout
from process_support import Started
from registry_support import write_both
from turnout.config.settings import Settings, dump_settings, parse_address
from turnout.core.model import Daemon, Deployment, Snapshot
from turnout.state.journal import Journal
from turnout.testing import free_port


@pytest.fixture
def turnout(tmp_path: Path) -> Iterator[Turnout]:
    port = free_port()
    harness = Turnout(tmp_path / "home", port)
    try:
        yield harness
    finally:
        harness.end()


@pytest.fixture(scope="module")
def lying(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Turnout]:
    """A home without a router, whose daemon's name, version, reason and log are an attack on whoever shows them."""
    turnout = Turnout(tmp_path_factory.mktemp("lying") / "home", 0)
    service = turnout.home.service("default")
    service.create()
    settings = Settings(name="default", listen=(parse_address("127.0.0.1:47777"),))
    service.settings.write_bytes(dump_settings(settings))
    with Started() as started:
        real = started.demo().daemon
        evil = Daemon(f"boot{EVIL}", host=EVIL, port=real.port, identity=real.identity, version=EVIL)
        block = Deployment(generation=3, active_boot_id=evil.boot_id, revision=9, rollback_reason=EVIL)
        write_both(service.registry, Snapshot({evil.boot_id: evil}, deployment=block))
        Journal(service.journal).write("begin", generation=3, revision=1, candidate=EVIL, cause=EVIL)
        Journal(service.journal).write(EVIL, generation=3, revision=9, **{EVIL: EVIL})
        turnout.home.router_log.write_text(f"{EVIL}\n")
        yield turnout


@pytest.fixture(scope="module")
def lied_to(lying: Turnout) -> Iterator[Served]:
    """A dashboard of that home."""
    with Served(lying.env, lying.home.root.parent) as served:
        yield served
