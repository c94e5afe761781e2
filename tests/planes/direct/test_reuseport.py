"""The steering without privileges, and what the relay before it must not do to itself."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from stage import Stage
from support import eventually
from turnout.core.model import Daemon
from turnout.core.slots import ROUTER_INDEX, source_of
from turnout.errors import SteeringError
from turnout.planes.direct.reuseport import Reuseport
from turnout.planes.plane import Upstream
from turnout.reuseport.group import Group
from turnout.reuseport.program import attach, let_go
from turnout.router.kernel_view import KernelView
from turnout.system.net.listener import bind


@pytest.fixture
def group() -> Iterator[Group]:
    with bind("127.0.0.1", 0) as home:
        found = Group(home)
        yield found
        found.close()


def steering(group: Group, told: list[int], *, there: bool = True) -> Reuseport:
    found = Reuseport(lambda _target: there, lambda: group.router_index, told.append)
    found.listen(group.router_listener)
    return found


def target(group: Group, boot_id: str) -> Upstream:
    host, port = group.router_listener.getsockname()
    return Upstream(boot_id, host, port, source=source_of(group.members[boot_id].slot))


def comes_to(sock: socket.socket, address: tuple[str, int]) -> bool:
    sock.settimeout(20)
    with socket.create_connection(address, 20) as client:
        far, peer = sock.accept()
        far.close()
        return bool(peer == client.getsockname())


def test_the_keeper_is_told_where_it_points(group: Group) -> None:
    told: list[int] = []
    found = steering(group, told)
    sock, member = group.join("v1")
    with sock:
        found.steer(target(group, "v1"))
        assert found.is_in_effect()
        assert comes_to(sock, group.router_listener.getsockname())
        found.steer(None)
        assert not found.is_in_effect()
        assert comes_to(group.router_listener, group.router_listener.getsockname())
    assert told == [member.slot, ROUTER_INDEX]


def test_what_cannot_be_steered_to_is_refused_with_the_reason(group: Group) -> None:
    told: list[int] = []
    host, port = group.router_listener.getsockname()
    with pytest.raises(SteeringError, match="a port of its own"):
        steering(group, told).steer(Upstream("v1", host, port + 1))
    with pytest.raises(SteeringError, match="not shared"):
        steering(group, told).steer(Upstream("v1", host, port, source=source_of(2)))
    sock, _ = group.join("v1")
    with sock, pytest.raises(SteeringError, match="has closed its listener"):
        steering(group, told, there=False).steer(target(group, "v1"))
    assert told == []


def test_who_leaves_touches_nothing_and_who_closes_has_everything_come_to_the_router(group: Group) -> None:
    found = steering(group, [])
    sock, _ = group.join("v1")
    with sock:
        found.steer(target(group, "v1"))
        found.release()
        found.close()  # it has nothing any more
        assert comes_to(sock, group.router_listener.getsockname())
        again = steering(group, [])
        again.close()
        assert comes_to(group.router_listener, group.router_listener.getsockname())


def test_without_a_group_there_is_nothing_to_let_go() -> None:
    with bind("127.0.0.1", 0) as sock:
        let_go(sock, ROUTER_INDEX)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        let_go(sock, ROUTER_INDEX)  # open to others, and nobody has joined
        with pytest.raises(OSError, match="Invalid argument"):
            attach(sock, ROUTER_INDEX)


def test_a_daemon_whose_descriptors_may_not_be_looked_at_is_known_by_the_listener_it_was_given(group: Group) -> None:
    """One that is not dumpable (prctl(2)): without this, its clients would be held as if it were gone."""
    sock, member = group.join("v1")
    host, port = group.router_listener.getsockname()
    daemons = {"v1": Daemon("v1", host, port, source=source_of(member.slot))}  # no process is known
    view = KernelView(lambda: [(host, port)], lambda: daemons, given=lambda _boot_id: member.inode)
    meant = target(group, "v1")
    assert not KernelView(lambda: [(host, port)], lambda: daemons).is_there(meant)
    assert view.is_there(meant)
    sock.close()
    assert not view.is_there(meant)


@pytest.mark.parametrize("kind", ["reuseport"], indirect=True)
def test_a_connection_that_chose_a_daemon_which_is_gone_is_reset_and_not_relayed_to_itself(stage: Stage) -> None:
    daemon = stage.daemon("v1")
    gone = stage.daemon("v2", point=False)
    gone.listener.close()
    with socket.socket() as client:
        client.bind((gone.target.source, 0))
        client.settimeout(20)
        with pytest.raises(ConnectionResetError):  # by the connect already, where the router is that quick
            _ask(client, stage.address)
    assert stage.plane.counters.accepted == 0
    client, far = stage.pair(daemon)
    client.sendall(b"as ever")
    assert far.recv(100) == b"as ever"


@pytest.mark.parametrize("kind", ["reuseport"], indirect=True)
def test_a_listener_that_was_shut_down_is_let_go(stage: Stage) -> None:
    """The keeper closes a gap for everybody; to epoll it would be readable for ever."""
    stage.daemon("v1")
    assert stage.group
    spare = stage.group.spares[0]
    acceptor = stage.plane._relay._acceptor  # type: ignore[attr-defined]  # what is watched is seen nowhere else
    before = len(acceptor.listeners)
    spare.shutdown(socket.SHUT_RDWR)
    eventually(lambda: len(acceptor.listeners) == before - 1)


def _ask(client: socket.socket, address: tuple[str, int]) -> bytes:
    client.connect(address)
    return client.recv(1)
