from __future__ import annotations

import asyncio

import pytest

from turnout.core.connection_policy import DIRECT, Policy
from turnout.errors import ConfigError
from turnout.planes.plane import UpstreamChecks
from turnout.planes.selection import Planes, lacking, select_plane


@pytest.mark.parametrize(
    ("wanted", "lacks", "name"),
    [
        ("auto", "", "relay"),
        ("auto", "splice(2)", "stream"),
        ("relay", "", "relay"),
        ("stream", "", "stream"),
        ("stream", "epoll(7)", "stream"),
    ],
)
def test_auto_takes_the_relay_where_it_can_run_and_the_reason_is_said(wanted: str, lacks: str, name: str) -> None:
    chosen = select_plane(wanted, lacks=lacks)
    assert chosen.name == name
    assert chosen.reason
    assert lacks in chosen.reason or wanted == "stream"


def test_a_relay_named_by_hand_where_it_cannot_run_is_one_clear_error() -> None:
    with pytest.raises(ConfigError) as caught:
        select_plane("relay", lacks="splice(2)")
    assert "splice(2)" in caught.value.message
    assert "stream" in str(caught.value.hint)


def test_sk_lookup_named_by_hand_is_taken_and_never_tried_first() -> None:
    """Where it does not work, it relays and says so: what it lacks may come while it runs."""
    chosen = select_plane("sk_lookup", lacks="", tried=lambda: pytest.fail("it was tried"))
    assert chosen.name == "sk_lookup"


@pytest.mark.parametrize(("tried", "name", "said"), [("", "reuseport", "named"), ("no option", "relay", "no option")])
def test_reuseport_named_by_hand_relays_where_it_does_not_work(tried: str, name: str, said: str) -> None:
    """A daemon that takes part has no port of its own then: nothing would serve."""
    chosen = select_plane("reuseport", lacks="", tried=lambda: tried)
    assert chosen.name == name
    assert said in chosen.reason


@pytest.mark.parametrize("name", DIRECT)
def test_a_direct_plane_beside_what_only_a_relay_can_enforce_is_one_clear_error(name: str) -> None:
    with pytest.raises(ConfigError, match=r"limits\.connections and allow") as caught:
        select_plane(name, lacks="", demands=("limits.connections", "allow"))
    assert "relay" in str(caught.value.hint)


@pytest.mark.parametrize("name", DIRECT)
def test_a_direct_plane_needs_what_its_relay_needs(name: str) -> None:
    with pytest.raises(ConfigError, match="splice"):
        select_plane(name, lacks="splice(2)")


@pytest.mark.parametrize(
    ("takes_part", "demands", "tried", "name", "said"),
    [
        (True, (), "", "reuseport", "takes part"),
        (True, ("allow",), "", "relay", "allow"),
        (True, (), "Protocol not available", "relay", "Protocol not available"),
        (False, (), "", "relay", "port of its own"),
    ],
)
def test_auto_hands_connections_over_where_the_daemon_takes_part_and_nothing_is_in_the_way(
    takes_part: bool, demands: tuple[str, ...], tried: str, name: str, said: str
) -> None:
    chosen = select_plane("auto", lacks="", demands=demands, takes_part=takes_part, tried=lambda: tried)
    assert chosen.name == name
    assert said in chosen.reason


def test_nothing_is_tried_for_a_daemon_that_does_not_take_part() -> None:
    assert select_plane("auto", lacks="", tried=lambda: pytest.fail("it was tried")).name == "relay"


def test_here_the_relay_can_run() -> None:
    assert lacking() == ""


@pytest.mark.parametrize("name", ["relay", "stream"])
def test_what_is_made_is_what_was_chosen(name: str) -> None:
    async def made() -> set[str]:
        planes = Planes(asyncio.get_running_loop())
        both = [planes.make(name, Policy(), UpstreamChecks()) for _ in range(2)]
        for plane in both:
            plane.close()
        planes.close()
        return {plane.name for plane in both}

    assert asyncio.run(made()) == {name}


def test_relays_stay_beside_no_stream_and_again_once_the_last_one_has_closed() -> None:
    async def run() -> None:
        planes = Planes(asyncio.get_running_loop())
        first, second = (planes.make("stream", Policy(), UpstreamChecks()) for _ in range(2))
        assert planes.loop_priority.pending == 2
        first.close()
        first.close()
        assert planes.loop_priority.pending == 1
        second.close()
        assert planes.loop_priority.pending == 0
        planes.close()

    asyncio.run(run())
