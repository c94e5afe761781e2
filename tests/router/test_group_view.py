"""What the router and the keeper tell each other of the group at a fixed address."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from turnout.core.model import Daemon
from turnout.core.slots import ROUTER_INDEX, source_of
from turnout.router.group_view import GroupView
from turnout.router.keeper_link import KeeperLink


class Keeper:
    """Hears what a router says."""

    def __init__(self) -> None:
        self.heard: list[tuple[int, Sequence[int]]] = []

    def send(self, message: Mapping[str, Any]) -> None:
        assert message["slots"][0] == message["slot"], "a keeper of 0.1 looks at one"
        self.heard.append((message["version"], message["slots"]))


def test_a_router_that_has_not_told_the_kernel_where_to_direct_says_nothing_of_it_to_the_keeper() -> None:
    """A dead one's program still points somewhere: a gap there must not become a daemon's place."""
    keeper = Keeper()
    group = GroupView("s", cast("KeeperLink", keeper))
    group.update({"version": 2, "home": 0, "places": {}})
    group.become_leader()
    assert keeper.heard == []
    group.set_selected([ROUTER_INDEX])
    assert keeper.heard == [(2, (ROUTER_INDEX,))]
    group.update({"version": 3, "home": 0, "places": {}})
    assert keeper.heard == [(2, (ROUTER_INDEX,)), (3, (ROUTER_INDEX,))]


def test_a_daemon_is_reached_at_the_first_index_that_the_keeper_names() -> None:
    group = GroupView("s", cast("KeeperLink", None))  # it says nothing before it leads
    changes: list[int] = []
    group.on_change = lambda: changes.append(group.home())
    assert (group.source_of(Daemon("v1", source=source_of(5))), group.listeners_of("v1")) == (source_of(5), ())
    order = [(70, "v2"), (71, "v1"), (72, ""), (73, "v1"), (74, "")]
    group.update({"version": 2, "home": 4, "places": {"v1": [1, 71], "v2": [0, 70]}, "order": order})
    assert (group.source_of(Daemon("v1", source=source_of(5))), group.listeners_of("v1")) == (source_of(1), {71, 73})
    assert (group.indexes_of("v1"), group.indexes_of("v2"), group.indexes_of("v3")) == ([1, 3], [0], ())
    assert [inode for inode, _ in order if group.is_daemons(inode)] == [70, 71, 73]
    assert changes == [4]
    assert group.state == {"version": 2, "home": 4, "order": order}
    group.update({"version": 3, "home": 4, "places": {}, "order": order})
    assert changes == [4], "nothing moved"
    group.update({"version": 4, "home": 1, "places": {}, "order": [(0, "v1"), (72, ""), (0, "v1")]})
    assert (group.indexes_of("v1"), [*group.listeners_of("v1")]) == ([0, 2], []), "which is which is not known"


def test_a_keeper_of_0_1_names_one_listener_of_each_daemon() -> None:
    group = GroupView("s", cast("KeeperLink", None))
    group.update({"version": 2, "home": 0, "places": {"v1": [2, 77]}, "unplaced": ["v1"]})
    assert (group.source_of(Daemon("v1", source=source_of(5))), group.listeners_of("v1")) == (source_of(2), {77})
    assert group.state == {}, "the next keeper is told as little"
