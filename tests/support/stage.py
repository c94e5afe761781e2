"""A plane on a loop of its own thread, with plain blocking sockets on both sides of it."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

import msgspec
import uvloop

from turnout.core.connection_policy import Policy
from turnout.core.model import Daemon as Registered
from turnout.core.slots import source_of
from turnout.planes.direct import sk_lookup
from turnout.planes.direct.doors import Doors
from turnout.planes.direct.plane import Direct
from turnout.planes.direct.reuseport import Reuseport
from turnout.planes.plane import Plane, PlaneOptions, Upstream, UpstreamChecks
from turnout.planes.relay import Relay
from turnout.planes.stream.plane import Stream
from turnout.reuseport.feature_test import group_works
from turnout.reuseport.group import Group
from turnout.reuseport.program import attach
from turnout.router.kernel_view import KernelView, SharedAddress
from turnout.router.socket_owners import Processes, own_ends
from turnout.system.net.sockets import descriptors_of
from turnout.system.process import identify

T = TypeVar("T")


class Stand(UpstreamChecks):
    """What a plane may need beside its loop: where the stage's daemons are, and whose connections there are."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.daemons: dict[str, Registered] = {}
        self.boots: dict[int, str] = {}  # of listeners and accepted connections, by inode
        self.listeners: dict[int, socket.socket] = {}  # of daemons, by inode: a group keeps a copy of what they close
        self.group: Group | None = None
        self.on_change: Callable[[], None] = lambda: None
        self.relays: Callable[[str], int] = lambda _boot_id: 0
        self.clients: list[socket.socket] = []
        self.port = address[1]
        self.ended: set[str] = set()  # boots whose process is to count as ended
        self.doors = self.open_doors = Doors()
        self.kernel = KernelView(
            lambda: [address],
            lambda: self.daemons,
            owners=self,
            shared=SharedAddress(
                relays=lambda boot_id: self.relays(boot_id),  # noqa: PLW0108  # the stage sets it later
                relayed_from=self.relayed_from,
            ),
            fresh_s=0,
        )

    def relayed_from(self) -> Collection[tuple[str, int]]:
        """The clients of a stage are in this very process, too."""
        clients = {sock.getsockname() for sock in self.clients if sock.fileno() >= 0}
        return {*own_ends([self.port])} - clients

    def of(self, inodes: Collection[int]) -> Mapping[int, Sequence[tuple[str, int, int]]]:
        """Most daemons of a stage are this very process: who accepted what only they can tell."""
        pid = os.getpid()
        found: dict[int, Sequence[tuple[str, int, int]]] = {
            inode: [(self.boots[inode], pid, fd)]
            for inode, fd in descriptors_of(pid)
            if inode in inodes and inode in self.boots and not self.has_closed(inode)
        }
        others = {boot_id: daemon for boot_id, daemon in self.daemons.items() if daemon.pid != pid}
        return found | dict(Processes(lambda: others).of(inodes))

    def has(self, boot_id: str, inodes: Collection[int]) -> bool:
        """Asked for each connection: not by a walk through the descriptors of a process that has thousands."""
        if any(self.boots.get(inode) == boot_id and not self.has_closed(inode) for inode in inodes):
            return True
        return any(holder[0] == boot_id for holders in self.of(inodes).values() for holder in holders)

    def hides(self, boot_id: str) -> bool:
        return False

    def is_there(self, upstream: Upstream) -> bool:
        return self.kernel.is_there(upstream)

    def has_ended(self, upstream: Upstream) -> bool:
        return upstream.boot_id in self.ended

    def room(self, upstream: Upstream) -> int | None:
        return self.kernel.room(upstream)

    def knows(self, sock: socket.socket, boot_id: str) -> None:
        self.boots[os.fstat(sock.fileno()).st_ino] = boot_id

    def has_closed(self, inode: int) -> bool:
        """Whether a daemon has closed its listener."""
        return inode in self.listeners and self.listeners[inode].fileno() < 0

    def home(self) -> int:
        return self.group.home if self.group else 0

    def indexes_of(self, boot_id: str) -> Sequence[int]:
        return self.group.indexes_of(boot_id) if self.group else ()

    def set_selected(self, indexes: Sequence[int]) -> None:
        if self.group:
            self.group.seen(self.group.version, indexes)


def _sk_lookup(loop: asyncio.AbstractEventLoop, policy: Policy, stand: Stand) -> Plane:
    steering = sk_lookup.SkLookup(stand.kernel.listener_of, None)
    return Direct(loop, Relay(loop, PlaneOptions(policy, stand)), steering, stand.kernel, policy=policy)


def _reuseport(loop: asyncio.AbstractEventLoop, policy: Policy, stand: Stand) -> Plane:
    steering = Reuseport(stand.kernel.is_there, stand, stand.open_doors)
    relay = Relay(loop, PlaneOptions(policy, stand))
    return Direct(loop, relay, steering, stand.kernel, policy=policy)


PLANES: dict[str, Callable[[asyncio.AbstractEventLoop, Policy, Stand], Plane]] = {
    "relay": lambda loop, policy, stand: Relay(loop, PlaneOptions(policy, stand)),
    "stream": lambda loop, policy, stand: Stream(loop, PlaneOptions(policy, stand)),
    "reuseport": _reuseport,
    "sk_lookup": _sk_lookup,
}
RELAYS = ("relay", "stream")  # through which all bytes pass
NEEDS: dict[str, Callable[[], str]] = {"reuseport": lambda: group_works(attach), "sk_lookup": sk_lookup.lacking}


class Stage:
    """The fixed address with a plane behind it. Owns the loop, its thread and the listeners."""

    def __init__(self, kind: str, *, hold_max: int = 64, policy: Policy | None = None) -> None:
        self.front = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.address: tuple[str, int] = self.front.getsockname()
        self.stand = Stand(self.address)
        self.doors = self.stand.open_doors
        self.loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self._sockets: list[socket.socket] = []
        self._spares = {self.front}
        self.group = self.stand.group = Group.of(self.front) if kind == "reuseport" else None
        self.policy = policy or Policy(hold_max=hold_max)
        self.plane = self.call(lambda: PLANES[kind](self.loop, self.policy, self.stand))
        self.stand.relays = self.plane.relayed
        self.call(lambda: self.plane.add_listener(self.front))

    @property
    def splices(self) -> bool:
        """Whether this plane has a way for bytes that never enter user space."""
        return isinstance(self.plane, Relay)

    @property
    def counts_bytes(self) -> bool:
        """Whether all bytes pass through it, so that it knows those of connections that have ended."""
        return not isinstance(self.plane, Direct)

    def call(self, function: Callable[[], T]) -> T:
        """Run in the plane's thread, and answer what it gave."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(function())
            except BaseException as error:  # noqa: BLE001  # it is raised where it was asked for
                future.set_exception(error)

        self.loop.call_soon_threadsafe(run)
        return future.result(20)

    def soon(self, function: Callable[..., object], *args: object) -> None:
        """Run in the plane's thread, with the next round of its loop."""
        self.loop.call_soon_threadsafe(function, *args)

    def daemon(self, boot_id: str, *, point: bool = True) -> Daemon:
        self.take_notice()
        found = Daemon(boot_id, stand=self.stand, group=self.group)
        if self.group:
            self._take_spares(self.group)
        self._sockets.append(found.listener)
        if point:
            self.set_upstream(found)
        return found

    @property
    def listener(self) -> socket.socket:
        """A listener that the plane accepts from."""
        return self.group.router_listeners[0] if self.group else self.front

    def end(self, daemon: Daemon) -> None:
        """As the end of a daemon's process: its listener is closed, and the keeper takes notice."""
        daemon.listener.close()
        self.take_notice()

    def reborn(self, dead: Daemon) -> Daemon:
        """A daemon in place of one whose listener was closed: at its port, or at the fixed address again."""
        if self.group:
            found = self.daemon(dead.target.boot_id, point=False)
            found.target = msgspec.structs.replace(found.target, proxy_protocol=dead.target.proxy_protocol)
            self.set_upstream(found)
            return found
        found = Daemon(dead.target.boot_id, (dead.target.host, dead.target.port), stand=self.stand)
        self._sockets.append(found.listener)
        return found

    def joined(self, boot_id: str) -> tuple[socket.socket, Upstream]:
        """A listener for a daemon in a process of its own that shares the address."""
        assert self.group
        self.take_notice()
        listener, index = self.group.join(boot_id)
        self._take_spares(self.group)
        return listener, Upstream(boot_id, *self.address, source=source_of(index))

    def take_notice(self) -> None:
        """Of who left: keeper and router do so as soon as a daemon has ended."""
        if self.group is None:
            return
        closed = {place.boot_id for place in self.group.places if self.stand.has_closed(place.inode)}
        for boot_id in closed:
            self.group.release(boot_id)
        if self.group.look() or closed:
            self._take_spares(self.group)

    def _take_spares(self, group: Group) -> None:
        for spare in group.router_listeners:
            if spare not in self._spares:
                self._spares.add(spare)
                self.call(partial(self.plane.add_listener, spare))
        self.call(self.stand.on_change)

    def set_upstream(self, daemon: Daemon | None, *, patience_s: float = 20.0) -> None:
        target = daemon.target if daemon else None
        self.call(lambda: self.plane.set_upstream(target, patience_s=patience_s))

    def client(self, **options: Any) -> socket.socket:
        sock = socket.socket()
        for name, value in options.items():
            sock.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
        self._sockets.append(sock)
        self.stand.clients.append(sock)
        sock.settimeout(20)
        sock.connect(self.address)
        return sock

    def pair(self, daemon: Daemon) -> tuple[socket.socket, socket.socket]:
        """A client's socket and the daemon's end of the same connection."""
        client = self.client()
        far = daemon.accept()
        self._sockets.append(far)
        return client, far

    def close(self) -> None:
        self.call(self.plane.close)
        asyncio.run_coroutine_threadsafe(_settled(), self.loop).result(20)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(20)
        self.loop.close()
        if self.group:
            self.group.close()
        self.front.close()
        for sock in self._sockets:
            sock.close()


async def _settled() -> None:
    """Tasks that were cancelled come to their end, as under asyncio.Runner."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.gather(*left, return_exceptions=True)


class Daemon:
    """A listener that a test accepts from by hand."""

    def __init__(
        self,
        boot_id: str,
        address: tuple[str, int] = ("127.0.0.1", 0),
        *,
        stand: Stand | None = None,
        group: Group | None = None,
    ) -> None:
        source = ""
        if group:
            self.listener, index = group.join(boot_id)
            source = source_of(index)
        else:
            self.listener = socket.create_server(address, backlog=1024)
        self.listener.settimeout(20)
        host, port = self.listener.getsockname()
        self.target = Upstream(boot_id, host, port, source=source)
        self._stand = stand
        if stand:
            stand.knows(self.listener, boot_id)
            stand.listeners[os.fstat(self.listener.fileno()).st_ino] = self.listener
            stand.daemons[boot_id] = Registered(
                boot_id, host=host, port=port, identity=identify(os.getpid()), source=source
            )

    def accept(self) -> socket.socket:
        sock, _ = self.listener.accept()
        sock.settimeout(20)
        if self._stand:
            self._stand.knows(sock, self.target.boot_id)
        return sock
