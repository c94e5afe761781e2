"""A client from its accept to its daemon or its end: admitted, connected, held, tried again, with fake sockets."""

from __future__ import annotations

import errno
import itertools
import os
import socket
from collections import deque
from dataclasses import dataclass
from ipaddress import ip_network
from select import EPOLLIN, EPOLLOUT
from typing import Any, cast

import pytest

from plane_fakes import FakeLoop, FakeReadiness
from turnout.core.connection_policy import Policy
from turnout.planes.acceptor import ACCEPTS_PER_WAKEUP, Acceptor
from turnout.planes.hold_queue import SHORTAGE_S, PendingClient
from turnout.planes.plane import Counters, PlaneOptions, Upstream, UpstreamChecks
from turnout.system.net.tcp import RESET_LINGER

A, B = Upstream("a", "127.0.0.1", 20001), Upstream("b", "127.0.0.1", 20002)
HOLD_S = 60.0
_numbers = itertools.count(100)


class FakeSocket:
    """A socket of any kind. ``resets``: its close will be a reset; ``error``: what SO_ERROR answers."""

    family = socket.AF_INET

    def __init__(self) -> None:
        self.number = next(_numbers)
        self.closed = False
        self.resets = False
        self.error = 0
        self.sent = b""
        self.options: dict[int, int] = {socket.SO_ACCEPTCONN: 1}

    def fileno(self) -> int:
        return -1 if self.closed else self.number

    def setblocking(self, flag: bool) -> None:  # the socket's
        assert not flag

    def setsockopt(self, _level: int, name: int, value: int | bytes) -> None:
        self.resets = self.resets or (name == socket.SO_LINGER and value == RESET_LINGER)
        if isinstance(value, int):
            self.options[name] = value

    def getsockopt(self, _level: int, name: int) -> int:
        return self.error if name == socket.SO_ERROR else self.options.get(name, 0)

    def getsockname(self) -> tuple[str, int]:
        return "127.0.0.1", 80

    def getpeername(self) -> tuple[str, int]:
        return "192.0.2.7", 50000

    def send(self, data: bytes) -> int:
        self.sent += data
        return len(data)

    def close(self) -> None:
        self.closed = True


class FakeListener(FakeSocket):
    """``queue``: the clients that wait, with their addresses, or the errors that accept meets."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: deque[tuple[FakeSocket, str] | OSError] = deque()

    def dup(self) -> FakeListener:
        return self

    def accept(self) -> tuple[FakeSocket, tuple[str, int]]:
        if not self.queue:
            raise BlockingIOError
        found = self.queue.popleft()
        if isinstance(found, OSError):
            raise found
        return found[0], (found[1], 50000)


@dataclass
class Checks(UpstreamChecks):
    free: int | None = None

    def room(self, upstream: Upstream) -> int | None:
        return self.free


class Scene:
    """An acceptor whose connects answer ``code``; ``begun``: the clients that it handed over, with their upstreams."""

    def __init__(self, policy: Policy | None = None, *, release_per_tick: int = 64) -> None:
        self.loop = FakeLoop()
        self.readiness = FakeReadiness()
        self.counters = Counters()
        self.checks = Checks()
        self.begun: list[tuple[PendingClient, FakeSocket, Upstream]] = []
        self.carried = 0
        self.code = 0
        self.dialled: list[FakeSocket] = []
        policy = policy or Policy(hold_max=10, hold_timeout_s=HOLD_S)
        options = PlaneOptions(policy, self.checks, self.loop.time, release_per_tick=release_per_tick)
        acceptor = self.acceptor = Acceptor(
            self.loop.as_loop, self.readiness, self.counters, cast("Any", self._begin), lambda: self.carried, options
        )
        self.made: list[FakeSocket] = []  # towards daemons
        self.dialer = cast("Any", acceptor._dialer)
        self.dialer.fresh = self._fresh
        acceptor._dial = cast("Any", self._dial)
        self.listener = FakeListener()
        acceptor.add_listener(cast("Any", self.listener))

    def _fresh(self) -> FakeSocket:
        self.made.append(FakeSocket())
        return self.made[-1]

    def _begin(self, client: PendingClient, daemon: FakeSocket, upstream: Upstream) -> None:
        self.carried += 1
        self.begun.append((client, daemon, upstream))

    def _dial(self, daemon: FakeSocket, _upstream: Upstream, _policy: Policy) -> int:
        self.dialled.append(daemon)
        return self.code

    def come(self, count: int = 1, peer: str = "192.0.2.7") -> list[FakeSocket]:
        """So many clients come, and the listener is readable."""
        clients = [FakeSocket() for _ in range(count)]
        self.listener.queue += [(client, peer) for client in clients]
        self.acceptor.accept()
        return clients

    def set_upstream(self, upstream: Upstream | None, patience_s: float = 5.0) -> None:
        self.acceptor.set_upstream(upstream, patience_s=patience_s)

    def served(self) -> list[FakeSocket]:
        return [cast("FakeSocket", client.sock) for client, _, _ in self.begun]

    def watches(self) -> bool:
        return self.readiness.watched[self.listener.number] == EPOLLIN


@pytest.fixture
def scene() -> Scene:
    return Scene()


# -- at once ---------------------------------------------------------------------------------------------------------


def test_a_client_goes_to_the_daemon_with_the_wakeup_that_accepts_it(scene: Scene) -> None:
    scene.set_upstream(A)
    (client,) = scene.come()
    assert scene.served() == [client]
    pending, _, upstream = scene.begun[0]
    assert (upstream, pending.watched, pending.daemon_fd) == (A, False, -1), "nothing of it was registered"
    assert (scene.counters.accepted, scene.counters.held_total, scene.loop.pending) == (1, 0, 0)


def test_one_wakeup_accepts_a_bounded_number(scene: Scene) -> None:
    scene.set_upstream(A)
    scene.come(ACCEPTS_PER_WAKEUP + 5)
    assert len(scene.begun) == ACCEPTS_PER_WAKEUP
    scene.acceptor.accept()
    assert len(scene.begun) == ACCEPTS_PER_WAKEUP + 5


def test_an_error_of_a_new_connection_itself_costs_no_other_client(scene: Scene) -> None:
    scene.set_upstream(A)
    scene.listener.queue.append(OSError(errno.ECONNABORTED, "aborted"))
    (client,) = scene.come()
    assert scene.served() == [client]


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_without_descriptors_or_memory_the_listener_rests(scene: Scene, code: int) -> None:
    scene.set_upstream(A)
    scene.listener.queue.append(OSError(code, os.strerror(code)))
    (client,) = scene.come()
    assert (scene.served(), scene.watches(), scene.counters.fd_exhausted) == ([], False, 1)
    scene.loop.go_on(1.0)
    assert scene.watches()
    scene.acceptor.accept()
    assert scene.served() == [client]


def test_a_client_for_whose_daemon_no_descriptor_is_left_stays_in_the_kernels_queue(scene: Scene) -> None:
    scene.set_upstream(A)
    scene.dialer.fresh = lambda: None
    clients = scene.come(2)
    assert (scene.served(), len(scene.listener.queue)) == (clients[:1], 1), "one descriptor was in reserve"
    scene.dialer.fresh = scene._fresh
    scene.acceptor.accept()
    assert scene.served() == clients


def test_the_proxy_header_is_sent_before_the_hand_over(scene: Scene) -> None:
    scene.set_upstream(Upstream("a", "127.0.0.1", 20001, proxy_protocol=True))
    scene.come()
    assert scene.begun[0][1].sent.startswith(b"\r\n\r\n\0\r\nQUIT\n")


def test_a_client_outside_the_allow_list_is_reset(scene: Scene) -> None:
    scene = Scene(Policy(allow=(ip_network("192.0.2.0/24"),)))
    scene.set_upstream(A)
    (inside,), (outside,) = scene.come(), scene.come(peer="198.51.100.1")
    assert scene.served() == [inside]
    assert (outside.closed, outside.resets, scene.counters.denied) == (True, True, 1)


def test_a_connection_that_meant_a_daemon_of_the_group_which_is_gone_is_reset(scene: Scene) -> None:
    """It would be relayed to the router itself."""
    shared = FakeListener()
    shared.options[socket.SO_REUSEPORT] = 1
    scene.acceptor.add_listener(cast("Any", shared))
    scene.set_upstream(A)
    (client,) = scene.come(peer="127.47.77.3")
    assert (client.closed, client.resets, scene.begun, scene.counters.accepted) == (True, True, [], 0)


def test_at_the_limit_nothing_is_accepted_until_a_connection_ends() -> None:
    scene = Scene(Policy(connections=2))
    scene.set_upstream(A)
    scene.come(3)
    assert (len(scene.begun), scene.watches(), scene.counters.limited) == (2, False, 1)
    scene.acceptor.resume_below_limit()
    assert not scene.watches(), "there is no room yet"
    scene.carried -= 1
    scene.acceptor.resume_below_limit()
    assert scene.watches()
    scene.acceptor.accept()
    assert len(scene.begun) == 3


# -- a connect that fails --------------------------------------------------------------------------------------------


def test_a_refused_connect_holds_the_client_and_a_reset_one_ends_it(scene: Scene) -> None:
    scene.set_upstream(A)
    scene.code = errno.ECONNREFUSED
    (held,) = scene.come()
    assert (held.closed, scene.counters.held_now, scene.counters.connect_failed) == (False, 1, len(scene.dialled))
    scene.code = 0
    scene.loop.go_on(1.0)
    assert scene.served() == [held]
    scene.code = errno.ECONNRESET
    (ended,) = scene.come()
    assert (ended.closed, ended.resets, scene.counters.closed, scene.counters.held_now) == (True, True, 1, 0)
    assert all(daemon.closed for daemon in scene.dialled if daemon is not scene.begun[0][1])


def test_a_refused_client_is_not_dialled_again_with_the_same_wakeup(scene: Scene) -> None:
    scene.set_upstream(A)
    scene.code = errno.ECONNREFUSED
    scene.come(3)
    assert (len(scene.dialled), scene.counters.connect_failed, scene.counters.held_now) == (1, 1, 3)
    scene.code = 0
    scene.loop.go_on(0.1)
    assert len(scene.begun) == 3, "the next try is one pause away"


def test_refusals_that_hold_no_client_delay_no_client_that_is_held_later(scene: Scene) -> None:
    scene.set_upstream(A, 0.0)
    scene.code = errno.ECONNREFUSED
    scene.come(10)
    scene.set_upstream(A)
    (held,) = scene.come()
    scene.code = 0
    scene.loop.go_on(0.1)
    assert scene.served() == [held]


def test_a_daemon_that_refuses_is_given_up_after_the_patience(scene: Scene) -> None:
    scene.set_upstream(A, 0.25)
    scene.code = errno.ECONNREFUSED
    (client,) = scene.come()
    scene.loop.go_on(0.2)
    assert not client.closed
    scene.loop.go_on(0.2)
    assert (client.closed, client.resets, scene.counters.hold_timeout) == (True, True, 1)
    assert scene.loop.pending == 0, "a timer runs on with no client that waits"


def test_without_patience_a_daemon_that_refuses_costs_the_client_its_connection_at_once(scene: Scene) -> None:
    scene.set_upstream(A, 0.0)
    scene.code = errno.ECONNREFUSED
    (client,) = scene.come()
    assert (client.closed, scene.counters.reset_unrouted) == (True, 1)


def test_a_shortage_of_ports_is_no_refusal(scene: Scene) -> None:
    scene.set_upstream(A, 0.25)
    scene.code = errno.EADDRNOTAVAIL
    (client,) = scene.come()
    scene.loop.go_on(SHORTAGE_S - 1)
    assert not client.closed
    scene.loop.go_on(2.0)
    assert client.closed


# -- a connect that takes its time -----------------------------------------------------------------------------------


def test_a_connect_that_takes_its_time_is_handed_over_with_what_is_registered(scene: Scene) -> None:
    scene.set_upstream(A)
    scene.code = errno.EINPROGRESS
    (client,) = scene.come()
    (daemon,) = scene.dialled
    assert scene.readiness.watched[daemon.number] == EPOLLOUT
    assert scene.readiness.watched[client.number] == 0, "nothing but its death is of interest"
    scene.acceptor.connected(scene.acceptor.connecting[daemon.number])
    pending, handed, _ = scene.begun[0]
    assert (pending.watched, pending.daemon_fd, handed) == (True, daemon.number, daemon)
    assert not scene.acceptor.pending
    assert not scene.acceptor.connecting


def test_a_late_refusal_gives_the_client_its_place_before_those_that_came_after_it(scene: Scene) -> None:
    scene.set_upstream(A)
    scene.code = errno.EINPROGRESS
    (first,) = scene.come()
    (daemon,) = scene.dialled
    scene.code = errno.ECONNREFUSED
    (second,) = scene.come()
    daemon.error = errno.ECONNREFUSED
    scene.acceptor.connected(scene.acceptor.connecting[daemon.number])
    assert (daemon.closed, daemon.number in scene.readiness.watched) == (True, False)
    scene.code = 0
    scene.loop.go_on(1.0)
    assert scene.served() == [first, second]


def test_a_connect_without_an_answer_is_tried_again(scene: Scene) -> None:
    scene.set_upstream(A, HOLD_S)
    scene.code = errno.EINPROGRESS
    (client,) = scene.come()
    scene.code = 0
    scene.loop.go_on(4.0)
    assert not scene.begun
    scene.loop.go_on(2.0)
    assert scene.served() == [client]
    assert scene.counters.connect_failed == 1


def test_a_connect_to_a_daemon_with_a_full_queue_goes_back_to_the_hold(scene: Scene) -> None:
    """The kernel has dropped its SYN, and would send it again after a second."""
    scene.checks.free = 0
    scene.set_upstream(A)
    scene.code = errno.EINPROGRESS
    (client,) = scene.come()
    assert (scene.dialled[0].closed, scene.acceptor.connecting, scene.counters.held_now) == (True, {}, 1)
    scene.checks.free, scene.code = 5, 0
    scene.loop.go_on(0.1)
    assert scene.served() == [client]


def test_another_upstream_takes_the_clients_that_are_being_connected_in_their_order(scene: Scene) -> None:
    scene.set_upstream(A)
    scene.code = errno.EINPROGRESS
    clients = scene.come(3)
    scene.code = 0
    scene.set_upstream(B)
    assert scene.served() == clients
    assert {upstream for _, _, upstream in scene.begun} == {B}
    assert not scene.acceptor.connecting


def test_the_refusals_of_one_daemon_cost_no_client_its_wait_for_the_next() -> None:
    scene = Scene(release_per_tick=0)
    scene.set_upstream(A)
    scene.code = errno.ECONNREFUSED
    (client,) = scene.come()
    scene.set_upstream(B, 0.25)
    scene.loop.go_on(1.0)
    assert (client.closed, scene.counters.held_now) == (False, 1)


# -- a descriptor that cannot be watched -----------------------------------------------------------------------------


def test_a_client_that_cannot_be_watched_while_it_waits_is_reset_and_forgotten(scene: Scene) -> None:
    """epoll_ctl(2): ENOSPC, this user has no more watches. An error would leave the client in between for ever."""
    scene.set_upstream(None)
    scene.readiness.fails = True
    (client,) = scene.come()
    assert (client.closed, client.resets, scene.counters.reset_unrouted) == (True, True, 1)
    scene.readiness.fails = False
    (other,) = scene.come()
    scene.set_upstream(A)
    assert (scene.served(), scene.acceptor.pending) == ([other], {})
    scene.acceptor.close()
    assert all(daemon.closed for daemon in scene.made if daemon is not scene.begun[0][1])


def test_a_connect_that_cannot_be_watched_is_tried_again_and_costs_a_held_client_nothing(scene: Scene) -> None:
    scene.set_upstream(None)
    (client,) = scene.come()
    scene.readiness.fails = True
    scene.code = errno.EINPROGRESS
    scene.set_upstream(A)
    assert (client.closed, scene.acceptor.connecting, scene.counters.held_now) == (False, {}, 1)
    assert all(daemon.closed for daemon in scene.dialled)
    scene.readiness.fails = False
    scene.code = 0
    scene.loop.go_on(0.1)
    assert scene.served() == [client]


# -- the hold --------------------------------------------------------------------------------------------------------


def test_without_an_upstream_clients_are_held_and_served_in_their_order(scene: Scene) -> None:
    scene.set_upstream(None)
    clients = scene.come(4)
    assert (scene.counters.held_now, scene.begun) == (4, [])
    scene.set_upstream(A)
    assert scene.served() == clients
    assert (scene.counters.held_now, scene.counters.held_total, scene.acceptor.pending) == (0, 4, {})


def test_a_look_at_the_waiting_clients_that_fails_is_followed_by_the_next(scene: Scene) -> None:
    scene.set_upstream(None)
    (client,) = scene.come()
    acceptor = cast("Any", scene.acceptor)
    acceptor._release = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        scene.loop.go_on(1)
    del acceptor._release
    scene.loop.go_on(HOLD_S + 1)
    assert client.closed, "it waits no longer than it may"


def test_a_full_hold_resets_the_clients_that_come_and_keeps_those_that_wait(scene: Scene) -> None:
    scene.set_upstream(None)
    clients = scene.come(12)
    assert [client.closed for client in clients] == [False] * 10 + [True] * 2
    assert (scene.counters.hold_overflow, scene.counters.held_now) == (2, 10)


def test_no_client_passes_those_that_wait(scene: Scene) -> None:
    scene = Scene(release_per_tick=0)
    scene.set_upstream(None)
    held = scene.come(3)
    scene.set_upstream(A)
    assert not scene.begun, "no tick has come"
    late = scene.come()
    assert scene.served() == held[:2], "two leave for each that comes"
    later = scene.come()
    assert scene.served() == [*held, *late]
    scene.come()
    assert scene.served()[4] is later[0]


def test_the_end_of_the_upstream_without_patience_resets_all_that_wait(scene: Scene) -> None:
    scene.set_upstream(None)
    clients = scene.come(3)
    scene.set_upstream(None, 0.0)
    assert all(client.closed and client.resets for client in clients)
    assert (scene.counters.reset_unrouted, scene.counters.held_now) == (3, 0)


def test_a_client_that_goes_while_it_waits_leaves_nothing_behind(scene: Scene) -> None:
    scene.set_upstream(None)
    first, second = scene.come(2)
    scene.acceptor.discard(scene.acceptor.pending[first.number])
    assert (first.closed, first.resets, scene.counters.hold_left) == (True, False, 1)
    assert first.number not in scene.readiness.watched
    scene.set_upstream(A)
    assert scene.served() == [second]


def test_a_smaller_hold_keeps_those_that_wait(scene: Scene) -> None:
    scene.set_upstream(None)
    clients = scene.come(5)
    scene.acceptor.apply(Policy(hold_max=1, user_timeout_s=3.0))
    assert scene.listener.options[socket.TCP_USER_TIMEOUT] == 3000
    assert scene.come()[0].closed
    scene.set_upstream(A)
    assert scene.served() == clients


# -- the end ---------------------------------------------------------------------------------------------------------


def test_a_listener_that_is_removed_has_its_queue_served_first(scene: Scene) -> None:
    scene.set_upstream(A)
    client = FakeSocket()
    scene.listener.queue.append((client, "192.0.2.7"))
    scene.acceptor.remove_listener(("127.0.0.1", 81))
    assert not scene.begun
    scene.acceptor.remove_listener(("127.0.0.1", 80))
    assert scene.served() == [client]
    assert (scene.listener.closed, scene.readiness.watched) == (True, {})


def test_the_close_resets_all_that_are_not_handed_over_and_gives_everything_back(scene: Scene) -> None:
    scene.set_upstream(A)
    scene.code = errno.EINPROGRESS
    (connecting,) = scene.come()
    scene.code = errno.ECONNREFUSED
    (held,) = scene.come()
    scene.acceptor.close()
    assert (connecting.closed, connecting.resets, held.closed, held.resets) == (True,) * 4
    assert all(daemon.closed for daemon in scene.made), "a socket in reserve, too"
    assert (scene.readiness.watched, scene.acceptor.pending, scene.acceptor.connecting) == ({}, {}, {})
    assert scene.loop.pending == 0
