"""Steering by the kernel itself: which connections, to which listener, and what outlives a router."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from direct_support import needs_sk_lookup
from programs import missing
from support import eventually
from turnout.errors import SteeringError
from turnout.planes.direct import bpf, sk_lookup
from turnout.planes.direct.bpf import Op, assemble
from turnout.planes.direct.bpf_pins import Pins, pins_of
from turnout.planes.direct.sk_lookup import SkLookup
from turnout.planes.plane import Upstream

Opened = contextlib.ExitStack


@pytest.fixture
def opened() -> Iterator[Opened]:
    with Opened() as stack:
        yield stack


@pytest.fixture
def steering(opened: Opened) -> Callable[..., SkLookup]:
    """Makes steerings; the listener of a target is the one of this process at its port."""
    needs_sk_lookup()

    def make(*daemons: socket.socket, pins: Pins | None = None) -> SkLookup:
        by_port = {daemon.getsockname()[1]: daemon for daemon in daemons}

        def listener_of(target: Upstream) -> socket.socket:
            found = by_port[target.port]
            if found.fileno() < 0:
                raise SteeringError("it is closed")
            return found.dup()

        made = SkLookup(listener_of, pins)
        opened.callback(made.close)
        return made

    return make


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home with a bpf filesystem of its own."""
    (tmp_path / "bpf").mkdir()
    done = subprocess.run(["mount", "-t", "bpf", "bpf", tmp_path / "bpf"], capture_output=True, text=True, check=False)
    if done.returncode:
        missing("sk_lookup", f"no bpf filesystem can be mounted: {done.stderr.strip()}")
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", "--lazy", tmp_path / "bpf"], check=True)


def listener(opened: Opened, host: str = "127.0.0.1", port: int = 0, **options: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.create_server((host, port), family=family, backlog=64, **options)
    sock.settimeout(20)
    return opened.enter_context(sock)


def descriptors() -> set[int]:
    return {fd for fd in range(4096) if _is_open(fd)}


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def target(daemon: socket.socket) -> Upstream:
    host, port = daemon.getsockname()[:2]
    return Upstream("boot", host, port)


def meets(address: tuple[str, int], *candidates: socket.socket) -> socket.socket:
    """Which of these listeners gets a connection to ``address``."""
    for one in candidates:
        one.setblocking(False)
    with socket.create_connection(address, 20) as client:

        def accepted() -> list[socket.socket]:
            found = []
            for one in candidates:
                with contextlib.suppress(BlockingIOError):
                    far, _ = one.accept()
                    with far:
                        assert far.getpeername()[:2] == client.getsockname()[:2]
                    found.append(one)
            return found

        (got,) = eventually(accepted)
    return got


# -- the program -----------------------------------------------------------------------------------------------------


def test_what_the_verifier_refuses_is_told_in_its_words(steering: Callable[..., SkLookup]) -> None:
    with pytest.raises(OSError, match=r"cannot load a program: .*R0"):
        bpf.load_sk_lookup(assemble([Op(bpf.EXIT)]))


# -- which connections -----------------------------------------------------------------------------------------------


def test_only_the_fixed_address_and_port_are_steered(steering: Callable[..., SkLookup], opened: Opened) -> None:
    """By port alone a daemon on 127.0.0.1 would answer on every address of the host."""
    front, daemon = listener(opened), listener(opened)
    port = front.getsockname()[1]
    other_address = listener(opened, "127.0.0.2", port)
    other_port = listener(opened)
    found = steering(daemon)
    found.listen(front)
    found.steer(target(daemon))
    assert meets(("127.0.0.1", port), front, daemon, other_address) is daemon
    assert meets(("127.0.0.2", port), front, daemon, other_address) is other_address
    assert meets(other_port.getsockname(), front, daemon, other_port) is other_port
    assert meets(daemon.getsockname(), front, daemon) is daemon


def test_every_address_that_is_listened_on_is_steered_until_it_is_given_up(
    steering: Callable[..., SkLookup], opened: Opened
) -> None:
    fronts = [listener(opened, f"127.0.0.{number}") for number in (1, 2, 3)]
    daemon = listener(opened)
    found = steering(daemon)
    found.listen(fronts[0])
    found.listen(fronts[1])
    found.steer(target(daemon))
    found.listen(fronts[2])
    for front in fronts:
        assert meets(front.getsockname(), front, daemon) is daemon
    found.unlisten(fronts[1].getsockname())
    assert meets(fronts[1].getsockname(), fronts[1], daemon) is fronts[1]
    assert meets(fronts[0].getsockname(), fronts[0], daemon) is daemon


def test_a_wildcard_address_stands_for_all_of_its_family(steering: Callable[..., SkLookup], opened: Opened) -> None:
    front, daemon = listener(opened, "0.0.0.0"), listener(opened)
    found = steering(daemon)
    found.listen(front)
    found.steer(target(daemon))
    for host in ("127.0.0.1", "127.9.9.9"):
        assert meets((host, front.getsockname()[1]), front, daemon) is daemon


def test_each_flip_counts_for_the_very_next_connection(steering: Callable[..., SkLookup], opened: Opened) -> None:
    front, first, second = (listener(opened) for _ in range(3))
    found = steering(first, second)
    found.listen(front)
    assert meets(front.getsockname(), front, first, second) is front, "nothing is steered yet"
    for daemon in (first, second, first):
        found.steer(target(daemon))
        assert meets(front.getsockname(), front, first, second) is daemon
    found.steer(None)
    assert meets(front.getsockname(), front, first, second) is front


def test_a_daemon_that_ends_leaves_its_slot_by_itself(steering: Callable[..., SkLookup], opened: Opened) -> None:
    front, daemon = listener(opened), listener(opened)
    found = steering(daemon)
    found.listen(front)
    found.steer(target(daemon))
    assert found.is_in_effect()
    daemon.close()  # were a copy of it open here, clients would wait in a queue that nobody accepts from
    assert meets(front.getsockname(), front) is front
    assert not found.is_in_effect()


def test_what_is_closed_can_begin_anew(steering: Callable[..., SkLookup], opened: Opened) -> None:
    front, daemon = listener(opened), listener(opened)
    found = steering(daemon)
    found.listen(front)
    for _ in range(2):
        found.steer(target(daemon))
        assert meets(front.getsockname(), front, daemon) is daemon
        found.close()
        assert meets(front.getsockname(), front, daemon) is front


def test_it_keeps_no_descriptor_but_its_own_three(steering: Callable[..., SkLookup], opened: Opened) -> None:
    front, daemon = listener(opened), listener(opened)
    found = steering(daemon)
    found.listen(front)
    before = descriptors()
    for _ in range(5):
        found.steer(target(daemon))
    assert len(descriptors() - before) == 3
    found.close()
    assert descriptors() == before


# -- families --------------------------------------------------------------------------------------------------------


def test_each_family_has_a_slot_and_what_a_daemon_does_not_serve_stays_with_the_router(
    steering: Callable[..., SkLookup], opened: Opened
) -> None:
    four, six = listener(opened), listener(opened, "::1")
    daemon_four, daemon_six = listener(opened), listener(opened, "::1")
    found = steering(daemon_four, daemon_six)
    found.listen(four)
    found.listen(six)
    everybody = (four, six, daemon_four, daemon_six)
    found.steer(target(daemon_four))
    assert meets(four.getsockname(), *everybody) is daemon_four
    assert meets(six.getsockname()[:2], *everybody) is six
    found.steer(target(daemon_six))
    assert meets(four.getsockname(), *everybody) is four
    assert meets(six.getsockname()[:2], *everybody) is daemon_six


def test_a_daemon_that_takes_both_families_by_one_socket_gets_both(
    steering: Callable[..., SkLookup], opened: Opened
) -> None:
    four, six = listener(opened), listener(opened, "::1")
    daemon = listener(opened, "::", dualstack_ipv6=True)
    found = steering(daemon)
    found.listen(four)
    found.listen(six)
    found.steer(target(daemon))
    assert meets(six.getsockname()[:2], four, six, daemon) is daemon
    daemon.setblocking(False)
    with socket.create_connection(four.getsockname(), 20) as client:
        accepted = eventually(lambda: _accept(daemon))
        assert accepted
        far, peer = accepted
        far.close()
        assert peer[:2] == (f"::ffff:{client.getsockname()[0]}", client.getsockname()[1])


def _accept(sock: socket.socket) -> tuple[socket.socket, tuple[str, int]] | None:
    with contextlib.suppress(BlockingIOError):
        return sock.accept()
    return None


def test_a_daemon_of_another_family_is_refused_with_the_reason(
    steering: Callable[..., SkLookup], opened: Opened
) -> None:
    front, daemon = listener(opened), listener(opened, "::1")
    found = steering(daemon)
    found.listen(front)
    with pytest.raises(SteeringError, match="ipv6"):
        found.steer(target(daemon))


def test_what_does_not_listen_is_refused(steering: Callable[..., SkLookup], opened: Opened) -> None:
    front, daemon = listener(opened), opened.enter_context(socket.socket())
    daemon.bind(("127.0.0.1", 0))
    found = steering(daemon)
    found.listen(front)
    with pytest.raises(SteeringError, match="does not listen"):
        found.steer(target(daemon))


# -- pins ------------------------------------------------------------------------------------------------------------


def pinned(steering: Callable[..., SkLookup], opened: Opened, home: Path) -> tuple[socket.socket, socket.socket, Pins]:
    """A steering whose router was killed: its descriptors are closed, and nothing else was done."""
    front, daemon = listener(opened), listener(opened)
    pins = pins_of(home, "cache")
    assert pins
    dead = steering(daemon, pins=pins)
    dead.listen(front)
    dead.steer(target(daemon))
    dead.release()
    return front, daemon, pins


def test_what_is_pinned_goes_on_without_a_router_and_ends_when_its_directory_is_removed(
    steering: Callable[..., SkLookup], opened: Opened, home: Path
) -> None:
    front, daemon, pins = pinned(steering, opened, home)
    assert meets(front.getsockname(), front, daemon) is daemon
    assert (pins.directory.stat().st_mode & 0o777, pins.directory.parent.stat().st_mode & 0o777) == (0o700, 0o700)
    pins.remove()
    eventually(lambda: meets(front.getsockname(), front, daemon) is front)
    assert [entry.name for entry in (home / "bpf").iterdir() if not entry.name.endswith(".debug")] == []


def test_the_next_router_takes_it_over_without_a_gap(
    steering: Callable[..., SkLookup], opened: Opened, home: Path
) -> None:
    front, daemon, pins = pinned(steering, opened, home)
    before = (pins.directory / "link").stat().st_ino
    second = listener(opened)
    successor = steering(daemon, second, pins=pins)
    successor.listen(front)
    successor.steer(target(second))
    assert (pins.directory / "link").stat().st_ino == before, "it was made anew, with a gap"
    assert meets(front.getsockname(), front, daemon, second) is second
    successor.close()
    assert not pins.exist()
    assert meets(front.getsockname(), front, daemon, second) is front


def test_a_successor_that_listens_elsewhere_steers_there_alone(
    steering: Callable[..., SkLookup], opened: Opened, home: Path
) -> None:
    front, daemon, pins = pinned(steering, opened, home)
    other = listener(opened)
    successor = steering(daemon, pins=pins)
    successor.listen(other)
    successor.steer(target(daemon))
    assert meets(other.getsockname(), front, daemon, other) is daemon
    assert meets(front.getsockname(), front, daemon, other) is front


def test_a_successor_with_nobody_to_steer_to_ends_it(
    steering: Callable[..., SkLookup], opened: Opened, home: Path
) -> None:
    front, daemon, pins = pinned(steering, opened, home)
    successor = steering(daemon, pins=pins)
    successor.listen(front)
    successor.steer(None)
    assert not pins.exist()
    eventually(lambda: meets(front.getsockname(), front, daemon) is front)


def test_pins_that_are_broken_are_made_anew(steering: Callable[..., SkLookup], opened: Opened, home: Path) -> None:
    front, daemon, pins = pinned(steering, opened, home)
    (pins.directory / "ipv4").unlink()
    successor = steering(daemon, pins=pins)
    successor.listen(front)
    successor.steer(target(daemon))
    assert meets(front.getsockname(), front, daemon) is daemon
    assert sorted(entry.name for entry in pins.directory.iterdir()) == ["ipv4", "ipv6", "link"]


def test_what_was_pinned_in_another_place_before_this_one_is_taken_over_from_there(
    steering: Callable[..., SkLookup], opened: Opened, home: Path
) -> None:
    """As when a home got a bpf filesystem of its own: the old program would go on choosing, before any new one."""
    front, daemon, before = pinned(steering, opened, home)
    second = listener(opened)
    pins = Pins(home / "bpf" / "own" / "cache", (before.directory,))
    successor = steering(daemon, second, pins=pins)
    successor.listen(front)
    successor.steer(target(second))
    assert meets(front.getsockname(), front, daemon, second) is second
    assert pins.exist()
    successor.close()
    assert not pins.exist()
    assert meets(front.getsockname(), front, daemon, second) is front


def test_of_pins_in_two_places_one_is_used_and_the_other_one_ends(
    steering: Callable[..., SkLookup], opened: Opened, home: Path
) -> None:
    front, daemon, before = pinned(steering, opened, home)
    dead = steering(daemon, pins=Pins(home / "bpf" / "own" / "cache"))
    dead.listen(front)
    dead.steer(target(daemon))
    dead.release()
    second = listener(opened)
    successor = steering(daemon, second, pins=Pins(home / "bpf" / "own" / "cache", (before.directory,)))
    successor.listen(front)
    successor.steer(target(second))
    assert not before.exist()
    eventually(lambda: meets(front.getsockname(), front, daemon, second) is second)


def test_another_users_directory_in_the_place_of_pins_is_in_the_way_of_nothing_else(
    steering: Callable[..., SkLookup], opened: Opened, home: Path
) -> None:
    front, daemon = listener(opened), listener(opened)
    pins = pins_of(home, "cache")
    assert pins
    pins.directory.mkdir(parents=True)
    for directory in (pins.directory, pins.directory.parent):
        os.chown(directory, 65534, 65534)
    found = steering(daemon, pins=pins)
    found.listen(front)
    found.steer(target(daemon))
    assert not pins.exist()
    assert meets(front.getsockname(), front, daemon) is daemon
    found.close()
    assert pins.directory.is_dir()


def test_a_directory_that_others_may_write_is_not_trusted_and_steering_goes_on_unpinned(
    steering: Callable[..., SkLookup], opened: Opened, home: Path
) -> None:
    front, daemon = listener(opened), listener(opened)
    pins = pins_of(home, "cache")
    assert pins
    pins.directory.parent.mkdir(mode=0o777)
    pins.directory.parent.chmod(0o777)
    (pins.directory.parent / "theirs").mkdir()
    found = steering(daemon, pins=pins)
    found.listen(front)
    found.steer(target(daemon))
    assert not pins.exist()
    assert meets(front.getsockname(), front, daemon) is daemon


# -- where it cannot run ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [1, 38, 22], ids=["EPERM", "ENOSYS", "EINVAL"])
def test_without_the_right_or_the_kernel_for_it_the_reason_is_said_and_nothing_is_left_open(
    monkeypatch: pytest.MonkeyPatch, opened: Opened, code: int
) -> None:
    def refuse(_command: int, _attr: bytes, what: str) -> int:
        raise OSError(code, f"cannot {what}: {os.strerror(code)}")

    monkeypatch.setattr(bpf, "_bpf", refuse)
    front, daemon = listener(opened), listener(opened)
    found = SkLookup(lambda _: daemon.dup(), None)
    before = descriptors()
    found.listen(front)
    with pytest.raises((OSError, SteeringError)) as caught:
        found.steer(target(daemon))
    assert ("CAP_BPF" in str(caught.value)) == (code == 1)
    assert os.strerror(code) in str(caught.value)
    found.steer(None)
    found.close()
    assert descriptors() == before
    assert os.strerror(code) in sk_lookup.lacking()


def test_a_machine_whose_system_call_is_not_known_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "vax")
    assert "vax" in sk_lookup.lacking()
