"""The group at a fixed address: every daemon keeps its place, whoever joins and leaves."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from types import SimpleNamespace

import pytest

from turnout.core.model import Identity
from turnout.core.slots import ROUTER_INDEX, source_of
from turnout.errors import NotBegunError, SpawnError
from turnout.reuseport import group as group_module
from turnout.reuseport.group import LISTENERS_MOST, Group, GroupMember
from turnout.reuseport.program import attach
from turnout.system.net.connections import Handshake
from turnout.system.net.listener import bind
from turnout.system.net.sockets import listening_at
from turnout.system.spawn_record import SpawnRecord


@pytest.fixture
def home() -> Iterator[socket.socket]:
    with bind("127.0.0.1", 0) as sock:
        yield sock


@pytest.fixture
def group(home: socket.socket) -> Iterator[Group]:
    found = Group(home)
    yield found
    found.close()


def lands(sock: socket.socket, address: tuple[str, int], source: str = "") -> bool:
    """Whether a connection from there comes to this listener."""
    sock.settimeout(20)
    with socket.socket() as client:
        if source:
            client.bind((source, 0))
        client.settimeout(20)
        client.connect(address)
        came_from = client.getsockname()
        sock.settimeout(1)
        try:
            far, peer = sock.accept()
        except TimeoutError:
            return False
        far.close()
        return bool(peer == came_from)


def test_nobody_can_join_before_the_first_daemon_does(home: socket.socket) -> None:
    with pytest.raises(OSError, match="in use"):
        bind(*home.getsockname(), shared=True)


def test_a_daemon_that_joins_gets_nothing_but_what_chooses_it(group: Group, home: socket.socket) -> None:
    address = home.getsockname()
    sock, member = group.join("v1")
    with sock:
        assert all(lands(home, address) for _ in range(20))
        assert lands(sock, address, source_of(member.slot))


def test_a_daemon_to_which_it_is_directed_gets_everything_else(group: Group, home: socket.socket) -> None:
    address = home.getsockname()
    one, first = group.join("v1")
    two, second = group.join("v2")
    with one, two:
        attach(home, second.slot)
        assert all(lands(two, address) for _ in range(20))
        assert lands(one, address, source_of(first.slot))
        attach(home, first.slot)
        assert all(lands(one, address) for _ in range(20))


def test_what_would_come_to_a_dead_daemon_comes_to_the_router(group: Group, home: socket.socket) -> None:
    address = home.getsockname()
    one, first = group.join("v1")
    two, _ = group.join("v2")
    with two:
        attach(home, first.slot)
        before = list(group.spares)
        one.close()
        with socket.create_connection(address, 20):
            assert len([sock for sock in before if not _is_empty(sock)]) == 1
        assert group.look()
        assert list(group.members) == ["v2"]


def accept_all(group: Group) -> None:
    """As the router does with what comes to its spares."""
    for sock in group.spares:
        while not _is_empty(sock):
            pass


def test_a_stranger_that_joins_does_not_inherit_from_a_dead_daemon(group: Group, home: socket.socket) -> None:
    """A program of the same user that sets SO_REUSEPORT is let in by the kernel; it is found out, and not the last."""
    address = home.getsockname()
    one, first = group.join("v1")
    attach(home, first.slot)
    with bind(*address, shared=True) as stranger:
        assert group.look()
        assert len(group.strangers) == 1
        assert not group.look()
        one.close()
        with socket.create_connection(address, 20) as client:
            assert _accepted(group.spares, client.getsockname())
        assert _is_empty(stranger)


def _accepted(listeners: list[socket.socket], peer: object) -> bool:
    """Whether one of these has a connection from that address."""
    for sock in listeners:
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            far, came_from = sock.accept()
            far.close()
            if came_from == peer:
                return True
    return False


def _is_empty(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        sock.accept()[0].close()
    except BlockingIOError:
        return True
    return False


def test_who_joined_is_told_apart_from_who_left_also_by_an_heir(group: Group, home: socket.socket) -> None:
    """A keeper that was killed leaves its listeners with the router; its successor goes on with them."""
    address = home.getsockname()
    one, _ = group.join("v1")
    two, second = group.join("v2")
    with two:
        one.close()
        heir = Group(home, [sock.dup() for sock in group.spares], dict(group.members))
        assert heir.look()
        assert heir.members == {"v2": second}
        assert lands(two, address, source_of(second.slot))
        three, third = heir.join("v3")
        with three:
            assert lands(three, address, source_of(third.slot))
            assert lands(two, address, source_of(second.slot))
        heir.close()


@pytest.mark.parametrize("moment", ["before it listens", "before it is found", "before it has spares behind it"])
def test_a_daemon_that_leaves_while_another_one_joins_does_not_keep_it_out(
    group: Group, home: socket.socket, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The last listener takes the place of the one that left: the newest one, at that moment."""
    address = home.getsockname()
    leaving, _ = group.join("v1")
    later, _ = group.join("v2")
    bound: list[socket.socket] = []

    def bind_and_leave(host: str, port: int, *, shared: bool) -> socket.socket:
        if (moment, len(bound)) in {("before it listens", 0), ("before it has spares behind it", 1)}:
            leaving.close()
        bound.append(bind(host, port, shared=shared))
        if moment == "before it is found":
            leaving.close()
        return bound[-1]

    with later:
        monkeypatch.setattr("turnout.reuseport.group.bind", bind_and_leave)
        sock, member = group.join("v3")
        monkeypatch.undo()
        with sock:
            assert leaving.fileno() == -1
            assert lands(sock, address, source_of(member.slot))
            group.look()
            later.close()  # from here on it stays where it is
            group.look()
            assert group.members == {"v3": member}
            attach(home, member.slot)
            assert lands(sock, address)


@pytest.mark.parametrize("acknowledged", [True, False])
def test_every_daemon_keeps_its_place_whoever_joins_and_dies(
    group: Group, home: socket.socket, acknowledged: bool
) -> None:
    address = home.getsockname()
    alive: dict[str, socket.socket] = {}
    chance = random.Random(7)
    most = 0
    for number in range(30):
        dying = chance.sample(sorted(alive), chance.randint(0, len(alive)))
        for boot_id in dying if len(alive) > 3 else dying[:1]:  # several at once, before anybody looks
            alive.pop(boot_id).close()
        group.look()
        if acknowledged:
            accept_all(group)
            group.seen(group.version, ROUTER_INDEX)
        alive[f"v{number}"], _ = group.join(f"v{number}")
        if acknowledged:
            group.seen(group.version, ROUTER_INDEX)
        most = max(most, len(alive))
        assert group.members.keys() == alive.keys()
        assert len({member.slot for member in group.members.values()}) == len(alive)
        for boot_id, member in group.members.items():
            assert lands(alive[boot_id], address, source_of(member.slot)), (number, boot_id)
        assert lands(home, address)
        assert len(listening_at(*address)) == 1 + len(group.spares) + len(alive)
    if acknowledged:
        assert len(group.spares) <= 2 * most + 2  # gaps are filled again
    for sock in alive.values():
        sock.close()
    group.look()
    accept_all(group)
    group.seen(group.version, ROUTER_INDEX)
    group.look()
    assert len(group.spares) < (3 if acknowledged else LISTENERS_MOST)


def test_a_gap_is_not_filled_while_clients_may_still_be_directed_to_it(group: Group, home: socket.socket) -> None:
    one, first = group.join("v1")
    group.seen(group.version, first.slot)
    one.close()
    two, second = group.join("v2")  # the router has not said yet that it knows of that death
    with two:
        assert second.slot != first.slot
        group.seen(group.version, ROUTER_INDEX)
        three, third = group.join("v3")
        with three:
            assert third.slot < second.slot


@pytest.mark.parametrize(("age_s", "fills"), [(59.0, True), (61.0, False)])
def test_a_gap_is_filled_also_while_connections_are_being_made_all_the_time(
    group: Group, home: socket.socket, monkeypatch: pytest.MonkeyPatch, age_s: float, fills: bool
) -> None:
    """As from far away: only a handshake that began before the router knew of the death can be at the gap."""
    now = [1000.0]
    monkeypatch.setattr(
        "turnout.reuseport.group.handshakes_at", lambda _: [Handshake("", 1, 0.0), Handshake("", 1, age_s)]
    )
    monkeypatch.setattr("turnout.reuseport.group.time", SimpleNamespace(monotonic=lambda: now[0]))
    one, _ = group.join("v1")
    two, second = group.join("v2")
    with two:
        one.close()
        group.look()
        group.seen(group.version, ROUTER_INDEX)
        now[0] += 60.0
        group.seen(group.version, second.slot)  # it is told again, with each switch
        three, third = group.join("v3")
        three.close()
        assert (third.slot < second.slot) is fills


def test_a_gap_with_clients_in_its_queue_is_not_closed(group: Group, home: socket.socket) -> None:
    one, first = group.join("v1")
    attach(home, first.slot)
    one.close()
    with socket.create_connection(home.getsockname(), 20) as client:
        group.look()
        attach(home, ROUTER_INDEX)
        group.seen(group.version, ROUTER_INDEX)
        two, _ = group.join("v2")
        two.close()
        assert _accepted(group.spares, client.getsockname())


def test_an_ipv6_address_is_refused_with_the_reason() -> None:
    with bind("::1", 0) as home, pytest.raises(SpawnError, match="IPv6"):
        Group(home).join("v1")


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


def test_daemons_that_accept_nothing_are_looked_for_as_long_together_as_a_verb_may_wait(
    home: socket.socket, monkeypatch: pytest.MonkeyPatch
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
    monkeypatch.setattr(group_module, "taken_by", accepts_nothing)
    monkeypatch.setattr(group_module, "connect_to_index", lambda *_: socket.socket())
    monkeypatch.setattr(time, "monotonic", lambda: now)
    group = Group(home, router_index=20)
    group._find_all(daemons)
    assert looks[0] == group_module.TAKEN_S
    assert now - 1000.0 < 4.0
    assert group.members == {"b1": GroupMember(19, 5)}, "one that accepts is found all the same"


def test_another_users_listener_keeps_a_daemon_out_with_the_reason(home: socket.socket) -> None:
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
    group = Group(home)
    sock, _ = group.join("v1")
    with sock:
        port = str(home.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-c", script, port], capture_output=True, text=True, timeout=60, check=True
        )
    group.close()
    assert done.stdout.strip() == "98"  # EADDRINUSE


def lost(address: tuple[str, int], home: socket.socket) -> list[socket.socket]:
    """Two daemons at the address, which keeper and router left to them alone; the last one has taken the place of 0."""
    home.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    daemons = [bind(*address, shared=True), bind(*address, shared=True)]
    attach(home, ROUTER_INDEX)
    home.close()
    return [daemons[1], daemons[0]]


def test_a_router_that_joined_daemons_keeps_its_place_when_all_of_them_have_gone(home: socket.socket) -> None:
    """It is not the first one then; what is before it goes, and it must not be the last that fills that place."""
    address = home.getsockname()[:2]
    daemons = lost(address, home)
    group = Group.rejoin(address, {})
    with group.router_listener:
        group.members = {
            f"v{slot}": GroupMember(slot, os.fstat(sock.fileno()).st_ino) for slot, sock in enumerate(daemons)
        }
        for sock in daemons:
            group.look()
            sock.close()
        for number in range(4):
            group.look()
            accept_all(group)
            assert lands(group.router_listener, address, source_of(group.router_index)), number
            group.seen(group.version, group.router_index)
        sock, member = group.join("v3")
        with sock:
            assert lands(sock, address, source_of(member.slot))
            assert lands(group.router_listener, address, source_of(group.router_index))
        group.close()


def test_a_router_that_joined_daemons_keeps_its_place_whoever_of_those_that_it_does_not_know_leaves(
    home: socket.socket,
) -> None:
    """One that is stopped (SIGSTOP) accepts nothing, so where it is cannot be found out."""
    address = home.getsockname()[:2]
    daemons = lost(address, home)
    group = Group.rejoin(address, {})
    with group.router_listener:
        for sock in daemons:  # before anybody looks
            sock.close()
        group.look()
        assert lands(group.router_listener, address, source_of(group.router_index))
        group.close()
