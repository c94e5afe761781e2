"""What stands between a relay and a steering: every fault ends in the relay, and nothing is left too early."""

from __future__ import annotations

import math
import socket
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import pytest

from plane_fakes import FakeLoop
from turnout.core.connection_policy import Policy
from turnout.errors import SteeringError
from turnout.planes.direct.plane import AGAIN_MOST_S, CLEAR_APART_S, LOOK_S, PENDING, Direct
from turnout.planes.plane import ConnectionInfo, Upstream
from turnout.testing import FakePlane

V1, V2 = Upstream("v1", "127.0.0.1", 1001), Upstream("v2", "127.0.0.1", 1002)


@dataclass
class FakeSteering:
    """Steers in memory. ``fault`` is raised by whatever is asked of it next, until it is taken away."""

    name: ClassVar[str] = "fake steering"
    told: list[Upstream | None] = field(default_factory=list[Upstream | None])
    now: Upstream | None = None
    fault: OSError | SteeringError | None = None
    stuck: bool = False  # not even nobody can be steered to
    closed_listener: bool = False
    listeners: int = 0
    closed: int = 0
    left: int = 0

    def _may(self, *, withdraws: bool = False) -> None:
        if self.fault and (self.stuck or not withdraws):
            raise self.fault

    def listen(self, sock: socket.socket) -> None:
        self.listeners += 1
        self._may()

    def unlisten(self, address: tuple[str, int]) -> None:
        self.listeners -= 1
        self._may()

    def steer(self, target: Upstream | None) -> None:
        self.told.append(target)
        self._may(withdraws=target is None)
        self.now = target

    def is_in_effect(self) -> bool:
        return not self.closed_listener

    def release(self) -> None:
        self.left += 1

    def close(self) -> None:
        self.closed += 1
        self.now = None


@dataclass
class FakeKernel:
    """What the machine would say."""

    known: list[str] = field(default_factory=lambda: ["v1", "v2"])
    accepted: dict[str, list[ConnectionInfo]] = field(default_factory=dict[str, list[ConnectionInfo]])
    waiting: dict[str, int] = field(default_factory=dict[str, int])
    on_the_way: dict[str, float] = field(default_factory=dict[str, float])  # age of a handshake
    looked_at: float = math.inf
    silent: set[str] = field(default_factory=set[str])
    blind: bool = False
    cuts: list[tuple[str, Collection[int] | None]] = field(default_factory=list[tuple[str, Collection[int] | None]])

    def boots(self) -> Collection[str]:
        return self.known

    def served(self, boot_id: str, *, peers: bool = False) -> Sequence[ConnectionInfo] | None:
        return None if self.blind else self.accepted.get(boot_id, [])

    def queued(self, boot_id: str) -> int:
        return self.waiting.get(boot_id, 0)

    def pending(self, boot_id: str, older_s: float) -> bool:
        return self.waiting.get(boot_id, 0) > 0 or self.on_the_way.get(boot_id, -1.0) > older_s

    def settled(self, since: float) -> bool:
        return self.looked_at > since

    def cut(self, boot_id: str, ids: Collection[int] | None) -> int:
        self.cuts.append((boot_id, ids))
        return len(self.accepted.get(boot_id, ())) if ids is None else len(ids)

    def not_accepting_reason(self, boot_id: str) -> str:
        return "it is stopped" if boot_id in self.silent else ""


def straight(number: int) -> ConnectionInfo:
    return ConnectionInfo(-number, "", 1.0, 10, 20, answered=True, half_sent=False)


class Scene:
    def __init__(self, policy: Policy | None = None) -> None:
        self.loop = FakeLoop()
        self.relay = FakePlane()
        self.steering = FakeSteering()
        self.kernel = FakeKernel()
        self.plane = Direct(
            self.loop.as_loop,
            self.relay,
            self.steering,
            self.kernel,
            policy=policy or Policy(),
            clock=lambda: self.loop.now,
        )
        self.front = socket.socket()

    def lead(self, target: Upstream | None = V1) -> Scene:
        self.set_upstream(target)
        self.plane.add_listener(self.front)
        return self

    def set_upstream(self, target: Upstream | None) -> None:
        self.plane.set_upstream(target, patience_s=5.0)

    def steers(self) -> Upstream | None:
        return self.steering.now


@pytest.fixture
def scene() -> Iterator[Scene]:
    found = Scene()
    yield found
    found.front.close()


def test_nothing_is_steered_before_this_router_leads(scene: Scene) -> None:
    scene.set_upstream(V1)
    scene.loop.go_on(10.0)
    assert scene.steering.told == []
    scene.plane.add_listener(scene.front)
    assert scene.steers() == V1


def test_a_router_that_never_led_leaves_what_another_steers_alone(scene: Scene) -> None:
    scene.set_upstream(V1)
    scene.plane.close()
    assert (scene.steering.told, scene.steering.closed, scene.steering.left) == ([], 0, 0)
    assert scene.relay.closed


def test_the_relay_is_told_before_the_kernel_so_that_what_falls_through_finds_the_new_daemon(scene: Scene) -> None:
    scene.lead()
    seen: list[Upstream | None] = []
    steer = scene.steering.steer

    def look(target: Upstream | None) -> None:
        seen.append(scene.relay.target)
        steer(target)

    scene.steering.steer = look  # type: ignore[method-assign]  # it looks, and goes on
    scene.set_upstream(V2)
    assert seen == [V2]


def test_a_switch_is_done_when_it_returns(scene: Scene) -> None:
    scene.lead()
    scene.set_upstream(V2)
    assert scene.steers() == V2
    assert scene.plane.degraded_reason == ""


def test_to_nobody_is_to_the_relay_which_holds(scene: Scene) -> None:
    scene.lead()
    scene.set_upstream(None)
    assert scene.steers() is None
    assert scene.relay.target is None
    assert scene.plane.degraded_reason == ""


def test_until_the_registry_says_who_is_active_what_a_dead_router_left_goes_on(scene: Scene) -> None:
    scene.lead(None)
    assert scene.steering.told == []
    scene.set_upstream(V1)
    assert scene.steering.told == [V1]


def test_it_goes_on_however_long_the_registry_takes_and_ends_when_no_daemon_is_active(scene: Scene) -> None:
    """A machine under load, or a file system that hangs: time says nothing about who is active."""
    scene.lead(None)
    scene.loop.go_on(100 * LOOK_S)
    assert scene.steering.told == []
    scene.set_upstream(None)
    assert scene.steering.told == [None]


def test_steering_that_could_not_be_ended_is_ended_with_a_later_look(scene: Scene) -> None:
    scene.lead(V1)
    scene.set_upstream(None)
    scene.loop.go_on(LOOK_S)
    assert scene.steers() is None


@pytest.mark.parametrize("said", ["not permitted", "no such listener"])
def test_what_cannot_be_steered_is_relayed_and_said_and_tried_again(scene: Scene, said: str) -> None:
    fault = OSError(1, said) if said == "not permitted" else SteeringError(said)
    scene.lead()
    scene.steering.fault = fault
    scene.set_upstream(V2)
    assert scene.steers() is None, "the old daemon gets nobody either"
    assert scene.relay.target == V2
    assert scene.plane.degraded_reason == said
    assert scene.plane.counters.unsteered == 1
    scene.steering.fault = None
    scene.loop.go_on(1.0)
    assert scene.steers() == V2
    assert scene.plane.degraded_reason == ""


def test_what_goes_on_failing_is_tried_less_and_less_often_and_counted_once(scene: Scene) -> None:
    scene.steering.fault = OSError(1, "not permitted")
    scene.lead()
    scene.loop.go_on(60.0)
    attempts = [target for target in scene.steering.told if target]
    assert 60 / AGAIN_MOST_S <= len(attempts) <= 25
    assert scene.plane.counters.unsteered == 1
    scene.steering.fault = None
    scene.set_upstream(V2)
    assert scene.steers() == V2, "a switch does not wait for the next attempt"


def test_a_steering_that_cannot_even_be_withdrawn_is_closed_whole(scene: Scene) -> None:
    scene.lead()
    scene.steering.fault, scene.steering.stuck = OSError(5, "input/output error"), True
    scene.set_upstream(V2)
    assert scene.steering.closed == 1
    assert scene.steers() is None


def test_a_daemon_that_stops_accepting_is_relayed_to_until_it_accepts_again(scene: Scene) -> None:
    scene.lead()
    scene.kernel.silent.add("v1")
    scene.loop.go_on(LOOK_S)
    assert scene.steers() is None
    assert scene.plane.degraded_reason == "it is stopped"
    scene.loop.go_on(60.0)
    assert scene.steers() is None
    scene.kernel.silent.clear()
    scene.loop.go_on(LOOK_S)
    assert scene.steers() == V1, "at once, however long it took"
    assert scene.plane.degraded_reason == ""


def test_a_switch_to_a_daemon_that_does_not_accept_leaves_the_old_one_all_the_same(scene: Scene) -> None:
    scene.lead()
    scene.kernel.silent.add("v2")
    scene.set_upstream(V2)
    assert scene.steers() is None
    assert scene.relay.target == V2


def test_a_daemon_that_opened_another_listener_is_steered_to_anew(scene: Scene) -> None:
    scene.lead()
    scene.steering.closed_listener = True
    scene.loop.go_on(LOOK_S)
    assert scene.steering.told == [V1, V1]


@pytest.mark.parametrize(
    ("policy", "what"),
    [
        (Policy(connections=3), "limits.connections"),
        (Policy(idle_timeout_s=1.0), "limits.idle_timeout"),
        (Policy(user_timeout_s=1.0), "limits.user_timeout"),
    ],
)
def test_a_policy_that_only_a_relay_can_enforce_takes_effect_at_once_and_its_end_too(
    scene: Scene, policy: Policy, what: str
) -> None:
    scene.lead()
    scene.plane.apply(policy)
    assert scene.steers() is None
    assert what in scene.plane.degraded_reason
    scene.loop.go_on(10.0)
    assert scene.steers() is None
    scene.plane.apply(Policy())
    assert scene.steers() == V1


def test_a_daemon_that_expects_a_header_is_relayed_to(scene: Scene) -> None:
    scene.lead(Upstream("v1", "127.0.0.1", 1001, proxy_protocol=True))
    assert scene.steers() is None
    assert "PROXY" in scene.plane.degraded_reason


def test_who_leaves_lets_go_and_answers_for_what_it_relayed_alone(scene: Scene) -> None:
    scene.lead()
    scene.relay.connect(2)
    scene.kernel.accepted["v1"] = [straight(7)]
    assert scene.plane.connections() == 3
    scene.plane.stop_accepting()
    assert scene.steering.left == 1
    assert scene.loop.pending == 0, "its timer is left"
    scene.set_upstream(V2)
    assert scene.steers() == V1, "that is its successor's to change"
    assert scene.plane.connections() == 2
    assert len(scene.plane.open_connections("v1") or ()) == 2
    assert scene.plane.traffic()["v1"].connections == 2
    scene.plane.cut("v1")
    assert scene.kernel.cuts == []
    scene.plane.close()
    assert scene.steering.closed == 0


def test_who_ends_while_it_leads_leaves_nothing_in_the_kernel(scene: Scene) -> None:
    scene.lead()
    scene.plane.close()
    scene.plane.close()
    assert scene.steering.closed == 1
    assert scene.relay.closed
    assert scene.loop.pending == 0


def test_a_listener_that_the_steering_refuses_is_relayed(scene: Scene) -> None:
    scene.steering.fault = SteeringError("no")
    scene.lead()
    assert len(scene.relay.listeners) == 1
    assert scene.plane.degraded_reason == "no"


def test_a_listener_is_taken_from_the_kernel_before_the_relay_empties_it(scene: Scene) -> None:
    scene.lead()
    scene.plane.remove_listener(scene.front.getsockname()[:2])
    assert scene.steering.listeners == 0


# -- who is there ----------------------------------------------------------------------------------------------------


def test_bytes_are_unknown_as_soon_as_a_daemon_was_steered_to_and_known_before(scene: Scene) -> None:
    scene.lead()
    scene.relay.connect()
    scene.kernel.accepted["v1"] = [straight(1), straight(2)]
    scene.kernel.waiting["v1"] = 4
    census = scene.plane.traffic()
    assert (census["v1"].connections, census["v1"].bytes_in, census["v1"].bytes_out) == (7, None, None)
    assert (census["v2"].connections, census["v2"].bytes_in, census["v2"].bytes_out) == (0, 0, 0)
    assert scene.plane.relayed("v1") == 1


def test_what_a_dead_router_steered_has_unknown_bytes_too(scene: Scene) -> None:
    scene.lead()
    scene.kernel.accepted["v2"] = [straight(1)]
    assert scene.plane.traffic()["v2"].bytes_in is None
    scene.kernel.accepted.clear()
    assert scene.plane.traffic()["v2"].bytes_in is None, "it has closed, and nobody counted it"


def test_what_waits_for_a_daemon_that_a_dead_router_steered_to_is_counted_before_any_is_accepted(scene: Scene) -> None:
    scene.lead()
    scene.kernel.waiting["v2"] = 2
    census = scene.plane.traffic()["v2"]
    assert (census.connections, census.bytes_in) == (2, None)
    assert scene.plane.connections() == 2
    scene.kernel.waiting.clear()
    assert scene.plane.traffic()["v2"].bytes_in is None, "they have come and gone, and nobody counted them"


def test_where_the_kernel_does_not_tell_nothing_is_counted_and_none_is_taken_for_idle(scene: Scene) -> None:
    scene.lead()
    scene.kernel.blind = True
    assert scene.plane.traffic()["v1"].connections is None
    assert scene.plane.open_connections("v1") is None


def test_each_is_cut_where_it_is(scene: Scene) -> None:
    scene.lead()
    scene.relay.connect(3)
    scene.kernel.accepted["v1"] = [straight(7), straight(8)]
    assert scene.plane.cut("v1", {1, -7, PENDING}) == 2
    assert scene.kernel.cuts == [("v1", {-7})]
    assert scene.plane.cut("v1") == 4
    assert scene.kernel.cuts[-1] == ("v1", None)
    assert scene.plane.counters.cut == 6


# -- leaving an old listener -----------------------------------------------------------------------------------------


def pending(scene: Scene, boot_id: str = "v1") -> bool:
    return any(one.id == PENDING and one.half_sent for one in scene.plane.open_connections(boot_id) or ())


def test_an_old_listener_is_left_when_it_was_seen_twice_that_nothing_is_on_its_way(scene: Scene) -> None:
    scene.lead()
    assert not pending(scene), "the active one is not left"
    scene.set_upstream(V2)
    assert pending(scene)
    assert pending(scene), "looking again at once is not twice"
    scene.loop.go_on(CLEAR_APART_S)
    assert not pending(scene)


def test_whoever_waits_in_the_queue_begins_it_anew(scene: Scene) -> None:
    scene.lead()
    scene.set_upstream(V2)
    assert pending(scene)
    scene.loop.go_on(CLEAR_APART_S)
    scene.kernel.waiting["v1"] = 1
    assert pending(scene)
    scene.kernel.waiting.clear()
    scene.loop.go_on(CLEAR_APART_S)
    assert pending(scene)
    scene.loop.go_on(CLEAR_APART_S)
    assert not pending(scene)


def test_a_handshake_from_before_the_switch_keeps_it_and_one_from_after_it_does_not(scene: Scene) -> None:
    scene.lead()
    scene.set_upstream(V2)
    scene.loop.go_on(1.0)
    scene.kernel.on_the_way["v1"] = 1.5
    assert pending(scene)
    scene.loop.go_on(CLEAR_APART_S)
    assert pending(scene)
    scene.kernel.on_the_way["v1"] = 0.5
    scene.loop.go_on(CLEAR_APART_S)
    assert pending(scene)
    scene.loop.go_on(CLEAR_APART_S)
    assert not pending(scene)


def test_an_old_listener_is_not_left_by_a_count_from_before_it_was_clear(scene: Scene) -> None:
    """On a machine under load a look is good for longer than a switch takes: it may lack the last connections."""
    scene.lead()
    scene.kernel.looked_at = scene.loop.now
    scene.set_upstream(V2)
    assert pending(scene)
    for _ in range(5):
        scene.loop.go_on(CLEAR_APART_S)
        assert pending(scene), "nobody has looked since"
    scene.kernel.looked_at = scene.loop.now
    assert not pending(scene)


def test_a_daemon_that_nobody_knows_is_not_waited_for(scene: Scene) -> None:
    scene.lead()
    assert scene.plane.open_connections("another") == []


def test_one_that_is_gone_back_to_is_not_left(scene: Scene) -> None:
    scene.lead()
    scene.set_upstream(V2)
    scene.set_upstream(V1)
    assert not pending(scene)
    assert pending(scene, "v2")
