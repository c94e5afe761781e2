"""Where a plane is pointed: never at an address whose owner is gone, or is not proven to listen there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, cast

import msgspec
import pytest

from turnout.config.settings import Address, Health, Settings
from turnout.config.values import ProxyProtocol
from turnout.core.model import Daemon, Deployment, Desired, Identity, Snapshot, State
from turnout.planes.plane import Upstream
from turnout.router.upstream import REFUSED_PATIENCE_S, UpstreamSelector
from turnout.testing import FakePlane, Pointed

HOLD_S = 70.0
TARGET = Upstream("a", "127.0.0.1", 20001)
DAEMON = Daemon("a", port=20001, identity=Identity(7), owned=True)
PROTOCOLS: tuple[ProxyProtocol, ...] = ("none", "v2")
NOBODY_HELD = Pointed(None, HOLD_S)


@dataclass
class Exits:
    """Daemons whose process has ended, where they are watched at all."""

    ended: set[str] = field(default_factory=set)
    watched: set[str] = field(default_factory=set)

    def follow(self, daemons: Iterable[Daemon]) -> None:
        self.watched = {daemon.boot_id for daemon in daemons}

    def has_ended(self, boot_id: str) -> bool:
        return boot_id in self.watched & self.ended


@dataclass
class Live:
    settings: Settings


@dataclass
class RegistryFollower:
    snapshot: Snapshot


class Scene:
    def __init__(self, daemon: Daemon = DAEMON, *, verify_owner: bool = True, **block: Any) -> None:
        self.plane = FakePlane()
        self.exits = Exits()
        self.daemon = daemon
        deployment = Deployment(generation=1, active_boot_id=daemon.boot_id, **block)
        self.live = Live(
            Settings(
                name="s",
                listen=(Address("127.0.0.1", 1),),
                hold_timeout_s=HOLD_S,
                health=Health(verify_owner=verify_owner),
            )
        )
        following = RegistryFollower(Snapshot({daemon.boot_id: daemon}, deployment=deployment))
        self.upstream = UpstreamSelector(
            self.plane,
            cast("Any", self.live),
            cast("Any", following),
            cast("Any", self.exits),
            source_of=lambda found: found.source,
        )

    def pointed(self) -> Pointed:
        self.upstream.apply(coming=False)
        return self.plane.pointed[-1]


def test_a_daemon_that_lives_and_listens_is_the_target() -> None:
    assert Scene().pointed() == Pointed(TARGET, REFUSED_PATIENCE_S)


@pytest.mark.parametrize("state", [State.IDLE, State.SWITCHED])
def test_clients_of_a_daemon_that_ended_are_held_before_anybody_has_decided_on_a_restart(state: State) -> None:
    scene = Scene(state=state)
    scene.exits.ended.add("a")
    assert scene.pointed() == NOBODY_HELD


def test_clients_of_an_attached_daemon_that_ended_wait_a_moment_and_no_longer() -> None:
    """What started it starts it, and turnout knows nothing of that; in its window the previous daemon may come back."""
    scene = Scene(replace(DAEMON, owned=False))
    scene.exits.ended.add("a")
    assert scene.pointed() == Pointed(None, REFUSED_PATIENCE_S)
    scene = Scene(replace(DAEMON, owned=False), state=State.SWITCHED)
    scene.exits.ended.add("a")
    assert scene.pointed() == NOBODY_HELD


def test_clients_of_a_service_that_is_to_stop_do_not_wait_for_its_daemon() -> None:
    scene = Scene(desired=Desired.STOPPED)
    scene.exits.ended.add("a")
    assert scene.pointed() == Pointed(None, REFUSED_PATIENCE_S)


@pytest.mark.parametrize("owned", [True, False])
def test_clients_of_a_living_daemon_without_its_listener_are_held_until_it_is_proven_again(owned: bool) -> None:
    scene = Scene(replace(DAEMON, owned=owned))
    assert scene.upstream.listener_seen(scene.daemon, proven=False), "the plane has to follow"
    assert not scene.upstream.listener_seen(scene.daemon, proven=False), "and only once"
    assert scene.pointed() == NOBODY_HELD
    assert scene.upstream.listener_seen(scene.daemon, proven=True)
    assert scene.pointed().target == TARGET


def test_what_is_seen_of_another_daemon_moves_no_clients() -> None:
    scene = Scene()
    assert not scene.upstream.listener_seen(Daemon("old", port=1), proven=False)
    assert scene.pointed().target == TARGET


def test_without_verify_owner_the_address_is_trusted() -> None:
    """A daemon in a container: the process that was started is not the one that listens."""
    scene = Scene(verify_owner=False)
    scene.exits.ended.add("a")
    assert scene.pointed().target == TARGET


def introduces(scene: Scene) -> bool:
    target = scene.pointed().target
    assert target
    return target.proxy_protocol


@pytest.mark.parametrize("started_with", ["none", "v2"])
def test_a_daemon_gets_the_header_that_it_was_started_to_expect_whatever_the_settings_say_now(
    started_with: ProxyProtocol,
) -> None:
    scene = Scene(replace(DAEMON, proxy_protocol=started_with))
    for now in PROTOCOLS:
        scene.live.settings = msgspec.structs.replace(scene.live.settings, proxy_protocol=now)
        assert introduces(scene) is (started_with == "v2")


def test_a_daemon_whose_entry_does_not_say_keeps_the_header_that_the_settings_had_at_first() -> None:
    """An entry of an earlier version: the next daemon is started by the changed settings, this one was not."""
    scene = Scene()
    scene.live.settings = msgspec.structs.replace(scene.live.settings, proxy_protocol="v2")
    assert introduces(scene)
    scene.live.settings = msgspec.structs.replace(scene.live.settings, proxy_protocol="none")
    assert introduces(scene)
    assert scene.upstream.as_started(DAEMON).proxy_protocol == "v2", "its health checks say the same"
