"""The steering without privileges, and what the relay before it must not do to itself."""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Callable, Iterator, Sequence

import msgspec
import pytest

from stage import Stage
from support import eventually
from turnout.core.connection_policy import Policy
from turnout.core.model import Daemon
from turnout.core.slots import ROUTER_INDEX, index_of, source_of
from turnout.errors import SteeringError
from turnout.planes.direct.doors import Doors
from turnout.planes.direct.reuseport import Reuseport
from turnout.planes.plane import Upstream
from turnout.reuseport.group import Group
from turnout.reuseport.program import DOORS_MOST, LOCAL, attach, let_go
from turnout.router.kernel_view import KernelView, SharedAddress
from turnout.router.socket_owners import Processes
from turnout.system.net.listener import bind


class Members:
    """A group, as the router sees it. ``selected``: where new connections were directed."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.selected: list[list[int]] = []
        self.on_change: Callable[[], None] = lambda: None

    def home(self) -> int:
        return self.group.home

    def indexes_of(self, boot_id: str) -> list[int]:
        return self.group.indexes_of(boot_id)

    def set_selected(self, indexes: Sequence[int]) -> None:
        self.selected.append([*indexes])
        self.group.seen(self.group.version, indexes)


@pytest.fixture
def members() -> Iterator[Members]:
    group = Group.of(bind("127.0.0.1", 0))
    group.open()
    found = Members(group)
    yield found
    group.close()


def steering(members: Members, doors: Doors | None = None, *, there: bool = True) -> Reuseport:
    found = Reuseport(lambda _target: there, members, doors or Doors())
    for sock in members.group.router_listeners:
        found.listen(sock)
    return found


def target(members: Members, boot_id: str) -> Upstream:
    return Upstream(boot_id, *members.group.address)


def comes_to(sock: socket.socket, address: tuple[str, int]) -> bool:
    sock.settimeout(20)
    with socket.create_connection(address, 20) as client:
        far, peer = sock.accept()
        far.close()
        return bool(peer == client.getsockname())


def home(members: Members) -> socket.socket:
    sock = members.group.places[members.group.home].sock
    assert sock
    return sock


def test_the_keeper_is_told_where_new_connections_go(members: Members) -> None:
    found = steering(members)
    sock, index = members.group.join("v1")
    with sock:
        found.steer(target(members, "v1"))
        assert found.is_in_effect()
        assert comes_to(sock, members.group.address)
        found.steer(None)
        assert not found.is_in_effect()
        assert comes_to(home(members), members.group.address)
    assert members.selected == [[index], [members.group.home]]


def test_what_cannot_be_steered_to_is_refused_with_the_reason(members: Members) -> None:
    with pytest.raises(SteeringError, match="a port of its own"):
        steering(members).steer(target(members, "v1"))
    sock, _ = members.group.join("v1")
    with sock, pytest.raises(SteeringError, match="has closed its listener"):
        steering(members, there=False).steer(target(members, "v1"))
    with sock, pytest.raises(SteeringError, match="not shared"):
        Reuseport(lambda _target: True, members, Doors()).steer(target(members, "v1"))
    assert members.selected == []


def test_who_leaves_touches_nothing_and_who_closes_has_everything_come_to_the_router(members: Members) -> None:
    found = steering(members)
    sock, _ = members.group.join("v1")
    with sock:
        found.steer(target(members, "v1"))
        found.release()
        found.close()  # it has nothing any more
        assert comes_to(sock, members.group.address)
        steering(members).close()
        assert comes_to(home(members), members.group.address)


def test_new_connections_follow_the_daemon_and_the_router_to_their_indexes(members: Members) -> None:
    found = steering(members)
    found.steer(None)
    first, _ = members.group.join("v1")
    second, _ = members.group.join("v2")
    with first, second:
        for sock in members.group.router_listeners:
            found.listen(sock)
        assert members.group.home != members.selected[0][0], "a second daemon needed its place"
        members.on_change()
        assert comes_to(home(members), members.group.address)
        found.steer(target(members, "v1"))
        worker = bind(*members.group.address, shared=True)
        members.group.add("v1", worker.dup(), 10)
        members.on_change()
        assert members.selected[-1] == members.group.indexes_of("v1")
        assert len(members.selected[-1]) == 2
        came = {_came_to([first, worker], members.group.address) for _ in range(40)}
        assert came == {0, 1}, "each worker has its share"
        worker.close()


def _came_to(socks: Sequence[socket.socket], address: tuple[str, int]) -> int:
    with socket.create_connection(address, 20):
        readable, _, _ = select.select(socks, [], [], 20)
        readable[0].accept()[0].close()
        return socks.index(readable[0])


def test_a_router_that_does_not_steer_yet_changes_nothing_when_an_index_does(members: Members) -> None:
    steering(members)
    members.on_change()
    assert members.selected == []


def test_without_a_group_there_is_nothing_to_let_go() -> None:
    with bind("127.0.0.1", 0) as sock:
        let_go(sock, ROUTER_INDEX)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        let_go(sock, ROUTER_INDEX)  # open to others, and nobody has joined
        with pytest.raises(OSError, match="Invalid argument"):
            attach(sock, [ROUTER_INDEX])


def test_a_daemon_whose_descriptors_may_not_be_looked_at_is_known_by_the_listener_that_it_has(members: Members) -> None:
    """One that is not dumpable (prctl(2)): without this, its clients would be held as if it were gone."""
    sock, index = members.group.join("v1")
    host, port = members.group.address
    daemons = {"v1": Daemon("v1", host, port)}
    inode = members.group.places[index].inode
    owners = Hidden()
    view = KernelView(
        lambda: [(host, port)], lambda: daemons, owners=owners, shared=SharedAddress(lambda _boot_id: [inode])
    )
    meant = target(members, "v1")
    assert not KernelView(lambda: [(host, port)], lambda: daemons, owners=owners).is_there(meant)
    with sock:
        assert view.is_there(meant)
        owners.hidden = False
        assert not view.is_there(meant), "it closed it, and only the copies are left"
        owners.hidden = True
        sock.shutdown(socket.SHUT_RDWR)
        assert not view.is_there(meant)


class Hidden(Processes):
    """Daemons whose descriptors may not be looked at."""

    hidden = True

    def __init__(self) -> None:
        super().__init__(dict)

    def hides(self, boot_id: str) -> bool:
        return self.hidden


@pytest.mark.parametrize("kind", ["reuseport"], indirect=True)
def test_a_connection_that_chose_a_daemon_which_is_gone_is_reset_and_not_relayed_to_itself(stage: Stage) -> None:
    daemon = stage.daemon("v1")
    gone = stage.daemon("v2", point=False)
    stage.end(gone)
    with socket.socket() as client:
        client.bind((gone.target.source, 0))
        client.settimeout(20)
        stage.call(lambda: stage.doors.open(index_of(gone.target.source), *client.getsockname()))
        with pytest.raises(ConnectionResetError):  # by the connect already, where the router is that quick
            _ask(client, stage.address)
    assert stage.plane.counters.accepted == 0
    client, far = stage.pair(daemon)
    client.sendall(b"as ever")
    assert far.recv(100) == b"as ever"


def test_a_door_lets_one_connection_reach_a_daemon_that_is_not_active(members: Members) -> None:
    doors = Doors()
    found = steering(members, doors)
    active, _ = members.group.join("v1")
    warm, index = members.group.join("v2")
    with active, warm, socket.socket() as client, socket.socket() as other:
        client.bind((source_of(index), 0))
        with pytest.raises(OSError, match="does not steer"):
            doors.open(index, *client.getsockname())
        found.steer(target(members, "v1"))
        doors.open(index, *client.getsockname())
        other.bind((source_of(index), 0))
        other.connect(members.group.address)
        assert _from(active) == other.getsockname()
        found.steer(None)
        client.connect(members.group.address)
        assert _from(warm) == client.getsockname(), "a switch closes no door"
        doors.close(index, *client.getsockname())
        assert not doors.all
        found.release()
        assert doors.have_moved
        with pytest.raises(OSError, match="does not steer"):
            doors.open(index, *client.getsockname())


def test_no_more_doors_are_open_than_the_kernel_takes(members: Members) -> None:
    doors = Doors()
    steering(members, doors).steer(None)
    for port in range(1, DOORS_MOST + 1):
        doors.open(3, LOCAL, port)
    with pytest.raises(BlockingIOError):
        doors.open(3, LOCAL, DOORS_MOST + 1)
    doors.close(3, LOCAL, 1)
    doors.open(3, LOCAL, DOORS_MOST + 1)


def test_a_door_that_the_kernel_refuses_is_not_open(members: Members) -> None:
    doors = Doors()
    steering(members, doors).steer(None)

    def refuses() -> None:
        raise OSError(errno.ENOMEM, "no memory")

    doors.renew = refuses
    with pytest.raises(OSError, match="no memory"):
        doors.open(3, LOCAL, 5)
    assert not doors.all


def _from(listener: socket.socket) -> object:
    listener.settimeout(20)
    far, peer = listener.accept()
    far.close()
    return peer


def test_the_relay_leaves_no_door_open() -> None:
    """Whether its connects succeed or fail, also where more are made at once than there may be doors."""
    stage = Stage("reuseport", hold_max=2 * DOORS_MOST)
    try:
        _come_and_go(stage)
    finally:
        stage.close()


def _come_and_go(stage: Stage) -> None:
    daemon = stage.daemon("v1")
    stage.set_upstream(None)
    clients = [stage.client() for _ in range(DOORS_MOST + 50)]
    eventually(lambda: stage.plane.counters.held_now == len(clients))
    stage.set_upstream(daemon)
    for _ in clients:
        daemon.accept().close()
    eventually(lambda: stage.call(lambda: not stage.doors.all))
    stage.end(daemon)
    late = stage.client()
    eventually(lambda: stage.plane.counters.connect_failed > 0)
    assert not stage.call(lambda: stage.doors.all)
    late.close()


def test_a_connection_that_met_the_router_itself_is_held_and_not_relayed_round_and_round() -> None:
    """For a moment the router may know an index that its daemon has no more: the kernel was quicker."""
    stage = Stage("reuseport", policy=Policy(hold_max=64, idle_timeout_s=600))  # which only a relay can enforce
    try:
        daemon = stage.daemon("v1", point=False)
        assert stage.group
        right = daemon.target
        daemon.target = msgspec.structs.replace(right, source=source_of(stage.group.home))
        stage.set_upstream(daemon)
        client = stage.client()
        client.sendall(b"anyone?")
        eventually(lambda: stage.plane.counters.held_total > 2)
        daemon.target = right
        stage.set_upstream(daemon)
        far = daemon.accept()
        assert far.recv(100) == b"anyone?"
        far.sendall(b"me")
        assert client.recv(100) == b"me"
        far.close()
        assert stage.plane.counters.accepted < 100
    finally:
        stage.close()


@pytest.mark.parametrize("kind", ["reuseport"], indirect=True)
def test_a_listener_that_was_shut_down_is_let_go(stage: Stage) -> None:
    """The keeper makes room for a daemon so; to epoll it would be readable for ever."""
    stage.daemon("v1")
    assert stage.group
    spare = stage.group.router_listeners[-1]
    acceptor = stage.plane._relay._acceptor  # type: ignore[attr-defined]  # what is watched is seen nowhere else
    before = len(acceptor.listeners)
    spare.shutdown(socket.SHUT_RDWR)
    eventually(lambda: len(acceptor.listeners) == before - 1)


def _ask(client: socket.socket, address: tuple[str, int]) -> bytes:
    client.connect(address)
    return client.recv(1)
