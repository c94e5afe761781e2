"""What the drainer is told of a daemon's connections: those that a router which leaves still carries are among them."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from turnout.core.model import Daemon, Snapshot
from turnout.core.slots import source_of
from turnout.planes.plane import Upstream
from turnout.router.drain import actions
from turnout.router.drain.actions import DrainActions
from turnout.testing import FakePlane


@dataclass
class Keeper:
    draining: Sequence[int] | None = field(default_factory=lambda: [1])


def actions_for(daemon: Daemon, *, located: Callable[[Daemon], Daemon] = lambda found: found) -> DrainActions:
    plane = FakePlane()
    plane.set_upstream(Upstream(daemon.boot_id, daemon.host, daemon.port), patience_s=1.0)
    service = SimpleNamespace(live=None, registry=SimpleNamespace(snapshot=Snapshot({daemon.boot_id: daemon})))
    return DrainActions(cast("Any", service), plane, cast("Any", Keeper()), located)


def test_what_a_router_that_leaves_carries_is_found_where_the_daemon_is_now() -> None:
    """One that joined the group anew has another place than the registry says, and is reached from another address."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        host, port = listener.getsockname()
        daemon = Daemon("a", host=host, port=port, source=source_of(2))
        client.bind((source_of(5), 0))
        client.connect((host, port))
        found = actions_for(daemon, located=lambda known: replace(known, source=source_of(5)))
        assert found.elsewhere("a") == 1
        assert found.carried("a") is None
        assert actions_for(daemon).carried("a") == []


def test_where_the_kernel_does_not_tell_what_it_carries_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(actions, "established_to", refuse)
    found = actions_for(Daemon("a", port=1))
    assert found.elsewhere("a") is None
    assert found.carried("a") is None
