"""How a router that was replaced lets its connections go, against a plane that carries nothing."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from turnout.config.settings import Address, Settings
from turnout.core.model import Daemon, Deployment, DrainCause, Snapshot
from turnout.planes.plane import ConnectionInfo, Upstream
from turnout.router.drain.drainer import MANY, POLL_S
from turnout.router.drain.router_drain import RouterDrain
from turnout.testing import FakePlane

SETTINGS = Settings(name="s", listen=(Address("127.0.0.1", 1),), drain_grace_s=5.0, drain_deadline_s=60.0)
NEVER = msgspec.structs.replace(SETTINGS, drain_deadline_s=None)
SERVING = Snapshot({"a": Daemon("a", port=1)}, deployment=Deployment(1, active_boot_id="a"))


def plane_with(count: int, *, held: int = 0) -> FakePlane:
    plane = FakePlane()
    plane.set_upstream(Upstream("a", "127.0.0.1", 1), patience_s=1.0)
    plane.connect(count)
    plane.counters.held_now = held
    return plane


def test_connections_to_the_active_daemon_are_left_alone_for_the_grace_and_then_cut_when_quiet() -> None:
    plane = plane_with(3)
    leaving = RouterDrain(plane, lambda: SETTINGS, since=100.0)
    assert leaving.step(SERVING, 104.9) == 3
    assert plane.cuts == []
    assert leaving.step(SERVING, 159.0) == 0


def test_whatever_is_left_at_the_deadline_is_cut_held_clients_are_counted() -> None:
    plane = plane_with(2, held=1)
    leaving = RouterDrain(plane, lambda: SETTINGS, since=0.0)
    assert leaving.step(SERVING, 60.0) == 1
    assert plane.counters.cut == 2


def test_without_a_deadline_a_connection_is_never_cut_unless_its_daemon_is_hastened() -> None:
    plane = plane_with(1)
    leaving = RouterDrain(plane, lambda: NEVER, since=0.0)
    assert leaving.step(SERVING, 1e6) == 1
    old = Daemon("a", port=1, draining=True, drain_cause=DrainCause.HASTENED)
    hastened = Snapshot({"a": old, "b": Daemon("b", port=2)}, deployment=Deployment(2, active_boot_id="b"))
    assert leaving.step(hastened, 1e6 + 2) == 0


def test_a_router_with_nobody_left_is_done_at_once() -> None:
    assert RouterDrain(FakePlane(), lambda: SETTINGS, since=0.0).step(SERVING, 0.0) == 0


class WalkedPlane(FakePlane):
    """It counts how often its connections were walked."""

    walks = 0

    def open_connections(self, boot_id: str, *, peers: bool = False) -> Sequence[ConnectionInfo] | None:
        self.walks += 1
        return super().open_connections(boot_id, peers=peers)


def test_many_connections_are_walked_less_often_and_still_counted_and_cut() -> None:
    """A walk over all of them takes the loop from the clients that are left."""
    plane = WalkedPlane()
    plane.set_upstream(Upstream("a", "127.0.0.1", 1), patience_s=1.0)
    plane.connect(MANY + 1)
    drains = RouterDrain(plane, lambda: SETTINGS, since=0.0)
    for step in range(5):
        assert drains.step(SERVING, step * POLL_S) == MANY + 1
    assert plane.walks == 1
    assert drains.step(SERVING, 60.0) == 0
