"""The keeper's side of an activation, from the socket pair on; the shim and the child are played here."""

from __future__ import annotations

import errno
import os
import resource
import selectors
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from turnout.keeper.activations import Activations
from turnout.keeper.daemon_listeners import DaemonListeners
from turnout.keeper.service_listeners import ServiceListeners
from turnout.state.home import Home
from turnout.system.process import identify
from turnout.system.spawn_record import SpawnRecord


class Scene:
    """Activations in a loop that is turned by hand, and the shim's copies of what it holds."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.said: list[str] = []
        self.later: list[Callable[[], None]] = []
        self.served: dict[str, ServiceListeners] = {}
        listeners = DaemonListeners(
            Home(Path("/nowhere")),
            self.served,
            lambda _name: None,
            lambda _boot: True,
            lambda _boot: (),
            self._after,
            self.said.append,
        )
        self.activations = Activations(self.selector, listeners, self._after, self.said.append)

    def _after(self, _delay_s: float, action: Callable[[], None]) -> None:
        self.later.append(action)

    def start(self, boot_id: str = "b1", *, shares: bool = False) -> tuple[socket.socket, tuple[int, ...]]:
        """A daemon is started; its shim's copy of the socket in which its child sends, and all that the shim holds."""
        held = self.activations.prepare("svc", boot_id, given=40001, serving=0, shares=shares)
        copies = tuple(map(os.dup, held))
        self.activations.started(boot_id, held, runs=True)
        return socket.socket(fileno=os.dup(copies[1])), copies

    def turn(self) -> None:
        for key, _ in self.selector.select(0):
            key.data()

    @property
    def watched(self) -> int:
        return len(self.selector.get_map())


def open_fds() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def scene() -> Iterator[Scene]:
    scene = Scene()
    yield scene
    scene.activations.close()
    scene.selector.close()


def ends(sending: socket.socket, copies: tuple[int, ...]) -> None:
    """The shim ends, and with it its descriptors."""
    sending.close()
    for fd in copies:
        os.close(fd)


@pytest.mark.parametrize("said", [b"", b"%d" % errno.EBUSY], ids=["it died before", "its filter was refused"])
def test_a_daemon_without_a_filter_leaves_no_descriptor_behind(scene: Scene, said: bytes) -> None:
    before = open_fds()
    sending, copies = scene.start()
    if said:
        sending.send(said)
        scene.turn()
        assert "busy" in scene.activations.binds_of("b1")["trouble"]
    ends(sending, copies)
    scene.turn()
    assert (scene.watched, open_fds()) == (0, before)


def test_a_descriptor_that_found_no_room_is_taken_later(scene: Scene) -> None:
    """The daemon's binds wait meanwhile, and the reason is known."""
    sending, copies = scene.start()
    theirs, ours = os.pipe()
    socket.send_fds(sending, [b"f"], [theirs])
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            scene.turn()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert "Too many open files" in scene.activations.binds_of("b1")["trouble"]
    scene.turn()
    assert scene.activations.binds_of("b1")["trouble"] == ""
    os.close(ours)  # the last process under the filter ends
    scene.turn()
    assert scene.watched == 0
    os.close(theirs)
    ends(sending, copies)


def test_an_event_of_a_boot_that_was_forgotten_in_the_same_round_does_nothing(scene: Scene) -> None:
    """The second attempt of a start has the same boot id, and may have the same descriptors."""
    sending, copies = scene.start()
    theirs, ours = os.pipe()
    socket.send_fds(sending, [b"f"], [theirs])
    begins = [key.data for key, _ in scene.selector.select(0)]
    scene.turn()
    os.close(ours)
    due = [key.data for key, _ in scene.selector.select(0)]
    again, more_copies = scene.start()
    for action in (*begins, *due):
        action()
    assert scene.watched == 1
    os.close(theirs)
    ends(sending, copies)
    ends(again, more_copies)


def test_a_shim_that_is_gone_is_no_trouble_and_a_record_that_lies_costs_no_descriptor(scene: Scene) -> None:
    sending, copies = scene.start()
    me = identify(os.getpid())
    record = SpawnRecord("b2", "svc", me, "/log", 0.0, shim=me, held_fds=copies)
    before = open_fds()
    scene.activations.adopt(replace(record, shim=replace(me, start_ticks=me.start_ticks - 1)))
    assert (scene.said, open_fds()) == ([], before)
    for lie in (copies[:1], copies + copies, (copies[0], copies[1], copies[0]), (copies[2], copies[1], copies[2])):
        scene.activations.adopt(replace(record, held_fds=lie))
        assert open_fds() == before
    assert len(scene.said) == 4
    scene.activations.adopt(record)
    assert scene.watched == 2
    ends(sending, copies)


@pytest.mark.parametrize("comes", [True, False])
def test_a_daemon_that_shares_the_address_waits_until_a_router_has_brought_it(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, comes: bool
) -> None:
    """A new keeper has no listeners at first, and where the address is not known the bind would go elsewhere."""
    sending, copies = scene.start(shares=True)
    theirs, ours = os.pipe()
    socket.send_fds(sending, [b"f"], [theirs])
    me = identify(os.getpid())
    scene.activations.forget("b1")
    scene.activations.adopt(SpawnRecord("b2", "svc", me, "/log", 0.0, shim=me, held_fds=copies))
    for _ in range(3):
        scene.turn()
        assert scene.watched == 0
        scene.later.pop()()
    if comes:
        scene.served["svc"] = ServiceListeners([], {})
    else:
        monkeypatch.setattr(time, "monotonic", lambda: 1e12)
    scene.turn()
    assert (scene.watched, scene.later) == (1, []), "its notifications are"
    os.close(ours)
    os.close(theirs)
    ends(sending, copies)
