"""What the sk_lookup steering does with its kernel objects: made once, taken over, given back; bpf(2) is a fake.

How the kernel places connections by them is for test_sk_lookup.py, which takes rights that not every machine has.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from traffic import open_fds
from turnout.errors import SteeringError
from turnout.planes.direct import bpf
from turnout.planes.direct.bpf_pins import Pins
from turnout.planes.direct.sk_lookup import SkLookup
from turnout.planes.plane import Upstream


class FakeBpf:
    """The objects of a kernel, by the descriptor of each; ``fails``: the functions that answer this errno."""

    def __init__(self) -> None:
        self.maps: dict[int, int] = {}  # the listener in each map, by its inode; 0: empty
        self.programs = 0
        self.links = 0
        self.updates = 0
        self.pins: dict[str, int] = {}
        self.fails: dict[str, int] = {}

    def _call(self, name: str) -> None:
        if code := self.fails.get(name):
            raise OSError(code, os.strerror(code))

    def _descriptor(self) -> int:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def make_socket_map(self) -> int:
        self._call("make_socket_map")
        fd = self._descriptor()
        self.maps[fd] = 0
        return fd

    def put_socket(self, map_fd: int, sock_fd: int) -> None:
        self._call("put_socket")
        self.maps[map_fd] = os.fstat(sock_fd).st_ino

    def take_socket_out(self, map_fd: int) -> None:
        self._call("take_socket_out")
        self.maps[map_fd] = 0

    def has_socket(self, map_fd: int) -> bool:
        return self.maps[map_fd] != 0

    def load_sk_lookup(self, code: bytes) -> int:
        self._call("load_sk_lookup")
        assert code
        self.programs += 1
        return self._descriptor()

    def link_sk_lookup(self, program_fd: int, netns_fd: int) -> int:
        self._call("link_sk_lookup")
        assert os.fstat(program_fd)
        assert os.fstat(netns_fd)
        self.links += 1
        return self._descriptor()

    def update_link(self, link_fd: int, program_fd: int) -> None:
        self._call("update_link")
        self.updates += 1

    def pin(self, fd: int, path: str) -> None:
        self._call("pin")
        Path(path).touch()
        self.pins[Path(path).name] = self.maps.get(fd, -1)

    def pinned(self, path: str) -> int:
        assert Path(path).stat()
        fd = self._descriptor()
        if self.pins[Path(path).name] >= 0:
            self.maps[fd] = self.pins[Path(path).name]
        return fd


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> FakeBpf:
    found = FakeBpf()
    for name in vars(FakeBpf):
        if not name.startswith("_"):
            monkeypatch.setattr(bpf, name, getattr(found, name))
    return found


@pytest.fixture
def pins(tmp_path: Path) -> Pins:
    return Pins.of(tmp_path, tmp_path / "home", "cache")


@pytest.fixture
def front() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


@pytest.fixture
def daemon() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def steering(daemon: socket.socket, pins: Pins | None = None) -> SkLookup:
    return SkLookup(lambda _upstream: daemon.dup(), pins)


def upstream(daemon: socket.socket) -> Upstream:
    return Upstream("a", *daemon.getsockname()[:2])


def inodes(kernel: FakeBpf) -> list[int]:
    return [inode for inode in kernel.maps.values() if inode]


def test_before_the_first_steer_nothing_is_made(kernel: FakeBpf, front: socket.socket, daemon: socket.socket) -> None:
    found = steering(daemon)
    found.listen(front)
    assert (kernel.maps, kernel.programs) == ({}, 0)


def test_a_switch_is_one_entry_of_a_map(kernel: FakeBpf, front: socket.socket, daemon: socket.socket) -> None:
    found = steering(daemon)
    found.listen(front)
    found.steer(upstream(daemon))
    assert inodes(kernel) == [os.fstat(daemon.fileno()).st_ino]
    assert (found.is_in_effect(), kernel.programs, kernel.links) == (True, 1, 1)
    found.steer(upstream(daemon))
    assert (kernel.programs, kernel.links, kernel.updates) == (1, 1, 0), "something was made again"
    found.steer(None)
    assert inodes(kernel) == []
    found.close()


def test_a_listener_more_or_less_is_another_program_on_the_same_link(
    kernel: FakeBpf, front: socket.socket, daemon: socket.socket
) -> None:
    found = steering(daemon)
    found.listen(front)
    found.steer(upstream(daemon))
    found.listen(front)
    assert kernel.updates == 0, "it is known"
    with socket.create_server(("127.0.0.1", 0)) as other:
        found.listen(other)
        found.unlisten(other.getsockname()[:2])
    assert (kernel.links, kernel.updates) == (1, 2)
    found.close()


def test_a_family_that_the_next_daemon_does_not_serve_goes_back_to_the_router(
    kernel: FakeBpf, front: socket.socket, daemon: socket.socket
) -> None:
    with (
        socket.create_server(("::1", 0), family=socket.AF_INET6) as front6,
        socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as both,
    ):
        candidates = iter([both, daemon])
        found = SkLookup(lambda _upstream: next(candidates).dup(), None)
        found.listen(front)
        found.listen(front6)
        found.steer(Upstream("a", "::", 1))
        assert inodes(kernel) == [os.fstat(both.fileno()).st_ino] * 2
        found.steer(upstream(daemon))
        assert inodes(kernel) == [os.fstat(daemon.fileno()).st_ino]
        found.close()


def test_a_daemon_that_closed_its_listener_is_seen(
    kernel: FakeBpf, front: socket.socket, daemon: socket.socket
) -> None:
    found = steering(daemon)
    found.listen(front)
    found.steer(upstream(daemon))
    for fd in kernel.maps:
        kernel.maps[fd] = 0
    assert not found.is_in_effect()
    found.close()


@pytest.mark.parametrize("failing", ["make_socket_map", "load_sk_lookup", "link_sk_lookup", "put_socket"])
@pytest.mark.parametrize("code", [errno.EPERM, errno.EMFILE])
def test_a_call_that_fails_leaves_no_descriptor_open(
    kernel: FakeBpf, front: socket.socket, daemon: socket.socket, failing: str, code: int
) -> None:
    kernel.fails[failing] = code
    found = steering(daemon)
    found.listen(front)
    before = open_fds()
    with pytest.raises((OSError, SteeringError)) as caught:
        found.steer(upstream(daemon))
    assert ("CAP_BPF" in str(caught.value)) == (code == errno.EPERM and failing != "put_socket")
    assert open_fds() == before or failing == "put_socket", "what was made before it is still open"
    found.close()
    assert open_fds() == before
    kernel.fails.clear()
    found.steer(upstream(daemon))
    assert found.is_in_effect()
    found.close()
    assert open_fds() == before


def test_the_next_router_takes_over_what_a_dead_one_pinned(
    kernel: FakeBpf, front: socket.socket, daemon: socket.socket, pins: Pins
) -> None:
    dead = steering(daemon, pins)
    dead.listen(front)
    dead.steer(upstream(daemon))
    kernel.pins["ipv4"] = os.fstat(daemon.fileno()).st_ino  # as the pinned map has it
    dead.release()
    assert pins.exist()
    successor = steering(daemon, pins)
    successor.listen(front)
    successor.begin()
    assert successor.is_in_effect()
    assert (kernel.links, kernel.updates) == (1, 1), "no connection meets no program"
    kernel.maps.update(dict.fromkeys(kernel.maps, 0))  # the daemon has ended
    assert not successor.is_in_effect()
    successor.close()
    assert not pins.exist()


@pytest.mark.parametrize("broken", ["an object is missing", "of another version"])
def test_pins_that_cannot_be_taken_over_end_and_new_ones_are_made(
    kernel: FakeBpf, front: socket.socket, daemon: socket.socket, pins: Pins, broken: str
) -> None:
    dead = steering(daemon, pins)
    dead.listen(front)
    dead.steer(upstream(daemon))
    dead.release()
    if broken == "an object is missing":
        (pins.directory / "ipv4").unlink()
    else:
        kernel.fails["update_link"] = errno.EINVAL
    before = open_fds()
    successor = steering(daemon, pins)
    successor.listen(front)
    successor.steer(upstream(daemon))
    assert (kernel.links, successor.is_in_effect(), pins.exist()) == (2, True, True)
    successor.close()
    assert open_fds() == before


def test_what_cannot_be_pinned_is_steered_all_the_same(
    kernel: FakeBpf, front: socket.socket, daemon: socket.socket, pins: Pins
) -> None:
    kernel.fails["pin"] = errno.ENOSPC
    found = steering(daemon, pins)
    found.listen(front)
    found.steer(upstream(daemon))
    assert (found.is_in_effect(), pins.exist()) == (True, False)
    found.close()


def test_a_router_without_a_daemon_ends_what_a_dead_one_pinned(
    kernel: FakeBpf, front: socket.socket, daemon: socket.socket, pins: Pins
) -> None:
    dead = steering(daemon, pins)
    dead.listen(front)
    dead.steer(upstream(daemon))
    dead.release()
    successor = steering(daemon, pins)
    successor.listen(front)
    successor.steer(None)
    assert (pins.exist(), kernel.links) == (False, 1)


def test_a_daemon_of_another_family_or_without_a_listener_is_refused_with_the_reason(
    kernel: FakeBpf, front: socket.socket
) -> None:
    for family, match in ((socket.AF_INET6, "is of the other"), (socket.AF_INET, "does not listen")):
        with socket.socket(family) as sock:
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.listen(1)
            found = steering(sock)
            found.listen(front)
            with pytest.raises(SteeringError, match=match):
                found.steer(Upstream("a", "127.0.0.1", 1))
    assert not kernel.maps
