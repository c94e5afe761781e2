"""A plane on a loop of its own thread, with plain blocking sockets on both sides of it."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import uvloop

from turnout.planes.plane import Plane, Target
from turnout.planes.policy import Policy
from turnout.planes.relay import Relay
from turnout.planes.stream import Stream

T = TypeVar("T")
PLANES: dict[str, Callable[[asyncio.AbstractEventLoop, Policy], Plane]] = {
    "relay": lambda loop, policy: Relay(loop, policy=policy),
    "stream": lambda loop, policy: Stream(loop, policy=policy),
}


class Stage:
    """The fixed address with a plane behind it. Owns the loop, its thread and the listeners."""

    def __init__(self, kind: str, *, hold_max: int = 64, policy: Policy | None = None) -> None:
        self.front = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.address: tuple[str, int] = self.front.getsockname()
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._sockets: list[socket.socket] = []
        self.plane = self.call(lambda: PLANES[kind](self._loop, policy or Policy(hold_max=hold_max)))
        self.call(lambda: self.plane.add_listener(self.front))

    @property
    def splices(self) -> bool:
        """Whether this plane has a way for bytes that never enter user space."""
        return isinstance(self.plane, Relay)

    def call(self, function: Callable[[], T]) -> T:
        """Run in the plane's thread, and answer what it gave."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(function())
            except BaseException as error:  # noqa: BLE001  # it is raised where it was asked for
                future.set_exception(error)

        self._loop.call_soon_threadsafe(run)
        return future.result(20)

    def soon(self, function: Callable[..., object], *args: object) -> None:
        """Run in the plane's thread, with the next round of its loop."""
        self._loop.call_soon_threadsafe(function, *args)

    def daemon(self, boot_id: str, *, point: bool = True) -> Daemon:
        found = Daemon(boot_id)
        self._sockets.append(found.listener)
        if point:
            self.point_at(found)
        return found

    def point_at(self, daemon: Daemon | None, *, patience_s: float = 20.0) -> None:
        target = daemon.target if daemon else None
        self.call(lambda: self.plane.point_at(target, patience_s=patience_s))

    def client(self, **options: Any) -> socket.socket:
        sock = socket.socket()
        for name, value in options.items():
            sock.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
        self._sockets.append(sock)
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
        asyncio.run_coroutine_threadsafe(_settled(), self._loop).result(20)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)
        self._loop.close()
        self.front.close()
        for sock in self._sockets:
            sock.close()


async def _settled() -> None:
    """Tasks that were cancelled come to their end, as under asyncio.Runner."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.gather(*left, return_exceptions=True)


class Daemon:
    """A listener that a test accepts from by hand."""

    def __init__(self, boot_id: str, address: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        self.listener = socket.create_server(address, backlog=1024)
        self.listener.settimeout(20)
        self.target = Target(boot_id, *self.listener.getsockname())

    def accept(self) -> socket.socket:
        sock, _ = self.listener.accept()
        sock.settimeout(20)
        return sock
