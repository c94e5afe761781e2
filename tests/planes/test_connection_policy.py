"""What the operator demands of connections, on every plane."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from proxy_header import read_header
from stage import RELAYS, Daemon, Stage
from support import eventually, scaled
from turnout.core.connection_policy import Policy, networks

Opened = contextlib.ExitStack


@pytest.fixture
def opened() -> Iterator[Opened]:
    with Opened() as stack:
        yield stack


def staged(opened: Opened, kind: str, policy: Policy) -> Stage:
    stage = Stage(kind, policy=policy)
    opened.callback(stage.close)
    return stage


def is_reset(sock: socket.socket) -> bool:
    try:
        while sock.recv(65536):
            pass
    except ConnectionResetError:
        return True
    return False


def talks(client: socket.socket, far: socket.socket) -> bool:
    client.sendall(b"?")
    far.sendall(b"!")
    return far.recv(1) == b"?" and client.recv(1) == b"!"


# -- the limit of connections ----------------------------------------------------------------------------------------


def test_one_more_than_the_limit_waits_in_the_kernels_queue_until_another_ends(kind: str, opened: Opened) -> None:
    stage = staged(opened, kind, Policy(connections=2))
    daemon = stage.daemon("v1")
    pairs = [stage.pair(daemon) for _ in range(2)]
    third = stage.client()
    third.sendall(b"third")
    eventually(lambda: stage.plane.counters.limited == 1)
    assert stage.plane.counters.accepted == 2
    assert all(talks(*pair) for pair in pairs), "those that are there go on"
    pairs[0][0].close()
    pairs[0][1].close()
    far = daemon.accept()
    assert far.recv(5) == b"third"
    far.sendall(b"ok")
    assert third.recv(2) == b"ok"
    far.close()


def test_held_connections_count_and_a_raised_limit_is_taken_up_at_once(kind: str, opened: Opened) -> None:
    stage = staged(opened, kind, Policy(connections=1))
    stage.set_upstream(None)
    clients = [stage.client() for _ in range(3)]
    eventually(lambda: stage.plane.counters.limited == 1)
    assert stage.plane.counters.held_now == 1
    stage.call(lambda: stage.plane.apply(Policy(connections=3)))
    eventually(lambda: stage.plane.counters.held_now == 3)
    daemon = stage.daemon("v1")
    for _ in clients:
        daemon.accept().close()


def test_a_held_client_that_leaves_makes_room_under_the_limit(kind: str, opened: Opened) -> None:
    stage = staged(opened, kind, Policy(connections=1))
    stage.set_upstream(None, patience_s=0.2)
    first, second = stage.client(), stage.client()
    assert is_reset(first), "its patience ran out"
    assert is_reset(second)
    assert stage.plane.counters.hold_timeout == 2


def test_through_a_small_limit_everybody_comes_in_the_end(kind: str, opened: Opened) -> None:
    count = scaled(100, 2000)
    stage = staged(opened, kind, Policy(connections=3))
    daemon = stage.daemon("v1")
    done = 0
    for _ in range(count // 10):
        clients = [stage.client() for _ in range(10)]
        for client in clients:  # first in first out
            far = daemon.accept()
            assert stage.call(stage.plane.connections) <= 3
            far.close()
            assert client.recv(1) == b""
            client.close()
            done += 1
    assert done == count
    eventually(lambda: stage.plane.counters.closed == count)


# -- the idle timeout ------------------------------------------------------------------------------------------------


def test_an_idle_connection_is_ended_in_order_and_a_busy_one_goes_on(kind: str, opened: Opened) -> None:
    stage = staged(opened, kind, Policy(idle_timeout_s=2.0))
    daemon = stage.daemon("v1")
    busy, quiet = stage.pair(daemon), stage.pair(daemon)
    assert talks(*quiet)
    quiet[0].settimeout(0.05)
    for _ in range(400):
        assert talks(*busy)
        with contextlib.suppress(TimeoutError):
            assert quiet[0].recv(1) == b"", "an end, no reset"
            break
    assert quiet[1].recv(1) == b""
    assert stage.plane.counters.idle_closed == 1
    assert talks(*busy)


@pytest.mark.parametrize("kind", RELAYS)
def test_the_idle_timeout_can_be_set_and_taken_back_while_connections_exist(kind: str, opened: Opened) -> None:
    stage = staged(opened, kind, Policy())
    client, _far = stage.pair(stage.daemon("v1"))
    stage.call(lambda: stage.plane.apply(Policy(idle_timeout_s=1000.0)))
    stage.call(lambda: stage.plane.apply(Policy()))
    assert stage.plane.counters.idle_closed == 0
    stage.call(lambda: stage.plane.apply(Policy(idle_timeout_s=0.1)))
    assert client.recv(1) == b""
    eventually(lambda: stage.plane.counters.idle_closed == 1)


@pytest.mark.parametrize("kind", RELAYS)
def test_an_idle_connection_with_bytes_nobody_took_is_reset_for_it_is_truncated(kind: str, opened: Opened) -> None:
    stage = staged(opened, kind, Policy())
    client, far = stage.pair(stage.daemon("v1"))
    far.setblocking(False)

    def stuck() -> bool:
        with contextlib.suppress(BlockingIOError):
            while True:
                far.send(bytes(1 << 20))
        return any(one.half_sent for one in stage.call(lambda: stage.plane.open_connections("v1")) or ())

    eventually(stuck)
    stage.call(lambda: stage.plane.apply(Policy(idle_timeout_s=0.2)))
    eventually(lambda: stage.plane.counters.idle_closed == 1)
    assert is_reset(client)


# -- who may come in -------------------------------------------------------------------------------------------------


def test_a_client_outside_the_allow_list_is_reset_at_once_and_counted(kind: str, opened: Opened) -> None:
    stage = staged(opened, kind, Policy(allow=networks(["127.5.0.0/16", "::1"])))
    daemon = stage.daemon("v1")
    with socket.socket() as stranger:
        stranger.settimeout(20)
        with contextlib.suppress(ConnectionResetError):
            stranger.connect(stage.address)
            assert is_reset(stranger)
    eventually(lambda: stage.plane.counters.denied == 1)
    with socket.socket() as friend:
        friend.settimeout(20)
        friend.bind(("127.5.1.1", 0))
        friend.connect(stage.address)
        far = daemon.accept()
        assert talks(friend, far)
        far.close()
    stage.call(lambda: stage.plane.apply(Policy()))
    assert talks(*stage.pair(daemon))
    assert stage.plane.counters.denied == 1


# -- the PROXY protocol ----------------------------------------------------------------------------------------------


def introduced(stage: Stage) -> Daemon:
    """A daemon that expects a header."""
    daemon = stage.daemon("v1", point=False)
    daemon.target = msgspec.structs.replace(daemon.target, proxy_protocol=True)
    stage.set_upstream(daemon)
    return daemon


def test_the_daemon_is_told_its_client_before_any_byte_of_the_client(kind: str, opened: Opened) -> None:
    stage = staged(opened, kind, Policy())
    daemon = introduced(stage)
    client = stage.client()
    client.sendall(b"mine")
    far = daemon.accept()
    told = read_header(far)
    assert (told.source, told.destination) == (client.getsockname(), stage.address)
    assert far.recv(4) == b"mine"
    far.sendall(b"yes")
    assert client.recv(3) == b"yes"
    counted = stage.call(stage.plane.traffic)["v1"]
    assert counted.bytes_in == 4, "the header is none of the client's bytes"
    far.close()


def test_held_clients_and_retried_connects_are_introduced_once(kind: str, opened: Opened) -> None:
    stage = staged(opened, kind, Policy())
    dead = introduced(stage)
    stage.end(dead)
    client = stage.client()
    client.sendall(b"patient")
    client.shutdown(socket.SHUT_WR)
    eventually(lambda: stage.plane.counters.connect_failed > 1)
    reborn = stage.reborn(dead)
    far = reborn.accept()
    assert read_header(far).source == client.getsockname()
    assert far.recv(100) == b"patient"
    assert far.recv(1) == b""
    far.close()


def test_a_client_over_ipv6_is_told_as_such(kind: str, opened: Opened) -> None:
    stage = staged(opened, kind, Policy())
    daemon = introduced(stage)
    with ipv6_listener() as front, socket.socket(socket.AF_INET6) as client:
        stage.call(lambda: stage.plane.add_listener(front))
        client.settimeout(20)
        client.connect(front.getsockname())
        far = daemon.accept()
        told = read_header(far)
        assert (told.source, told.destination) == (client.getsockname()[:2], front.getsockname()[:2])
        assert talks(client, far)
        far.close()


def ipv6_listener() -> socket.socket:
    try:
        return socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError as error:
        pytest.skip(f"no IPv6 loopback here: {error}")


# -- options of the sockets ------------------------------------------------------------------------------------------


def test_client_and_daemon_have_keepalive_and_no_delay(kind: str, opened: Opened) -> None:
    """Seen from outside: the timer of each of the plane's sockets, as the kernel lists it."""
    stage = staged(opened, kind, Policy(user_timeout_s=30.0))
    client, far = stage.pair(stage.daemon("v1"))
    assert talks(client, far)
    options = stage.call(lambda: [_options(fd) for fd in _sockets_between(client, far)])
    assert len(options) == 2
    assert options == [(1, 1, 120, 15, 4, 30_000)] * 2


def test_a_changed_user_timeout_is_that_of_connections_that_come_after(kind: str, opened: Opened) -> None:
    stage = staged(opened, kind, Policy(user_timeout_s=30.0))
    daemon = stage.daemon("v1")
    before = stage.pair(daemon)
    stage.call(lambda: stage.plane.apply(Policy(user_timeout_s=7.0)))
    after = stage.pair(daemon)
    assert talks(*before)
    assert talks(*after)
    found = stage.call(lambda: [{_options(fd)[-1] for fd in _sockets_between(*pair)} for pair in (before, after)])
    assert found == [{30_000}, {7_000}]


def _sockets_between(client: socket.socket, far: socket.socket) -> list[int]:
    """The plane's own two descriptors of a connection; it runs in this process."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if not stat.S_ISSOCK(entry.stat().st_mode):
                continue  # socket.socket() would raise, and leave the copy open
            with socket.socket(fileno=os.dup(int(entry.name))) as sock:
                if sock.getpeername() == client.getsockname() or sock.getsockname() == far.getpeername():
                    found.append(int(entry.name))
    return [fd for fd in found if fd not in {client.fileno(), far.fileno()}]


def _options(fd: int) -> tuple[int, ...]:
    with socket.socket(fileno=os.dup(fd)) as sock:
        tcp = (
            socket.TCP_NODELAY,
            socket.TCP_KEEPIDLE,
            socket.TCP_KEEPINTVL,
            socket.TCP_KEEPCNT,
            socket.TCP_USER_TIMEOUT,
        )
        found = [sock.getsockopt(socket.IPPROTO_TCP, option) for option in tcp]
        return (sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), *found)


# -- listeners -------------------------------------------------------------------------------------------------------


def test_a_removed_listener_serves_those_in_its_queue_and_the_others_go_on(kind: str, opened: Opened) -> None:
    stage = staged(opened, kind, Policy())
    daemon = stage.daemon("v1")
    second = socket.create_server(("127.0.0.1", 0), backlog=128)
    address = second.getsockname()
    queued = [opened.enter_context(socket.create_connection(address, 20)) for _ in range(100)]

    def come_and_go() -> None:
        stage.plane.add_listener(second)
        stage.plane.remove_listener(address)

    stage.call(come_and_go)
    second.close()
    for _ in queued:
        far = daemon.accept()
        far.sendall(b"ok")
        far.close()
    assert all(client.recv(2) == b"ok" for client in queued)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, 20)
    assert talks(*stage.pair(daemon))


def test_ipv6_clients_and_an_ipv6_daemon_are_served_side_by_side_with_ipv4(kind: str, opened: Opened) -> None:
    stage = staged(opened, kind, Policy())
    with ipv6_listener() as front, ipv6_listener() as listener:
        listener.settimeout(20)
        stage.call(lambda: stage.plane.add_listener(front))
        target = msgspec.structs.replace(
            stage.daemon("four").target, boot_id="six", host="::1", port=listener.getsockname()[1], source=""
        )
        stage.call(lambda: stage.plane.set_upstream(target, patience_s=20.0))
        for address in (front.getsockname()[:2], stage.address):
            client = opened.enter_context(socket.create_connection(address, 20))
            far, _ = listener.accept()
            far.settimeout(20)
            assert talks(client, far)
            far.close()


# -- descriptors and ports -------------------------------------------------------------------------------------------


def test_more_connections_to_one_daemon_than_a_source_address_has_ports(kind: str) -> None:
    """In a network namespace with 200 ports: from 127.0.0.2 and on; an IPv6 daemon has no further source to offer."""
    script = Path(__file__).parents[1] / "support" / "few_ports.py"
    if subprocess.run(["unshare", "-rn", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no right to make a network namespace (unshare -rn)")
    done = subprocess.run(
        ["unshare", "-rn", sys.executable, str(script), kind],
        env={**os.environ, "PYTHONPATH": str(script.parent)},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
