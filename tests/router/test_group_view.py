"""What the router and the keeper tell each other of the group at a fixed address."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from turnout.core.model import Daemon
from turnout.core.slots import ROUTER_INDEX, source_of
from turnout.router.group_view import GroupView
from turnout.router.keeper_link import KeeperLink


class Keeper:
    """Hears what a router says."""

    def __init__(self) -> None:
        self.heard: list[tuple[int, int]] = []

    def send(self, message: Mapping[str, Any]) -> None:
        self.heard.append((message["version"], message["slot"]))


def test_a_router_that_has_not_told_the_kernel_where_to_direct_says_nothing_of_it_to_the_keeper() -> None:
    """A dead one's program still points somewhere: a gap there must not become a daemon's place."""
    keeper = Keeper()
    group = GroupView("s", cast("KeeperLink", keeper))
    group.update({"version": 2, "home": 0, "places": {}})
    group.become_leader()
    assert keeper.heard == []
    group.set_selected(ROUTER_INDEX)
    assert keeper.heard == [(2, ROUTER_INDEX)]
    group.update({"version": 3, "home": 0, "places": {}})
    assert keeper.heard == [(2, ROUTER_INDEX), (3, ROUTER_INDEX)]


def test_a_daemon_is_reached_at_the_place_that_the_keeper_names() -> None:
    group = GroupView("s", cast("KeeperLink", None))  # it says nothing before it leads
    assert (group.source_of(Daemon("v1", source=source_of(5))), group.listener_of("v1")) == (source_of(5), 0)
    message = {"version": 2, "home": 0, "places": {"v1": [2, 77]}}
    group.update({**message, "unplaced": ["v1"]})  # a keeper of 0.1.0 names the daemons that joined by themselves
    assert (group.source_of(Daemon("v1", source=source_of(5))), group.listener_of("v1")) == (source_of(2), 77)
