"""The listeners that the keeper gives to daemons: what cannot be had is no fault of the daemon's build."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from turnout.core.model import Identity
from turnout.errors import NotBegunError, StateUnwritableError
from turnout.keeper import daemon_listeners
from turnout.keeper.daemon_listeners import LOOK_S, OF_ONE_DAEMON, DaemonListeners
from turnout.keeper.service_listeners import ServiceListeners
from turnout.reuseport import group as group_module
from turnout.reuseport.group import Group, Place
from turnout.reuseport.program import attach
from turnout.state.home import Home
from turnout.system.net.listener import bind
from turnout.system.process import identify
from turnout.system.spawn_record import SpawnRecord


class Scene:
    """The listeners of a keeper without routers. ``due``: what is to be done later."""

    def __init__(self, root: Path) -> None:
        self.served: dict[str, ServiceListeners] = {}
        self.offered: list[str] = []
        self.due: list[tuple[float, Callable[[], None]]] = []
        self.lines: list[str] = []
        self.running: set[str] = set()
        self.processes: dict[str, set[int]] = {}
        self.listeners = DaemonListeners(
            Home(root),
            self.served,
            self.offered.append,
            self.running.__contains__,
            lambda boot_id: self.processes.get(boot_id, ()),
            self.after,
            self.lines.append,
        )

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        self.due.append((delay_s, action))


class FakeGroup(Group):
    """A group that finds this out when it looks, or cannot look."""

    def __init__(self, *found: bool | OSError) -> None:
        self.found = list(found)
        self.places = []
        self.version = self.home = 0

    def look(self) -> bool:
        found = self.found.pop(0)
        if isinstance(found, OSError):
            raise found
        self.version += found
        return found


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_a_daemon_without_a_listener_gets_none(scene: Scene) -> None:
    assert scene.listeners.take("a", "b1", None) == (None, 0)


def test_a_listener_of_its_own_blocks_as_a_daemon_expects_it(scene: Scene) -> None:
    listener, index = scene.listeners.take("a", "b1", ("127.0.0.1", 0))
    assert listener
    with listener:
        assert listener.getblocking()
    assert index == 0


def test_a_port_that_another_program_has_is_no_fault_of_the_daemon(scene: Scene) -> None:
    with bind("127.0.0.1", 0) as taken, pytest.raises(NotBegunError, match="Address already in use"):
        scene.listeners.take("a", "b1", ("127.0.0.1", taken.getsockname()[1]))


def test_where_nothing_listens_for_the_service_a_shared_listener_is_no_fault_of_the_daemon(scene: Scene) -> None:
    with pytest.raises(NotBegunError, match="nothing listens for a"):
        scene.listeners.take("a", "b1", "shared")


def test_addresses_that_are_bound_already_are_not_offered_again(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ServiceListeners, "at", lambda addresses: ServiceListeners([*addresses], {}))
    assert scene.listeners.bind("a", [("127.0.0.1", 7000)])
    assert not scene.listeners.bind("a", [("127.0.0.1", 7000)])
    assert scene.offered == ["a"]
    assert scene.listeners.unbind("a")
    assert not scene.listeners.unbind("a")


def test_an_address_that_another_program_has_is_refused_by_its_name(scene: Scene) -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match="Address already in use") as refused:
            scene.listeners.bind("a", [("127.0.0.1", port)])
    assert refused.value.filename == f"127.0.0.1:{port}"
    assert (scene.served, scene.offered) == ({}, [])


def test_a_group_that_cannot_be_looked_at_keeps_no_other_from_it_and_is_logged_once(scene: Scene) -> None:
    no_descriptor = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    scene.served["a"] = ServiceListeners([], {}, FakeGroup(no_descriptor, no_descriptor, False))
    scene.served["b"] = ServiceListeners([], {}, FakeGroup(True, False, True))
    scene.listeners._offered |= {"a": 0, "b": 0}
    for _ in range(3):
        scene.listeners.refresh()
    assert scene.offered == ["b", "b"]
    assert len(scene.lines) == 1
    assert "service a: the group at its address cannot be kept in order" in scene.lines[0]


def test_groups_are_looked_at_by_one_timer_however_often_that_is_asked_for(scene: Scene) -> None:
    scene.listeners.watch()
    scene.listeners.watch()
    ((delay_s, look),) = scene.due
    assert delay_s == LOOK_S
    look()
    assert len(scene.due) == 1, "there is no daemon in any group"


def test_a_group_that_was_joined_again_serves_also_where_it_cannot_be_recorded(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk: clients come first, and the router knows the indexes from the keeper."""
    group = FakeGroup()
    group.places = [Place(4), Place(5, boot_id="b1")]
    scene.running.add("b1")

    def taken(_addresses: object) -> ServiceListeners:
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))

    def full(_path: Path, _record: SpawnRecord) -> None:
        raise StateUnwritableError("No space left on device")

    record = SpawnRecord("b1", "a", Identity(1), "", 0.0, listener_inode=5)
    monkeypatch.setattr(ServiceListeners, "at", taken)
    monkeypatch.setattr(ServiceListeners, "rejoined", lambda *_: ServiceListeners([], {}, group))
    monkeypatch.setattr(daemon_listeners, "read_records", lambda _directory: {"b1": record})
    monkeypatch.setattr(daemon_listeners, "write_record", full)
    assert scene.listeners.bind("a", [("127.0.0.1", 7000)])
    assert scene.offered == ["a"]
    assert "No space left on device" in scene.lines[0]
    assert "its daemons had the address alone" in scene.lines[-1]


@pytest.fixture
def shared(scene: Scene) -> Iterator[tuple[Scene, Group]]:
    """A service whose address daemons may join."""
    scene.served["a"] = ServiceListeners.at([("127.0.0.1", 0)])
    scene.served["a"].addresses = [*scene.served["a"].sockets]
    group = scene.listeners.group_of("a")
    group.seen(group.version, [group.home])
    yield scene, group
    scene.served["a"].close()


def bound_at(group: Group) -> socket.socket:
    """A socket as a daemon has it that was bound at the fixed address, and does not listen yet."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(group.address)
    return sock


def test_a_daemon_that_listens_at_the_fixed_address_itself_has_an_index_and_the_routers_are_told(
    shared: tuple[Scene, Group],
) -> None:
    scene, group = shared
    scene.offered.clear()
    with bound_at(group) as sock:
        scene.listeners.admit("a", "b1", sock.dup(), 7)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    assert scene.listeners.indexes_of("a", "b1") == [0]
    assert scene.listeners.indexes_of("b", "b1") == []
    assert scene.offered == ["a"]
    assert [delay_s for delay_s, _ in scene.due] == [LOOK_S]


def test_the_listener_of_a_daemon_is_the_routers_once_none_of_its_processes_is_left(
    shared: tuple[Scene, Group],
) -> None:
    scene, group = shared
    with bound_at(group) as sock:
        scene.listeners.admit("a", "b1", sock.dup(), 7)
        scene.running.add("b1")
        scene.listeners.refresh()
        assert group.boots == {"b1"}
    scene.running.clear()
    scene.listeners.refresh()
    assert group.boots == set()
    assert scene.offered[-1] == "a"
    assert len(scene.served["a"].kept()) == 0


def test_one_daemon_may_not_have_every_index(shared: tuple[Scene, Group]) -> None:
    scene, group = shared
    for _ in range(OF_ONE_DAEMON):
        with bound_at(group) as sock:
            scene.listeners.admit("a", "b1", sock.dup(), 7)
    with bound_at(group) as sock, pytest.raises(OSError, match="listeners at the fixed address"):
        scene.listeners.admit("a", "b1", sock.dup(), 7)
    with bound_at(group) as sock:
        scene.listeners.admit("a", "b2", sock.dup(), 7)
    assert len(group.indexes_of("b1")) == OF_ONE_DAEMON
    assert group.boots == {"b1", "b2"}


CLOSES = """
import socket, sys
kept = [socket.socket(fileno=int(word)) for word in sys.argv[1:]]
print("runs", flush=True)
for sock in kept:
    sys.stdin.readline()
    sock.close()
    print("closed", flush=True)
sys.stdin.readline()
"""


@contextmanager
def closing(*socks: socket.socket) -> Iterator[tuple[Identity, Callable[[], None]]]:
    """A daemon that has these listeners, and the call at which it closes the next one of them."""
    fds = [sock.fileno() for sock in socks]
    with subprocess.Popen(
        [sys.executable, "-c", CLOSES, *map(str, fds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
        pass_fds=fds,
    ) as process:
        assert process.stdin
        assert process.stdout
        stdin, stdout = process.stdin, process.stdout
        assert stdout.readline() == "runs\n"
        for sock in socks:
            sock.close()

        def close() -> None:
            stdin.write("\n")
            assert stdout.readline() == "closed\n"

        yield identify(process.pid), close
        stdin.close()


def test_a_listener_that_its_daemon_closed_is_the_routers_while_the_daemon_runs(shared: tuple[Scene, Group]) -> None:
    """Of two workers that have one each, one ends: clients must not be directed to a queue that nobody accepts from."""
    scene, group = shared
    first, second = bound_at(group), bound_at(group)
    scene.running.add("b1")
    with closing(first.dup(), second.dup()) as (process, close):
        scene.processes["b1"] = {process.pid}
        scene.listeners.admit("a", "b1", first, 7)
        scene.listeners.admit("a", "b1", second, 7)
        both = group.indexes_of("b1")
        scene.listeners.refresh()
        assert group.indexes_of("b1") == both
        close()
        scene.listeners.refresh()
        assert group.indexes_of("b1") == both, "one look may have met a process that is being forked"
        scene.listeners.refresh()
        assert group.indexes_of("b1") == both[1:]
        assert group.places[both[0]].is_routers


def test_a_daemon_that_closes_its_listener_and_binds_again_has_that_index_no_more(shared: tuple[Scene, Group]) -> None:
    scene, group = shared
    before = bound_at(group)
    scene.running.add("b1")
    after = bound_at(group)
    with closing(before.dup(), after.dup()) as (process, close):
        scene.processes["b1"] = {process.pid}
        scene.listeners.admit("a", "b1", before, 7)
        first = group.indexes_of("b1")
        close()
        scene.listeners.admit("a", "b1", after, 7)
        for _ in range(2):
            scene.listeners.refresh()
        assert len(group.indexes_of("b1")) == 1
        assert group.indexes_of("b1") != first


def test_a_listener_of_a_daemon_that_may_not_be_looked_at_stays_its_own(
    shared: tuple[Scene, Group], monkeypatch: pytest.MonkeyPatch
) -> None:
    scene, group = shared
    sock = bound_at(group)
    scene.running.add("b1")
    with closing(sock.dup()) as (process, close):
        scene.processes["b1"] = {process.pid}
        scene.listeners.admit("a", "b1", sock, 7)
        close()
        monkeypatch.setattr(daemon_listeners, "may_be_looked_at", lambda _pid: False)
        scene.listeners.refresh()
        assert group.boots == {"b1"}


def test_a_daemon_that_pauses_and_resumes_before_anybody_looks_has_the_index_that_the_kernel_gave_it(
    shared: tuple[Scene, Group],
) -> None:
    """HAProxy shuts its listener down and listens again; in between the kernel has moved another one."""
    scene, group = shared
    scene.running |= {"b1", "b2"}
    first, second = bound_at(group), bound_at(group)
    with first.dup() as daemon:
        scene.listeners.admit("a", "b1", first, 7)
        scene.listeners.admit("a", "b2", second, 7)
        daemon.shutdown(socket.SHUT_RDWR)
        scene.listeners.admit("a", "b1", daemon.dup(), 7)
        (index,) = group.indexes_of("b1")
        attach(group.router_listeners[0], [index])
        daemon.settimeout(20)
        with socket.create_connection(group.address, 20) as client:
            far, peer = daemon.accept()
            far.close()
            assert peer == client.getsockname()


def test_a_second_call_of_listen_changes_the_queue_alone(shared: tuple[Scene, Group]) -> None:
    scene, group = shared
    with bound_at(group) as sock:
        scene.listeners.admit("a", "b1", sock.dup(), 7)
        before = group.indexes_of("b1")
        scene.listeners.admit("a", "b1", sock.dup(), 9)
    assert group.indexes_of("b1") == before


def test_what_changed_before_a_look_failed_is_offered_all_the_same(
    shared: tuple[Scene, Group], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what waits at the listener of a dead daemon would be accepted by nobody."""
    scene, group = shared
    with bound_at(group) as sock:
        scene.listeners.admit("a", "b1", sock.dup(), 7)
    scene.offered.clear()

    def no_descriptor() -> bool:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(group, "look", no_descriptor)
    scene.listeners.refresh()
    assert (group.boots, scene.offered) == (set(), ["a"])
    scene.listeners.refresh()
    assert scene.offered == ["a"], "it has not changed again"


def test_a_group_that_could_not_be_opened_is_offered_when_it_can(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.served["a"] = ServiceListeners.at([("127.0.0.1", 0)])
    scene.served["a"].addresses = [*scene.served["a"].sockets]

    def refuses(*_: object) -> None:
        raise OSError(errno.ENOPROTOOPT, os.strerror(errno.ENOPROTOOPT))

    monkeypatch.setattr(group_module, "attach", refuses)
    with pytest.raises(NotBegunError, match="cannot be shared: Protocol not available"):
        scene.listeners.group_of("a")
    assert len(scene.served["a"].offered()) == 1, "the kernel would choose among several by hash"
    monkeypatch.undo()
    scene.offered.clear()
    group = scene.listeners.group_of("a")
    assert len(group.places) > 1
    assert scene.offered == ["a"]
    scene.served["a"].close()


def test_a_listener_that_is_where_it_was_costs_no_walk_through_all_processes(shared: tuple[Scene, Group]) -> None:
    """The keeper looks four times a second."""
    scene, group = shared
    sock = bound_at(group)
    scene.running.add("b1")
    with closing(sock.dup()) as (process, _):
        scene.processes["b1"] = {process.pid}
        scene.listeners.admit("a", "b1", sock, 7)
        scene.listeners.refresh()
        scene.listeners.pids_of = lambda _boot_id: pytest.fail("all processes were looked at")
        scene.listeners.refresh()
        assert group.boots == {"b1"}
