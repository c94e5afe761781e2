"""The group at a fixed address: every daemon keeps its index, whoever joins and leaves."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from support import report, scaled
from turnout.core.model import Identity
from turnout.core.slots import source_of
from turnout.errors import NotBegunError, SpawnError
from turnout.reuseport import group as group_module
from turnout.reuseport import takeover
from turnout.reuseport.group import LISTENERS_MOST, Group, GroupState, Place
from turnout.reuseport.program import DOORS_MOST, LOCAL, Door, attach
from turnout.reuseport.takeover import find_daemons, from_daemons, from_router
from turnout.system.net.connections import Handshake
from turnout.system.net.listener import bind
from turnout.system.net.sockets import listening_at
from turnout.system.process import identify
from turnout.system.spawn_record import SpawnRecord


@pytest.fixture
def group() -> Iterator[Group]:
    found = Group.of(bind("127.0.0.1", 0))
    yield found
    found.close()


def lands(group: Group, sock: socket.socket, index: int | None = None) -> bool:
    """Whether a connection comes to this listener; with an index, one that names it."""
    with socket.socket() as client:
        client.settimeout(20)
        selected = [*group._selected] or [group.home]
        if index is not None:
            client.bind((source_of(index), 0))
            attach(home_of(group), selected, [Door(index, *client.getsockname())])
        client.connect(group.address)
        if index is not None:
            attach(home_of(group), selected)
        return _has_accepted(sock, client.getsockname(), within_s=1.0)


def _has_accepted(sock: socket.socket, peer: object, *, within_s: float = 0.0) -> bool:
    """Whether this listener has a connection from that address; those before it in its queue are accepted too."""
    sock.settimeout(within_s)
    while True:
        try:
            far, came_from = sock.accept()
        except (TimeoutError, BlockingIOError):
            return False
        far.close()
        if came_from == peer:
            return True


def _waiting(sock: socket.socket) -> int:
    """How many connections a listener has; they are accepted."""
    sock.setblocking(False)
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sock.accept()[0].close()
            count += 1
    return count


def home_of(group: Group) -> socket.socket:
    sock = group.places[group.home].sock
    assert sock
    return sock


def acknowledge(group: Group, boot_id: str = "") -> None:
    """As a router that accepts what comes to it, and directs new connections to this daemon or to itself."""
    for sock in group.router_listeners:
        _has_accepted(sock, None)
    selected = group.indexes_of(boot_id) if boot_id else [group.home]
    attach(home_of(group), selected)
    group.seen(group.version, selected)


def check(group: Group, alive: Mapping[str, socket.socket]) -> None:
    """Each daemon has an index of its own, and a connection to that index reaches it; the rest is the router's."""
    assert group.boots == alive.keys()
    for boot_id, sock in alive.items():
        (index,) = group.indexes_of(boot_id)
        assert lands(group, sock, index), boot_id
    for index, place in enumerate(group.places):
        if place.is_routers:
            assert place.sock
            assert lands(group, place.sock, index), index
    assert len(listening_at(*group.address)) == len(group.places)


def test_nobody_can_join_before_the_group_is_open(group: Group) -> None:
    with pytest.raises(OSError, match="in use"):
        bind(*group.address, shared=True)


def test_daemons_have_the_lowest_indexes_where_the_router_knows_of_the_group_by_then(group: Group) -> None:
    group.open()
    acknowledge(group)
    alive: dict[str, socket.socket] = {}
    for number in range(4):
        alive[f"v{number}"], index = group.join(f"v{number}")
        assert index == number
        acknowledge(group)
        check(group, alive)
    for sock in alive.values():
        sock.close()


def test_a_daemon_that_joins_gets_nothing_but_what_names_it(group: Group) -> None:
    sock, index = group.join("v1")
    with sock:
        assert all(lands(group, home_of(group)) for _ in range(20))
        assert lands(group, sock, index)
        acknowledge(group, "v1")
        assert all(lands(group, sock) for _ in range(20))


def test_the_workers_of_a_daemon_have_their_share_each(group: Group) -> None:
    group.open()
    acknowledge(group)
    workers = [bind(*group.address, shared=True) for _ in range(3)]
    for sock in workers:
        group.add("v1", sock.dup(), 10)
    assert len(group.indexes_of("v1")) == 3
    acknowledge(group, "v1")
    with contextlib.ExitStack() as opened:
        clients = [opened.enter_context(socket.create_connection(group.address, 20)) for _ in range(60)]
        came = [_waiting(sock) for sock in workers]
    assert all(came), came
    assert sum(came) == len(clients)
    for sock in workers:
        sock.close()


def test_the_queue_of_a_dead_daemon_is_the_routers(group: Group) -> None:
    sock, _ = group.join("v1")
    acknowledge(group, "v1")
    with contextlib.ExitStack() as opened:
        clients = [opened.enter_context(socket.create_connection(group.address, 20)) for _ in range(10)]
        sock.close()
        late = opened.enter_context(socket.create_connection(group.address, 20))
        assert group.release("v1")
        assert not group.release("v1")
        (place,) = [place for place in group.places if place.used == group.version]
        assert place.sock is not None
        assert place.sock in group.router_listeners
        assert not place.sock.getblocking()
        assert all(_has_accepted(place.sock, client.getsockname()) for client in (*clients, late))


@pytest.mark.parametrize("acknowledged", [True, False])
@pytest.mark.timeout(900)
def test_no_living_daemon_moves_whoever_starts_dies_pauses_and_binds_again(group: Group, acknowledged: bool) -> None:
    """In random order, and asked of the kernel by a connection for each index."""
    group.open()
    alive: dict[str, socket.socket] = {}
    chance = random.Random(7)
    most, most_fds = 0, 0
    for number in range(scaled(100, 1000) if acknowledged else 30):
        before = {boot_id: group.indexes_of(boot_id) for boot_id in alive}
        touched = chance.sample(sorted(alive), chance.randint(0, len(alive) if len(alive) > 3 else min(1, len(alive))))
        for boot_id in touched:
            sock = alive.pop(boot_id)
            if chance.random() < 0.4:  # as HAProxy pauses
                sock.shutdown(socket.SHUT_RDWR)
                group.look()
                if chance.random() < 0.5:  # and resumes
                    sock.listen(10)
                    group.add(boot_id, sock.dup(), 10)
                    alive[boot_id] = sock
                    continue
            sock.close()
            group.release(boot_id)
            if chance.random() < 0.3:  # it lives, and binds again
                alive[boot_id] = bind(*group.address, shared=True)
                group.add(boot_id, alive[boot_id].dup(), 10)
        group.look()
        if acknowledged:
            acknowledge(group)
        alive[f"v{number}"], _ = group.join(f"v{number}")
        most = max(most, len(alive))
        check(group, alive)
        assert all(group.indexes_of(boot_id) == before[boot_id] for boot_id in before.keys() - {*touched})
        if number < 20:
            most_fds = max(most_fds, len(list(Path("/proc/self/fd").iterdir())))
    if acknowledged:
        assert len(group.places) <= 3 * most + 6, "what is not used any more is used again"
        assert len(list(Path("/proc/self/fd").iterdir())) <= 2 * most_fds
    assert len(group.places) < LISTENERS_MOST
    report("group, starts and ends in random order", acknowledged=acknowledged, most=most, listeners=len(group.places))
    for sock in alive.values():
        sock.close()


def test_a_daemon_that_shuts_its_listener_down_leaves_its_index_to_the_router_and_may_listen_again(
    group: Group,
) -> None:
    """HAProxy does so to pause; the kernel gives the index to the last listener."""
    group.open()
    acknowledge(group)
    one, first = group.join("v1")
    two, _ = group.join("v2")
    acknowledge(group, "v1")
    one.shutdown(socket.SHUT_RDWR)
    with socket.create_connection(group.address, 20) as client:
        assert group.look()
        assert group.boots == {"v2"}
        place = group.places[first]
        assert place.is_routers
        assert place.sock
        assert _has_accepted(place.sock, client.getsockname())
    one.listen(10)
    group.add("v1", one.dup(), 10)
    check(group, {"v1": one, "v2": two})
    one.close()
    two.close()


def test_of_daemons_that_shut_down_at_once_nobody_else_moves(group: Group) -> None:
    """It is not known then which of the router's last listeners went where, and so they make room for no daemon."""
    group.open()
    acknowledge(group)
    alive = {f"v{number}": group.join(f"v{number}")[0] for number in range(5)}
    acknowledge(group)
    for boot_id in ("v0", "v2", "v3"):
        leaving = alive.pop(boot_id)
        leaving.shutdown(socket.SHUT_RDWR)
        leaving.close()
    assert group.look()
    check(group, alive)
    acknowledge(group)
    alive["v5"], _ = group.join("v5")
    check(group, alive)
    for sock in alive.values():
        sock.close()


def test_a_stranger_that_joins_does_not_inherit_from_a_daemon_that_leaves(group: Group) -> None:
    """A program of the same user that sets SO_REUSEPORT is let in by the kernel; it is found out, and not the last."""
    one, _ = group.join("v1")
    acknowledge(group, "v1")
    with bind(*group.address, shared=True) as stranger:
        assert group.look()
        assert group.strangers == {os.fstat(stranger.fileno()).st_ino}
        assert not group.look()
        one.shutdown(socket.SHUT_RDWR)
        with socket.create_connection(group.address, 20) as client:
            group.look()
            assert any(_has_accepted(sock, client.getsockname()) for sock in group.router_listeners)
    one.close()
    assert group.look()
    assert group.strangers == set()


def test_a_stranger_that_leaves_while_a_daemon_joins_does_not_mislead(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last listener takes the index of the one that left: the newest one, at that moment."""
    group.open()
    acknowledge(group)
    strangers = [bind(*group.address, shared=True)]
    group.look()
    acknowledge(group)

    def bind_and_leave(host: str, port: int, *, shared: bool) -> socket.socket:
        found = bind(host, port, shared=shared)
        if strangers:
            strangers.pop().close()
        return found

    monkeypatch.setattr(group_module, "bind", bind_and_leave)
    sock, _ = group.join("v1")
    monkeypatch.undo()
    check(group, {"v1": sock})
    sock.close()


def test_what_never_stands_still_is_no_place_for_a_daemon(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    group.open()
    strangers = [bind(*group.address, shared=True)]
    listens = listening_at  # as the group looks, for an address that is no wildcard

    def moving(host: str, port: int) -> list[object]:
        strangers.append(bind(*group.address, shared=True))
        strangers.pop(0).close()
        return [*listens(host, port)]

    group.look()
    monkeypatch.setattr(group_module, "listening_exactly_at", moving)
    with pytest.raises(NotBegunError, match="listeners join and leave all the time"):
        group.join("v1")
    monkeypatch.undo()
    strangers[0].close()
    group.look()
    assert group.boots == set()


def test_the_next_keeper_has_the_group_from_a_router(group: Group) -> None:
    """A keeper that was killed leaves its listeners, and copies of the daemons' own, with the router."""
    one, _ = group.join("v1")
    two, _ = group.join("v2")
    acknowledge(group, "v2")
    told = group.description()
    state = GroupState(told["version"], told["home"], tuple((inode, boot) for inode, boot in told["order"]))
    one.close()
    heir = from_router([sock.dup() for sock in (*group.router_listeners, *group.daemon_listeners)], state, {})
    assert heir.version > group.version
    heir.look()
    assert heir.indexes_of("v2") == group.indexes_of("v2")
    heir.release("v1")
    acknowledge(heir)
    three, _ = heir.join("v3")
    check(heir, {"v2": two, "v3": three})
    heir.close()
    two.close()
    three.close()


def test_a_group_of_0_1_is_taken_over_with_what_its_router_knows() -> None:
    """It names the index of its own listener and those of the daemons; where its spares are is not known."""
    front = bind("127.0.0.1", 0)
    address = front.getsockname()[:2]
    front.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    spares = [bind(*address, shared=True)]
    attach(front, [0])
    old = bind(*address, shared=True)
    spares.append(bind(*address, shared=True))
    inode = os.fstat(old.fileno()).st_ino
    record = SpawnRecord("v1", "s", identify(os.getpid()), "", 0.0, slot=2, listener_inode=inode)
    heir = from_router([front, *spares], GroupState(home=0), {"v1": record})
    heir.look()
    alive = {"v1": old}
    for boot_id in ("v2", "v3", "v4"):
        acknowledge(heir)
        alive[boot_id], _ = heir.join(boot_id)
        check(heir, alive)
    old.close()
    del alive["v1"]
    heir.release("v1")
    acknowledge(heir)
    alive["v5"], index = heir.join("v5")
    assert index < 3, "what is known to be the router's makes room"
    check(heir, alive)
    heir.close()
    for sock in alive.values():
        sock.close()


def test_an_index_is_not_given_again_while_clients_may_still_be_directed_to_it(group: Group) -> None:
    group.open()
    acknowledge(group)
    one, first = group.join("v1")
    acknowledge(group, "v1")
    one.close()
    group.release("v1")
    two, second = group.join("v2")  # the router has not said yet that it knows of that death
    assert second != first
    acknowledge(group)
    three, third = group.join("v3")
    assert third == first
    two.close()
    three.close()


@pytest.mark.parametrize(("age_s", "is_used"), [(59.0, True), (61.0, False)])
def test_an_index_is_given_again_also_while_connections_are_being_made_all_the_time(
    group: Group, monkeypatch: pytest.MonkeyPatch, age_s: float, is_used: bool
) -> None:
    """As from far away: only a handshake that began before the router knew of the death can be at that index."""
    now = [1000.0]
    made = [Handshake("", 1, 0.0), Handshake("", 1, age_s)]
    monkeypatch.setattr(group_module, "handshakes_at", lambda _: made)
    monkeypatch.setattr(group_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    group.open()
    group.seen(group.version, [group.home])
    now[0] += 100.0
    one, first = group.join("v1")
    one.close()
    group.release("v1")
    group.seen(group.version, [group.home])
    now[0] += 60.0
    group.seen(group.version, [group.home])  # it is told again, with each switch
    two, second = group.join("v2")
    two.close()
    assert (second == first) is is_used


def test_a_listener_with_clients_in_its_queue_is_not_closed(group: Group) -> None:
    one, _ = group.join("v1")
    acknowledge(group, "v1")
    one.close()
    with socket.create_connection(group.address, 20) as client:
        group.release("v1")
        selected = [group.home]
        attach(home_of(group), selected)
        group.seen(group.version, selected)
        two, _ = group.join("v2")
        two.close()
        assert any(_has_accepted(sock, client.getsockname()) for sock in group.router_listeners)


def test_an_ipv6_address_is_refused_with_the_reason() -> None:
    group = Group.of(bind("::1", 0))
    with pytest.raises(SpawnError, match="IPv6"):
        group.join("v1")
    group.close()


@pytest.mark.parametrize("lacks", ["descriptor", "room"])
def test_a_listener_that_cannot_be_had_is_no_fault_of_the_daemon(
    group: Group, monkeypatch: pytest.MonkeyPatch, lacks: str
) -> None:
    def no_descriptor(*_: object, **_more: object) -> socket.socket:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    if lacks == "room":
        monkeypatch.setattr(group_module, "LISTENERS_MOST", 1)
    else:
        monkeypatch.setattr(group_module, "bind", no_descriptor)
    with pytest.raises(NotBegunError, match="open files" if lacks == "descriptor" else "1 listeners share port"):
        group.join("v1")
    monkeypatch.undo()
    sock, _ = group.join("v1")
    acknowledge(group)
    check(group, {"v1": sock})
    sock.close()


def test_daemons_that_accept_nothing_are_looked_for_as_long_together_as_a_verb_may_wait(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The keeper does nothing else meanwhile, and verbs kill a keeper that is silent for five seconds."""
    now, looks = 1000.0, list[float]()

    def accepts_nothing(_probe: object, _port: int, daemons: Mapping[str, SpawnRecord], *, within_s: float) -> str:
        nonlocal now
        looks.append(within_s)
        if len(looks) == 20:
            return next(iter(daemons))
        now += within_s
        return ""

    daemons = {"b1": SpawnRecord("b1", "a", Identity(1), "", 0.0, listener_inode=5)}
    monkeypatch.setattr(takeover, "taken_by", accepts_nothing)
    monkeypatch.setattr(takeover, "connect_to_index", lambda *_: socket.socket())
    monkeypatch.setattr(time, "monotonic", lambda: now)
    group.open()
    group.places[:0] = [Place(0) for _ in range(20)]
    group.home = 20
    find_daemons(group, daemons)
    assert looks[0] == takeover.TAKEN_S
    assert now - 1000.0 < 4.0
    assert group.indexes_of("b1") == [19], "one that accepts is found all the same"


def test_another_users_listener_keeps_a_daemon_out_with_the_reason(group: Group) -> None:
    """As the kernel has it: one effective user binds all members of a group."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to be somebody else for a moment")
    script = (
        "import os, socket, sys\n"
        "os.setuid(65534)\n"
        "s = socket.socket()\n"
        "s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)\n"
        "try:\n    s.bind(('127.0.0.1', int(sys.argv[1])))\n"
        "except OSError as error:\n    print(error.errno)\n"
    )
    sock, _ = group.join("v1")
    with sock:
        port = str(group.address[1])
        done = subprocess.run(
            [sys.executable, "-c", script, port], capture_output=True, text=True, timeout=60, check=True
        )
    assert done.stdout.strip() == "98"  # EADDRINUSE


def lost(group: Group) -> list[socket.socket]:
    """Two daemons at the address, which keeper and router left to them alone; the last one has taken the place of 0."""
    first = group.router_listeners[0]
    first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    daemons = [bind(*group.address, shared=True), bind(*group.address, shared=True)]
    attach(first, [0])
    group.close()
    return [daemons[1], daemons[0]]


def test_a_router_that_joined_daemons_keeps_its_index_whoever_of_those_that_it_does_not_know_leaves(
    group: Group,
) -> None:
    """One that is stopped (SIGSTOP) accepts nothing, so where it is cannot be found out."""
    daemons = lost(group)
    again = from_daemons(group.address, {})
    for sock in daemons:  # before anybody looks
        sock.close()
    again.look()
    acknowledge(again)
    assert lands(again, home_of(again))
    sock, _ = again.join("v3")
    check(again, {"v3": sock})
    sock.close()
    again.close()


def test_daemons_that_were_left_alone_are_found_where_they_are(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    daemons = dict(enumerate(lost(group)))
    inodes = {index: os.fstat(sock.fileno()).st_ino for index, sock in daemons.items()}
    records = {
        f"v{index}": SpawnRecord(f"v{index}", "s", identify(os.getpid()), "", 0.0, listener_inode=inode)
        for index, inode in inodes.items()
    }

    def accepts(probe: socket.socket, _port: int, _daemons: object, *, within_s: float) -> str:
        for index, sock in daemons.items():
            if _has_accepted(sock, probe.getsockname(), within_s=within_s / 10):
                return f"v{index}"
        return ""

    monkeypatch.setattr(takeover, "taken_by", accepts)
    again = from_daemons(group.address, records)
    assert {boot_id: again.indexes_of(boot_id) for boot_id in records} == {"v0": [0], "v1": [1]}
    acknowledge(again)
    check(again, {f"v{index}": sock for index, sock in daemons.items()})
    for sock in daemons.values():
        sock.close()
    again.close()


def test_a_connection_names_a_member_by_its_address_and_its_port_together(group: Group) -> None:
    """Any user may bind a source address of ours, and any port; what the router holds nobody can bind as well."""
    sock, index = group.join("v1")
    with sock, socket.socket() as held, socket.socket() as other:
        held.bind((source_of(index), 0))
        port = held.getsockname()[1]
        attach(
            home_of(group),
            [group.home],
            [Door(7, source_of(7), 1), Door(index, *held.getsockname()), Door(index, LOCAL, 1)],
        )
        for source, number in ((source_of(index), 0), (source_of(7), port), ("127.0.0.1", port)):
            with socket.socket() as client:
                client.bind((source, number))
                client.connect(group.address)
                assert _has_accepted(home_of(group), client.getsockname(), within_s=1.0), (source, number)
        with pytest.raises(OSError, match="in use"):
            other.bind(held.getsockname())
        held.connect(group.address)
        assert _has_accepted(sock, held.getsockname(), within_s=1.0)


def test_a_connection_from_127_0_0_1_reaches_the_member_of_its_port(group: Group) -> None:
    """As the relay comes to a daemon: an address of our own would be no local one to it (pg_hba.conf)."""
    socks = [group.join(f"v{number}")[0] for number in range(2)]
    with contextlib.ExitStack() as opened:
        clients = [opened.enter_context(socket.socket()) for _ in socks]
        for client in clients:
            client.bind((LOCAL, 0))
        indexes = [group.indexes_of(f"v{number}")[0] for number in range(2)]
        doors = [Door(index, *client.getsockname()) for index, client in zip(indexes, clients, strict=True)]
        attach(home_of(group), [group.home], doors)
        for client, sock in zip(clients, socks, strict=True):
            client.connect(group.address)
            assert _has_accepted(sock, client.getsockname(), within_s=1.0)
        with opened.enter_context(socket.create_connection(group.address, 20)) as other:
            assert _has_accepted(home_of(group), other.getsockname(), within_s=1.0)
    for sock in socks:
        sock.close()


def test_a_door_has_an_address_that_names_its_index_or_the_local_one() -> None:
    for host in (source_of(4), "127.0.0.2", "10.0.0.1", ""):
        with pytest.raises(ValueError, match="does not name index 3"):
            Door(3, host, 5)


def test_as_many_doors_as_may_be_open_are_all_known(group: Group) -> None:
    sock, index = group.join("v1")
    with sock, socket.socket() as client:
        client.bind((source_of(index), 0))
        doors = [Door(index, LOCAL, 1 + number) for number in range(DOORS_MOST - 1)]
        attach(home_of(group), [group.home], [*doors, Door(index, *client.getsockname())])
        client.connect(group.address)
        assert _has_accepted(sock, client.getsockname(), within_s=1.0)
        attach(home_of(group), [*range(40)], doors)


def test_a_program_at_a_closer_address_changes_nothing_of_a_group_at_a_wildcard() -> None:
    """It gets what is sent there, and it is no member."""
    group = Group.of(bind("0.0.0.0", 0))
    sock, index = group.join("v1")
    port = group.address[1]
    with bind("127.0.0.1", port, shared=True):
        assert not group.look()
        assert group.indexes_of("v1") == [index]
        assert group.strangers == set()
    assert not group.look()
    sock.close()
    group.close()


def test_a_listener_that_the_kernel_did_not_list_is_not_taken_for_one_that_left(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    sock, index = group.join("v1")
    monkeypatch.setattr(group_module, "listening_exactly_at", lambda *_: [])
    assert not group.look()
    assert group.indexes_of("v1") == [index]
    sock.close()


def test_a_listener_that_cannot_be_given_a_place_leaves_none_behind(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    group.open()

    def no_room() -> bool:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    sock = bind(*group.address, shared=True)
    monkeypatch.setattr(group, "_pad", no_room)
    with pytest.raises(OSError, match="open files"):
        group.add("v1", sock.dup(), 10)
    monkeypatch.undo()
    assert group.boots == set()
    assert all(place.sock is None or place.sock.fileno() >= 0 for place in group.places)
    sock.close()


def test_where_one_index_is_left_for_one_listener_it_has_that(group: Group) -> None:
    group.open()
    acknowledge(group)
    one, _ = group.join("v1")
    with bind(*group.address, shared=True):
        one.shutdown(socket.SHUT_RDWR)
        group.look()  # who left and who joined is seen at once
        one.close()
        known = [place.inode for place in group.places]
    group.look()
    assert known.count(0) <= 2
    acknowledge(group)
    two, _ = group.join("v2")
    check(group, {"v2": two})
    two.close()


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("call", [0, 1, 2])
@pytest.mark.parametrize("step", ["a listener is bound", "room is made"])
def test_a_daemon_that_shuts_down_at_any_step_of_anothers_joining_misleads_nobody(
    group: Group, monkeypatch: pytest.MonkeyPatch, step: str, call: int, before: bool
) -> None:
    """The kernel gives its index to the last listener of that moment, which may be the one that joins."""
    group.open()
    acknowledge(group)
    alive = {f"v{number}": group.join(f"v{number}")[0] for number in range(3)}
    acknowledge(group)
    leaving = alive.pop("v1")
    calls: list[object] = []

    def at_that_step(function: Callable[..., object]) -> Callable[..., object]:
        def stands_in(*args: object, **more: object) -> object:
            calls.append(args)
            is_due = len(calls) == call + 1
            if is_due and before:
                leaving.shutdown(socket.SHUT_RDWR)
            result = function(*args, **more)
            if is_due and not before:
                leaving.shutdown(socket.SHUT_RDWR)
            return result

        return stands_in

    if step == "room is made":
        monkeypatch.setattr(group, "_shut", at_that_step(group._shut))
    else:
        monkeypatch.setattr(group_module, "bind", at_that_step(bind))
    alive["v9"], _ = group.join("v9")
    monkeypatch.undo()
    group.look()
    check(group, alive if len(calls) > call else {**alive, "v1": leaving})
    acknowledge(group)
    alive["v10"], _ = group.join("v10")
    group.look()
    check(group, alive if len(calls) > call else {**alive, "v1": leaving})
    for sock in (*alive.values(), leaving):
        sock.close()
