from __future__ import annotations

import asyncio

import pytest

from turnout.errors import ConfigError
from turnout.planes.choose import Planes, choose, lacking
from turnout.planes.policy import Policy


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
    chosen = choose(wanted, lacks=lacks)
    assert chosen.name == name
    assert chosen.reason
    assert lacks in chosen.reason or wanted == "stream"


def test_a_relay_named_by_hand_where_it_cannot_run_is_one_clear_error() -> None:
    with pytest.raises(ConfigError) as caught:
        choose("relay", lacks="splice(2)")
    assert "splice(2)" in caught.value.message
    assert "stream" in str(caught.value.hint)


def test_here_the_relay_can_run() -> None:
    assert lacking() == ""


@pytest.mark.parametrize("name", ["relay", "stream"])
def test_what_is_made_is_what_was_chosen(name: str) -> None:
    async def made() -> set[str]:
        planes = Planes(asyncio.get_running_loop())
        both = [planes.make(name, Policy()) for _ in range(2)]
        for plane in both:
            plane.close()
        planes.close()
        return {plane.name for plane in both}

    assert asyncio.run(made()) == {name}
