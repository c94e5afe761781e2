"""One connect to a daemon: from which address, and what counts as connected; no socket of the kernel's."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from turnout.core.connection_policy import Policy
from turnout.planes.dialing import FIRST_AGAIN_S, SOURCES, Dialer
from turnout.planes.fd_reserve import FdReserve
from turnout.planes.hold_queue import PendingClient
from turnout.planes.plane import Counters, Upstream, UpstreamChecks
from turnout.system.net.tcp import RESET_LINGER
from turnout.testing import FakeClock

UPSTREAM = Upstream("a", "127.0.0.1", 20001)
POLICY = Policy()


class FakeDaemon:
    """The unconnected socket towards a daemon. ``codes``: the answers of its connects; the last one stays."""

    def __init__(self, *codes: int, name: tuple[str, int] = ("127.0.0.1", 40000), error: int = 0) -> None:
        self.codes = list(codes)
        self.name = name
        self.error = error
        self.bound: list[str] = []
        self.taken: set[str] = set()  # addresses that have no port left
        self.connected_to: list[tuple[str, int]] = []
        self.resets = False
        self.timeouts_ms: list[int] = []

    def setsockopt(self, level: int, name: int, value: int | bytes) -> None:
        self.resets = self.resets or (name == socket.SO_LINGER and value == RESET_LINGER)
        if (level, name) == (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT):
            self.timeouts_ms.append(cast("int", value))

    def getsockopt(self, level: int, name: int) -> int:
        assert (level, name) == (socket.SOL_SOCKET, socket.SO_ERROR)
        return self.error

    def getsockname(self) -> tuple[str, int]:
        return self.name

    def bind(self, address: tuple[str, int]) -> None:
        if address[0] in self.taken:
            raise OSError(errno.EADDRINUSE, "Address already in use")
        self.bound.append(address[0])

    def connect_ex(self, address: tuple[str, int]) -> int:
        self.connected_to.append(address)
        return self.codes.pop(0) if len(self.codes) > 1 else self.codes[0]

    @property
    def as_socket(self) -> socket.socket:
        return cast("socket.socket", cast("Any", self))


@dataclass
class Checks(UpstreamChecks):
    there: bool = True
    ended: bool = False

    def is_there(self, upstream: Upstream) -> bool:
        return self.there

    def has_ended(self, upstream: Upstream) -> bool:
        return self.ended


@dataclass
class Scene:
    counters: Counters = field(default_factory=Counters)
    checks: Checks = field(default_factory=Checks)
    clock: FakeClock = field(default_factory=FakeClock)
    fd_reserve: FdReserve = field(default_factory=FdReserve)
    short: int = 0

    def __post_init__(self) -> None:
        self.dialer = Dialer(self.fd_reserve, self._no_descriptor, self.counters, self.checks, self.clock.now)
        self.dialer.set_upstream(UPSTREAM, ())

    def _no_descriptor(self) -> None:
        self.short += 1

    def dial(self, daemon: FakeDaemon, upstream: Upstream = UPSTREAM, policy: Policy = POLICY) -> int:
        return self.dialer.dial(daemon.as_socket, upstream, policy)


@pytest.fixture
def scene() -> Scene:
    return Scene()


# -- what counts as connected ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codes", "code", "calls"),
    [
        ([0], 0, 1),
        ([errno.EINPROGRESS, errno.EISCONN], 0, 2),
        ([errno.EINPROGRESS, errno.EALREADY], errno.EALREADY, 2),
        ([errno.EINPROGRESS, errno.ECONNREFUSED], errno.ECONNREFUSED, 2),
        ([errno.ECONNREFUSED], errno.ECONNREFUSED, 1),
        ([errno.ECONNRESET], errno.ECONNRESET, 1),
    ],
    ids=["at once", "at the second look", "takes its time", "refused at the second look", "refused", "reset"],
)
def test_the_answer_of_the_kernel_is_the_answer(scene: Scene, codes: Sequence[int], code: int, calls: int) -> None:
    daemon = FakeDaemon(*codes)
    assert scene.dial(daemon) == code
    assert daemon.connected_to == [("127.0.0.1", 20001)] * calls
    assert not daemon.resets


def test_a_connection_to_a_daemon_whose_process_has_ended_is_reset_and_counts_as_refused(scene: Scene) -> None:
    """Another program may have the port by then."""
    scene.checks.ended = True
    daemon = FakeDaemon(0)
    assert scene.dial(daemon) == errno.ECONNREFUSED
    assert daemon.resets


def test_a_connect_that_took_its_time_is_judged_in_the_same_way(scene: Scene) -> None:
    answered = scene.dialer.answered
    assert answered(FakeDaemon(0).as_socket, UPSTREAM) == 0
    assert answered(FakeDaemon(0, error=errno.ECONNREFUSED).as_socket, UPSTREAM) == errno.ECONNREFUSED
    scene.checks.ended = True
    late = FakeDaemon(0)
    assert answered(late.as_socket, UPSTREAM) == errno.ECONNREFUSED
    assert late.resets


def test_a_socket_that_was_connected_to_itself_is_reset_and_counts_as_refused(scene: Scene) -> None:
    """With no listener TCP can meet itself, where the daemon's port is one that the kernel gives to connects."""
    port = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[1])
    upstream = Upstream("a", "127.0.0.1", port)
    scene.dialer.set_upstream(upstream, ())
    itself = FakeDaemon(0, name=("127.0.0.1", port))
    assert scene.dial(itself, upstream) == errno.ECONNREFUSED
    assert itself.resets
    assert scene.dial(FakeDaemon(0), upstream) == 0


@pytest.mark.parametrize(
    ("host", "timeout_s", "expected"), [("127.0.0.1", None, []), ("127.0.0.1", 3.0, [3000]), ("192.0.2.1", None, [0])]
)
def test_only_a_peer_that_may_vanish_gets_the_options_that_notice_it(
    scene: Scene, host: str, timeout_s: float | None, expected: list[int]
) -> None:
    upstream = Upstream("a", host, 20001)
    scene.dialer.set_upstream(upstream, ())
    daemon = FakeDaemon(0)
    assert scene.dial(daemon, upstream, Policy(user_timeout_s=timeout_s)) == 0
    assert daemon.timeouts_ms == expected


# -- from which address ----------------------------------------------------------------------------------------------


def test_a_daemon_that_shares_the_address_is_reached_from_127_0_0_1_while_it_is_there(scene: Scene) -> None:
    shared = Upstream("a", "127.0.0.1", 20001, source="127.47.77.3")
    daemon = FakeDaemon(0)
    assert scene.dial(daemon, shared) == 0
    assert daemon.bound == ["127.0.0.1"], "which daemons know as local"
    scene.checks.there = False
    gone = FakeDaemon(0)
    assert scene.dial(gone, shared) == errno.ECONNREFUSED
    assert (gone.bound, gone.connected_to) == ([], []), "it would have come to the router itself"


def test_a_daemon_that_shares_the_address_is_reached_from_its_own_source_where_the_local_one_has_no_port(
    scene: Scene,
) -> None:
    """bind(2) passes over ports in TIME_WAIT; without any, clients wait, for the daemon does not refuse them."""
    shared = Upstream("a", "127.0.0.1", 20001, source="127.47.77.3")
    daemon = FakeDaemon(0)
    daemon.taken = {"127.0.0.1"}
    assert scene.dial(daemon, shared) == 0
    assert daemon.bound == ["127.47.77.3"]
    none = FakeDaemon(0)
    none.taken = {"127.0.0.1", "127.47.77.3"}
    assert scene.dial(none, shared) == errno.EADDRNOTAVAIL
    assert none.connected_to == []


@pytest.mark.parametrize(
    ("code", "answer"),
    [
        (errno.EAGAIN, errno.EADDRNOTAVAIL),
        (errno.ENOMEM, errno.EADDRNOTAVAIL),
        (errno.EHOSTUNREACH, errno.ECONNREFUSED),
    ],
    ids=["too many doors", "no memory", "it does not steer yet"],
)
def test_a_door_that_is_not_to_be_had_now_is_no_refusal_of_the_daemon(scene: Scene, code: int, answer: int) -> None:
    class Shut:
        have_moved = False

        def open(self, *_: object) -> None:
            raise OSError(code, "")

        def close(self, *_: object) -> None:
            raise AssertionError

    scene.checks.doors = Shut()
    shared = Upstream("a", "127.0.0.1", 20001, source="127.47.77.3")
    assert scene.dial(FakeDaemon(0), shared) == answer


def test_where_one_address_has_no_port_left_the_next_one_is_tried_and_kept(scene: Scene) -> None:
    first = FakeDaemon(errno.EADDRNOTAVAIL, errno.EADDRNOTAVAIL, errno.EADDRNOTAVAIL, 0)
    assert scene.dial(first) == 0
    assert first.bound == ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
    assert scene.counters.other_source == 1
    following = FakeDaemon(0)
    assert scene.dial(following) == 0
    assert (following.bound, len(following.connected_to)) == (["127.0.0.3"], 1), "none of the full ones was tried"
    scene.clock.advance(FIRST_AGAIN_S)
    later = FakeDaemon(0)
    assert scene.dial(later) == 0
    assert later.bound == ["127.0.0.1"], "what daemons know as local is gone back to"
    assert (scene.counters.other_source, scene.counters.ports_exhausted) == (2, 0)


def test_where_no_address_has_a_port_left_that_is_counted_and_no_other_one_is_tried(scene: Scene) -> None:
    daemon = FakeDaemon(errno.EADDRNOTAVAIL)
    assert scene.dial(daemon) == errno.EADDRNOTAVAIL
    assert (len(daemon.bound), scene.counters.ports_exhausted) == (SOURCES, 1)


@pytest.mark.parametrize("host", ["::1", "192.0.2.1"])
def test_a_daemon_that_no_other_loopback_address_reaches_has_one_source(scene: Scene, host: str) -> None:
    upstream = Upstream("a", host, 20001)
    scene.dialer.set_upstream(upstream, ())
    daemon = FakeDaemon(errno.EADDRNOTAVAIL)
    assert scene.dial(daemon, upstream) == errno.EADDRNOTAVAIL
    assert (daemon.bound, scene.counters.ports_exhausted) == ([], 1)


def test_another_upstream_is_dialled_from_the_first_address_again(scene: Scene) -> None:
    assert scene.dial(FakeDaemon(errno.EADDRNOTAVAIL, errno.EADDRNOTAVAIL, 0)) == 0
    scene.dialer.set_upstream(Upstream("b", "127.0.0.1", 20002), ())
    daemon = FakeDaemon(0)
    assert scene.dial(daemon) == 0
    assert daemon.bound == []


# -- the reserve -----------------------------------------------------------------------------------------------------


@pytest.fixture
def opened(scene: Scene) -> Iterator[Callable[[socket.socket | None], socket.socket]]:
    """Closes at the end what the dialer gave away."""
    with contextlib.ExitStack() as stack:
        stack.callback(scene.dialer.close)

        def close_later(sock: socket.socket | None) -> socket.socket:
            assert sock is not None
            return stack.enter_context(sock)

        yield close_later


def test_the_socket_of_the_next_client_is_made_before_it_comes(
    scene: Scene, opened: Callable[[socket.socket | None], socket.socket]
) -> None:
    assert scene.dialer.reserve()
    assert scene.dialer.reserve()
    taken = opened(scene.dialer.take_reserve())
    assert taken.fileno() >= 0
    assert scene.dialer.take_reserve() is None, "there was one, and it was taken"


def test_without_a_descriptor_there_is_no_reserve_and_the_acceptor_is_called(scene: Scene) -> None:
    scene.fd_reserve.first = 0
    scene.fd_reserve.check = lambda fd: True  # type: ignore[method-assign]
    assert not scene.dialer.reserve()
    assert (scene.dialer.take_reserve(), scene.short) == (None, 1)


def test_sockets_of_waiting_clients_are_replaced_by_those_of_another_family(
    scene: Scene, opened: Callable[[socket.socket | None], socket.socket]
) -> None:
    client = PendingClient(cast("Any", None), 5, 0.0, None)
    bare = PendingClient(cast("Any", None), 6, 0.0, None)
    scene.dialer.reserve_for(client)
    before = opened(client.reserved)
    scene.dialer.set_upstream(Upstream("a", "::1", 20001), [client, bare])
    after = opened(client.reserved)
    assert before.fileno() == -1
    assert (after.family, bare.reserved) == (socket.AF_INET6, None)
    scene.dialer.set_upstream(Upstream("b", "::1", 20002), [client])
    assert client.reserved is after
