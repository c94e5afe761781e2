"""What the drainer is told of a daemon's connections: those that a router which leaves still carries are among them."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest

from turnout import drain_world
from turnout.core.model import Daemon, Snapshot
from turnout.core.slots import source_of
from turnout.drain_world import DrainWorld
from turnout.planes.plane import Target
from turnout.testing import FakePlane


@dataclass
class Following:
    snapshot: Snapshot


@dataclass
class Keeper:
    leaving: Sequence[int] | None = field(default_factory=lambda: [1])


def world(daemon: Daemon, *, located: Callable[[Daemon], Daemon] = lambda found: found) -> DrainWorld:
    plane = FakePlane()
    plane.point_at(Target(daemon.boot_id, daemon.host, daemon.port), patience_s=1.0)
    none = cast("Any", None)
    following = cast("Any", Following(Snapshot({daemon.boot_id: daemon})))
    return DrainWorld(none, none, none, following, none, plane, cast("Any", Keeper()), probe=none, located=located)


def test_what_a_router_that_leaves_carries_is_found_where_the_daemon_is_now() -> None:
    """One that joined the group anew has another place than the registry says, and is reached from another address."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        host, port = listener.getsockname()
        daemon = Daemon("a", host=host, port=port, source=source_of(2))
        client.bind((source_of(5), 0))
        client.connect((host, port))
        found = world(daemon, located=lambda known: replace(known, source=source_of(5)))
        assert found.elsewhere("a") == 1
        assert found.carried("a") is None
        assert world(daemon).carried("a") == []


def test_where_the_kernel_does_not_tell_what_it_carries_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(drain_world, "established_to", refuse)
    found = world(Daemon("a", port=1))
    assert found.elsewhere("a") is None
    assert found.carried("a") is None
