"""What a direct plane is told of real daemons: whose connections there are, who accepts, and what is on its way."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import msgspec
import pytest

from process_support import Started, entry, line_of
from support import eventually
from turnout.core.model import Daemon, Identity
from turnout.errors import SteeringError
from turnout.planes.plane import Upstream
from turnout.router import kernel_view
from turnout.router.kernel_view import UNCLAIMED_S, KernelView, SharedAddress
from turnout.router.socket_owners import Holder, Owners
from turnout.system.net import connections, sockets
from turnout.system.process import identify

FORKING = """
import os, socket, sys
listener = socket.create_server(("127.0.0.1", 0), backlog=int(sys.argv[1]))
print(listener.getsockname()[1], flush=True)
kept = []
for line in sys.stdin:
    sock, _ = listener.accept()
    if line.strip() == "fork" and os.fork() == 0:
        listener.close()
        sock.recv(1)
        os._exit(0)
    if line.strip() == "fork":
        sock.close()
    kept.append(sock)
    print("accepted", flush=True)
"""


class Scene:
    """Daemons that listen at the fixed address itself, as far as this view is told."""

    def __init__(self, started: Started) -> None:
        self.started = started
        self.daemons: dict[str, Daemon] = {}
        self.view = KernelView(
            lambda: [(d.host, d.port) for d in self.daemons.values()], lambda: self.daemons, fresh_s=0
        )
        self.opened = contextlib.ExitStack()

    def _addresses(self) -> list[tuple[str, int]]:
        return [(daemon.host, daemon.port) for daemon in self.daemons.values()]

    def forking(self, boot_id: str, *, backlog: int = 16) -> Forking:
        found = Forking(self, boot_id, backlog)
        self.daemons[boot_id] = found.daemon
        return found

    def served(self, boot_id: str) -> int:
        return len(self.view.served(boot_id) or ())


class Forking:
    """Accepts when it is told to, itself or by a child."""

    def __init__(self, scene: Scene, boot_id: str, backlog: int) -> None:
        self._scene = scene
        read, self._write = os.pipe()
        scene.opened.callback(os.close, self._write)
        self.process = scene.started.python(FORKING, str(backlog), stdin=read)
        os.close(read)
        self.port = int(line_of(self.process))
        self.daemon = replace(entry(identify(self.process.pid), self.port), boot_id=boot_id)
        self.target = Upstream(boot_id, "127.0.0.1", self.port)

    def connect(self) -> socket.socket:
        return self._scene.opened.enter_context(socket.create_connection(("127.0.0.1", self.port), 20))

    def accept(self, how: str = "itself") -> None:
        os.write(self._write, f"{how}\n".encode())
        assert line_of(self.process) == b"accepted\n"


class Unasked:
    """Owners that must not be asked."""

    def of(self, inodes: Collection[int]) -> Mapping[int, Sequence[Holder]]:
        raise AssertionError(inodes)

    def has(self, boot_id: str, inodes: Collection[int]) -> bool:
        raise AssertionError(boot_id, inodes)

    def hides(self, boot_id: str) -> bool:
        raise AssertionError(boot_id)


class Nobodys(Unasked):
    """Owners that are seen to have nothing; daemons ``hidden`` may not be looked at."""

    def __init__(self) -> None:
        self.hidden: set[str] = set()

    def of(self, inodes: Collection[int]) -> Mapping[int, Sequence[Holder]]:
        return {}

    def hides(self, boot_id: str) -> bool:
        return boot_id in self.hidden


class Slow(Unasked):
    """Owners that know nobody, and take a while to say so."""

    def __init__(self) -> None:
        self.asked = 0
        self.now = 100.0

    def of(self, inodes: Collection[int]) -> Mapping[int, Sequence[Holder]]:
        assert inodes
        self.asked += 1
        self.now += 0.05
        return {}


@pytest.fixture
def scene() -> Iterator[Scene]:
    with Started() as started:
        found = Scene(started)
        with found.opened:
            yield found


def test_each_connection_belongs_to_the_daemon_that_accepted_it_or_whose_child_has_it(scene: Scene) -> None:
    one, other = scene.forking("one"), scene.forking("other")
    for daemon, how in ((one, "itself"), (one, "fork"), (other, "itself")):
        daemon.connect()
        daemon.accept(how)
    assert (scene.served("one"), scene.served("other"), scene.served("nobody")) == (2, 1, 0)


def test_a_connection_is_told_with_its_peer_where_that_is_asked_and_keeps_its_number(scene: Scene) -> None:
    daemon = scene.forking("one")
    client = daemon.connect()
    daemon.accept()
    (first,) = scene.view.served("one") or ()
    (again,) = scene.view.served("one", peers=True) or ()
    host, port = client.getsockname()
    assert (first.peer, again.peer) == ("", f"{host}:{port}")
    assert first.id == again.id < 0
    assert first.answered
    client.sendall(b"question")
    eventually(lambda: (scene.view.served("one") or ())[0].half_sent, why="it was not read, so it is under way")
    assert not (scene.view.served("one") or ())[0].answered


def test_one_that_waits_in_the_queue_is_queued_and_pending_and_nobodys_yet(scene: Scene) -> None:
    daemon = scene.forking("one")
    assert not scene.view.pending("one", 0.0)
    daemon.connect()
    eventually(lambda: scene.view.queued("one") == 1)
    assert scene.view.pending("one", 1e9), "whatever its age"
    assert scene.served("one") == 0
    daemon.accept()
    assert scene.view.queued("one") == 0
    assert not scene.view.pending("one", 0.0)


def test_a_handshake_is_pending_if_it_is_older_than_the_switch(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.forking("one")
    made = [connections.Handshake("127.0.0.1", 1, 0.5)]
    monkeypatch.setattr(kernel_view, "handshakes_at", lambda _: made)
    assert scene.view.pending("one", 0.4)
    assert not scene.view.pending("one", 0.6)


def test_connections_are_ended_in_order_or_broken_off_and_others_go_on(scene: Scene) -> None:
    daemon = scene.forking("one")
    clients = []
    for how in ("itself", "fork", "itself"):
        clients.append(daemon.connect())
        daemon.accept(how)
    by_port = {one.peer.rpartition(":")[2]: one.id for one in scene.view.served("one", peers=True) or ()}
    assert scene.view.cut("another", {by_port[str(clients[1].getsockname()[1])]}) == 0
    assert scene.view.cut("one", {by_port[str(clients[1].getsockname()[1])]}) == 1
    assert clients[1].recv(1) == b""
    eventually(lambda: scene.served("one") == 2)
    assert scene.view.cut("one", None) == 2
    for client in (clients[0], clients[2]):
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_a_daemon_that_is_stopped_is_deaf_until_it_goes_on(scene: Scene) -> None:
    daemon = scene.forking("one")
    assert scene.view.not_accepting_reason("one") == ""
    daemon.process.send_signal(signal.SIGSTOP)
    eventually(lambda: "SIGSTOP" in scene.view.not_accepting_reason("one"))
    daemon.process.send_signal(signal.SIGCONT)
    eventually(lambda: scene.view.not_accepting_reason("one") == "")


def test_a_full_queue_is_deaf_until_half_of_it_is_free(scene: Scene) -> None:
    daemon = scene.forking("one", backlog=3)
    for _ in range(4):
        daemon.connect()
    eventually(lambda: "4 connections wait" in scene.view.not_accepting_reason("one"))
    daemon.accept()
    daemon.accept()
    assert scene.view.not_accepting_reason("one"), "two of three still wait"
    daemon.accept()
    assert scene.view.not_accepting_reason("one") == ""


def test_the_room_in_a_daemons_accept_queue_is_what_the_kernel_takes_before_it_drops(scene: Scene) -> None:
    daemon = scene.forking("a", backlog=2)
    rooms = [scene.view.room(daemon.target)]
    for _ in range(3):
        daemon.connect()
        rooms.append(scene.view.room(daemon.target))
    assert rooms == [3, 2, 1, 0]
    daemon.accept()
    assert scene.view.room(daemon.target) == 1


def test_the_room_of_a_daemon_that_no_table_has_is_not_known(scene: Scene) -> None:
    """One on another host may have the port of a listener here."""
    daemon = scene.forking("a")
    scene.daemons["far"] = Daemon("far", host="192.0.2.1", port=daemon.port)
    assert scene.view.room(Upstream("far", "192.0.2.1", daemon.port)) is None
    assert scene.view.room(Upstream("gone", "127.0.0.1", 1)) is None


def test_where_several_share_the_address_each_is_judged_by_its_own_queue(scene: Scene) -> None:
    daemon = scene.forking("one", backlog=1)
    scene.daemons["other"] = replace(daemon.daemon, boot_id="other", identity=identify(os.getpid()))
    for _ in range(2):
        daemon.connect()
    eventually(lambda: scene.view.not_accepting_reason("one"))
    assert scene.view.not_accepting_reason("other") == ""


def test_a_listener_that_a_daemon_was_given_is_not_looked_for_among_its_descriptors(scene: Scene) -> None:
    daemon = scene.forking("one", backlog=1)
    (listener,) = sockets.listening_at("127.0.0.1", daemon.port)
    addresses = [("127.0.0.1", daemon.port)]
    view = KernelView(
        lambda: addresses,
        lambda: scene.daemons,
        owners=Unasked(),
        shared=SharedAddress(lambda _boot_id: [listener.inode]),
    )
    for _ in range(2):
        daemon.connect()
    eventually(lambda: view.not_accepting_reason("one"))


def test_whose_a_listener_is_is_asked_the_less_often_the_longer_it_takes(scene: Scene) -> None:
    daemon = scene.forking("one")
    owners = Slow()
    view = KernelView(
        lambda: [("127.0.0.1", daemon.port)], lambda: scene.daemons, owners=owners, clock=lambda: owners.now
    )
    for _ in range(1000):
        assert view.not_accepting_reason("one") == ""
        owners.now += 0.02
    assert owners.asked == 5, "each time took 0.05 s, so every 5 s"


def test_the_listener_of_a_daemon_is_had_and_no_other_socket(scene: Scene) -> None:
    daemon = scene.forking("one")
    daemon.connect()
    daemon.accept()
    with scene.view.listener_of(daemon.target) as copy:
        assert copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        assert copy.getsockname() == ("127.0.0.1", daemon.port)


def test_why_a_listener_cannot_be_had_is_said(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = scene.forking("one")
    with pytest.raises(SteeringError, match="not known"):
        scene.view.listener_of(msgspec.structs.replace(daemon.target, boot_id="two"))
    with pytest.raises(SteeringError, match="does not listen"):
        scene.view.listener_of(msgspec.structs.replace(daemon.target, port=1))
    scene.daemons["attached"] = replace(daemon.daemon, identity=Identity())
    with pytest.raises(SteeringError, match="not known"):
        scene.view.listener_of(msgspec.structs.replace(daemon.target, boot_id="attached"))
    scene.daemons["contained"] = replace(daemon.daemon, identity=replace(daemon.daemon.identity, pid_ns=1))
    with pytest.raises(SteeringError, match="namespace"):
        scene.view.listener_of(msgspec.structs.replace(daemon.target, boot_id="contained"))

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(kernel_view, "socket_of", refuse)
    with pytest.raises(SteeringError, match="may not be traced") as caught:
        scene.view.listener_of(daemon.target)
    assert "CAP_SYS_PTRACE" in str(caught.value.hint)


class Time:
    """A clock, and a view by it."""

    def __init__(self, scene: Scene, port: int, owners: Owners | None = None) -> None:
        self.now = 100.0
        self.view = KernelView(
            lambda: [("127.0.0.1", port)], lambda: scene.daemons, owners=owners, fresh_s=0.1, clock=lambda: self.now
        )

    def look(self, boot_id: str = "one") -> int | None:
        """How many that daemon has by a new look; None: it cannot be told."""
        self.now += 0.2
        served = self.view.served(boot_id)
        return None if served is None else len(served)


def test_it_is_not_settled_before_two_looks_that_began_later(scene: Scene) -> None:
    daemon = scene.forking("one")
    time = Time(scene, daemon.port)
    assert time.look() == 0
    daemon.connect()
    daemon.accept()
    time.now += 0.05
    since = time.now
    assert time.view.served("one") == [], "an old look, that lacks one"
    assert not time.view.settled(since)
    assert time.look() == 1
    assert not time.view.settled(since)
    assert time.look() == 1
    assert time.view.settled(since)


def test_a_look_that_failed_settles_nothing(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = scene.forking("one")
    time = Time(scene, daemon.port)
    since = time.now

    def refuse(_: int) -> None:
        raise OSError("no such protocol family")

    for good in (True, False, True):
        with monkeypatch.context() as patched:
            if not good:
                patched.setattr(kernel_view, "connections_at", refuse)
            assert time.look() == (0 if good else None)
        assert not time.view.settled(since)
    assert time.look() == 0
    assert time.view.settled(since)


def test_what_nobody_is_seen_to_have_is_waited_for_a_moment(scene: Scene) -> None:
    """Between accept(2) taking a connection from the queue and the descriptor, the process does not have it."""
    daemon = scene.forking("one")
    daemon.connect()
    daemon.accept()
    time = Time(scene, daemon.port, Nobodys())
    for _ in range(3):
        assert time.look() == 0
        assert not time.view.settled(100.0)
    time.now += UNCLAIMED_S
    assert time.look() == 0
    assert time.view.settled(100.0), "a stranger has it"


def test_what_comes_and_goes_all_the_time_keeps_nothing_from_being_settled(scene: Scene) -> None:
    """A connection that ends before it was found whose it is, and the next one at the next look."""
    daemon = scene.forking("one")
    time = Time(scene, daemon.port, Nobodys())
    for _ in range(3):
        client = daemon.connect()
        daemon.accept("fork")
        assert time.look() == 0
        client.close()
        eventually(lambda: not connections.connections_at(daemon.port))
    assert time.view.settled(100.0)


def test_of_a_daemon_that_hides_what_it_has_nothing_is_known_rather_than_zero(scene: Scene) -> None:
    daemon = scene.forking("one")
    owners = Nobodys()
    owners.hidden.add("one")
    time = Time(scene, daemon.port, owners)
    assert time.look() == 0, "there is none that may be its own"
    daemon.connect()
    daemon.accept()
    time.look()
    assert time.look() is None
    assert time.view.served("other") == []
    assert time.view.settled(100.0), "who has it will not be known later either"


def test_where_the_kernel_does_not_tell_nothing_is_known_rather_than_zero(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.forking("one")

    def refuse(_: int) -> None:
        raise OSError("no such protocol family")

    monkeypatch.setattr(kernel_view, "connections_at", refuse)
    assert scene.view.served("one") is None
    assert scene.view.cut("one", None) == 0
    monkeypatch.undo()
    assert scene.view.served("one") == []


def test_a_look_costs_no_more_than_its_share_of_the_time(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    now, looks = 100.0, 0

    def slow(_: int) -> list[connections.Connection]:
        nonlocal now, looks
        looks += 1
        now += 0.2
        return []

    monkeypatch.setattr(kernel_view, "connections_at", slow)
    view = KernelView(lambda: [("127.0.0.1", 1)], dict, clock=lambda: now)
    for _ in range(100):
        view.served("one")
        now += 0.02
    assert looks == 2, "two seconds, and two looks of 0.2 s"


def test_the_descriptors_of_a_process_are_looked_through_once_for_each_connection(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = scene.forking("one")
    daemon.connect()
    daemon.accept()
    assert scene.served("one") == 1
    monkeypatch.setattr(sockets, "descriptors_of", lambda _: pytest.fail("it was looked through again"))
    assert scene.served("one") == 1


def test_what_is_on_its_way_is_not_taken_for_nothing_where_the_kernel_does_not_tell(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.forking("one")
    assert not scene.view.pending("one", 0.0)

    def refuse(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patched:
        patched.setattr(kernel_view, "handshakes_at", refuse)
        assert scene.view.pending("one", 0.0)
    monkeypatch.setattr(sockets, "accept_queues", refuse)
    assert scene.view.pending("one", 0.0)
    assert scene.view.not_accepting_reason("one") == ""
