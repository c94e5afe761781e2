"""Who waits in a daemon's accept queue is counted, once, and by whatever router there is."""

from __future__ import annotations

import msgspec
import pytest

from programs import missing
from stage import NEEDS, PLANES, RELAYS, Daemon, Stage
from support import eventually

DIRECT = [kind for kind in PLANES if kind not in RELAYS]


@pytest.fixture(params=DIRECT)
def kind(request: pytest.FixtureRequest) -> str:
    kind = str(request.param)
    lacks = NEEDS[kind]()
    if lacks:
        missing(kind, f"plane {kind} cannot run here: {lacks}")
    return kind


def connections(stage: Stage) -> dict[str, int | None]:
    """Every daemon's, with those that wait."""
    return {boot_id: census.connections for boot_id, census in stage.call(stage.plane.traffic).items()}


def relayed_to(stage: Stage, daemon: Daemon) -> None:
    """From here on this daemon is active, and only a relay can serve it."""
    daemon.target = msgspec.structs.replace(daemon.target, proxy_protocol=True)
    stage.set_upstream(daemon)


def test_one_that_waits_for_one_daemon_is_not_counted_for_another_too(stage: Stage) -> None:
    """The kernel tells how many wait at the fixed address and how many in each queue, not who waits where."""
    first, second = stage.daemon("first"), stage.daemon("second")
    first_client = stage.client()  # the second was steered to, and has it in its queue
    stage.set_upstream(first)
    stage.pair(first)
    relayed_to(stage, second)
    relayed_client = stage.client()
    eventually(lambda: stage.call(lambda: stage.plane.relayed("second")) == 1)
    stage.set_upstream(first)
    waits = stage.client()
    eventually(lambda: connections(stage) == {"first": 2, "second": 2}, why=f"{connections(stage)}")
    assert stage.call(stage.plane.connections) == 4
    for sock in (first_client, relayed_client, waits):
        sock.close()


def test_a_connection_that_is_relayed_is_the_relays_alone_while_it_waits(stage: Stage) -> None:
    first, second = stage.daemon("first"), stage.daemon("second")
    stage.set_upstream(first)
    stage.client()
    relayed_to(stage, second)
    stage.client()
    eventually(lambda: stage.call(lambda: stage.plane.relayed("second")) == 1)
    eventually(lambda: connections(stage) == {"first": 1, "second": 1}, why=f"{connections(stage)}")


def test_what_waits_for_an_old_daemon_is_counted_by_a_router_that_never_steered_to_it(kind: str) -> None:
    stage = Stage(kind)
    try:
        old = stage.daemon("old")
        stage.client()
        eventually(lambda: connections(stage) == {"old": 1})
        new = stage.daemon("new")
        successor = stage.call(lambda: PLANES[kind](stage.loop, stage.policy, stage.stand))
        stage.call(stage.plane.stop_accepting)
        stage.call(lambda: successor.set_upstream(new.target, patience_s=20.0))
        stage.call(lambda: successor.add_listener(stage.listener))
        census = stage.call(successor.traffic)
        assert (census["old"].connections, census["old"].bytes_in) == (1, None)
        assert stage.call(successor.connections) == 1
        old.accept().close()
        eventually(lambda: stage.call(successor.connections) == 0)
        stage.call(successor.close)
    finally:
        stage.close()
