"""Daemons that join a group by themselves: their places are found out, and nobody is directed by a guess."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import pytest

from support import eventually, scaled
from test_group import accept_all, lands
from turnout.core.model import Daemon
from turnout.core.slots import HOME, source_of
from turnout.group import LISTENERS_MOST, Group
from turnout.keeper_link import KeeperLink
from turnout.listener import bind
from turnout.listening import Listening
from turnout.planes.chooser import attach
from turnout.sharing import Sharing
from turnout.system.process import own_identity
from turnout.system.sockets import listening_at
from turnout.system.spawn_record import SpawnRecord


class Router:
    """Accepts from the spares and says what it knows, as the router that leads does."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.slot = HOME
        self.accepted: list[socket.socket] = []

    def step(self, *daemons: socket.socket) -> None:
        """Everybody accepts what there is, and the keeper looks."""
        accept_all(self.group)
        for sock in daemons:
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    self.accepted.append(sock.accept()[0])
        self.group.look()
        accept_all(self.group)
        self.group.seen(self.group.version, self.slot)

    def until(self, condition: Callable[[], object], *daemons: socket.socket) -> None:
        def done() -> object:
            self.step(*daemons)
            return condition()

        eventually(done)

    def until_placed(self, boot_id: str, *daemons: socket.socket) -> None:
        self.until(lambda: boot_id in self.group.members, *daemons)

    def until_gone(self, boot_id: str) -> None:
        self.until(lambda: boot_id not in self.group.members)

    def close(self) -> None:
        for sock in self.accepted:
            sock.close()


@pytest.fixture
def group() -> Iterator[Group]:
    with bind("127.0.0.1", 0) as home:
        found = Group(home)
        found.open()
        yield found
        found.close()


@pytest.fixture
def router(group: Group) -> Iterator[Router]:
    found = Router(group)
    yield found
    found.close()


def joins(group: Group, boot_id: str) -> socket.socket:
    """A daemon of this very process that sets SO_REUSEPORT and listens."""
    group.awaited[boot_id] = own_identity()
    return bind(*group.address, shared=True)


def test_its_place_is_found_and_it_gets_nothing_but_what_chooses_it(group: Group, router: Router) -> None:
    with joins(group, "v1") as sock:
        router.until_placed("v1", sock)
        assert group.placed == {"v1": group.members["v1"]}
        assert lands(sock, group.address, source_of(group.members["v1"].slot))
        assert all(lands(group.home, group.address) for _ in range(20))
        attach(group.home, group.members["v1"].slot)
        assert all(lands(sock, group.address) for _ in range(20))


def test_who_does_not_accept_has_no_place(group: Group, router: Router) -> None:
    with joins(group, "v1") as sock:
        for _ in range(20):
            router.step()
        assert list(group.unplaced) == ["v1"]
        assert group.told()["unplaced"] == ["v1"]
        router.until_placed("v1", sock)
        assert group.told()["unplaced"] == []


def test_who_is_no_daemon_of_ours_has_no_place(group: Group, router: Router) -> None:
    with bind(*group.address, shared=True) as stranger:
        for _ in range(20):
            router.step(stranger)
        assert group.members == {}
        assert len(group.strangers) == 1


def test_a_daemon_with_several_listeners_has_no_place_until_one_is_left(group: Group, router: Router) -> None:
    with joins(group, "v1") as one, joins(group, "v1") as two:
        for _ in range(20):
            router.step(one, two)
        assert group.members == {}
        two.close()
        router.until_placed("v1", one)
        assert lands(one, group.address, source_of(group.members["v1"].slot))


def test_one_that_listens_anew_has_no_place_until_that_is_found(group: Group, router: Router) -> None:
    """As when its only worker died: a guess would direct clients to whoever has the old place."""
    sock = joins(group, "v1")
    router.until_placed("v1", sock)
    attach(group.home, group.members["v1"].slot)
    sock.close()
    router.step()
    assert group.told()["unplaced"] == ["v1"]
    with joins(group, "v1") as again:
        router.until_placed("v1", again)
        assert lands(again, group.address, source_of(group.members["v1"].slot))


def test_one_that_dies_and_joins_again_between_two_looks_has_spares_behind_it(group: Group, router: Router) -> None:
    """As a worker that its parent starts again at once; nothing of that may be counted for a spare."""
    sock = joins(group, "v1")
    most = 0
    for number in range(scaled(8, 300)):
        router.until_placed("v1", sock)
        place = group.members["v1"].slot
        assert lands(sock, group.address, source_of(place)), number
        most = max(most, len(listening_at(*group.address)))
        assert len(listening_at(*group.address)) - 1 - place >= 1
        sock.close()
        sock = joins(group, "v1")
        router.until(lambda: group.unplaced)
        assert group.spares, "who comes meanwhile has nobody"
    sock.close()
    assert most <= 5, "places do not run out"


def test_a_place_that_moved_between_two_connections_is_not_believed() -> None:
    class Moving(Group):
        moves = 1

        def secure(self, slot: int) -> None:
            if self.moves:  # what is behind it closes, so it is the last one, and takes the place of one before it
                self.moves -= 1
                for spare in (*self._spares, self._gaps.pop(0)):
                    spare.shutdown(socket.SHUT_RDWR)
                    spare.close()
                self._spares.clear()
            super().secure(slot)

    with bind("127.0.0.1", 0) as home:
        group = Moving(home)
        group.open()
        for _ in range(3):
            group._spares.append(bind(*group.address, shared=True))
        router = Router(group)
        router.slot = -1  # which no member has: so no gap is filled
        with joins(group, "v1") as sock:
            router.until_placed("v1", sock)
            assert group.moves == 0
            assert lands(sock, group.address, source_of(group.members["v1"].slot))
        router.close()
        group.close()


def test_whoever_joins_and_dies_each_keeps_its_place_and_places_do_not_run_out(group: Group, router: Router) -> None:
    alive: dict[str, socket.socket] = {}
    for number in range(scaled(12, 60)):
        while len(alive) > 2:
            gone = next(iter(alive))
            alive.pop(gone).close()
            router.until_gone(gone)
            group.awaited.pop(gone, None)
        boot_id = f"v{number}"
        if number % 3:
            alive[boot_id] = joins(group, boot_id)
            router.until_placed(boot_id, *alive.values())
        else:
            alive[boot_id], _ = group.join(boot_id)
        router.step(*alive.values())
        for each, sock in alive.items():
            assert lands(sock, group.address, source_of(group.members[each].slot)), (number, each)
        assert lands(group.home, group.address)
        highest = max(member.slot for member in group.members.values())
        assert len(listening_at(*group.address)) - 1 - highest >= len(alive), "nobody who dies moves another"
    assert len(group.spares) < LISTENERS_MOST / 4
    for sock in alive.values():
        sock.close()


def test_a_keeper_that_follows_awaits_them_too() -> None:
    identity = own_identity()
    records = [
        SpawnRecord("v1", "s", identity, "", 0.0, slot=2, listener_inode=77, joins=True),
        SpawnRecord("v2", "s", identity, "", 0.0, joins=True),
        SpawnRecord("v3", "s", identity, "", 0.0, slot=3, listener_inode=78),
    ]
    home = bind("127.0.0.1", 0)
    group = Group(home)
    group.open()
    address = home.getsockname()[:2]
    heir = Listening.brought([(address, home), *((address, spare) for spare in group.spares)], records, HOME)
    assert heir.group
    assert heir.group.awaited == {"v1": identity, "v2": identity}
    assert list(heir.group.unplaced) == ["v2"]
    heir.close()


def test_a_daemon_without_a_place_is_not_there_wherever_it_was() -> None:
    """It may listen; but by its old place the router would meet itself."""
    sharing = Sharing("s", cast("KeeperLink", None))  # it says nothing before it leads
    sharing.took({"version": 2, "home": 0, "places": {"v1": [2, 77]}, "unplaced": []})
    assert (sharing.listener_of("v1"), sharing.is_joining("v1")) == (77, False)
    assert sharing.source_of(Daemon("v1", source=source_of(5))) == source_of(2)
    sharing.took({"version": 3, "home": 0, "places": {}, "unplaced": ["v1"]})
    assert (sharing.listener_of("v1"), sharing.is_joining("v1")) == (-1, True)


class Keeper:
    """Hears what a router says."""

    def __init__(self) -> None:
        self.heard: list[tuple[int, int]] = []

    def tell(self, message: Mapping[str, Any]) -> None:
        self.heard.append((message["version"], message["slot"]))


def test_a_router_that_has_not_told_the_kernel_where_to_direct_says_nothing_of_it_to_the_keeper() -> None:
    """A dead one's program still points somewhere: a gap there must not become a daemon's place."""
    keeper = Keeper()
    sharing = Sharing("s", cast("KeeperLink", keeper))
    sharing.took({"version": 2, "home": 0, "places": {}, "unplaced": []})
    sharing.lead()
    assert keeper.heard == []
    sharing.steered(HOME)
    assert keeper.heard == [(2, HOME)]
    sharing.took({"version": 3, "home": 0, "places": {}, "unplaced": []})
    assert keeper.heard == [(2, HOME), (3, HOME)]
