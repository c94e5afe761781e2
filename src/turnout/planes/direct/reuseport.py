"""Steering without privileges: router and daemons are one SO_REUSEPORT group, and a program selects the active daemon.

The keeper makes the group and keeps the index of each member (:mod:`turnout.reuseport.group`); a daemon takes part by a
listener that it was given. To switch is one system call, on any listener of the group
(:mod:`turnout.reuseport.program`). The program stays when the router dies; when the active daemon dies, its index is
the router's.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import ClassVar

from turnout.core.slots import index_of
from turnout.errors import SteeringError
from turnout.planes.plane import Upstream
from turnout.reuseport.program import attach, is_shared, let_go


class Reuseport:
    """Steers the group at one fixed address. Owns nothing: the listeners are the router's.

    Args:
        is_there: whether a daemon still listens at the fixed address.
        router_index: answers the index of the router's own listener.
        on_steered: called with the index to which the kernel directs new connections from now on.
    """

    name: ClassVar[str] = "reuseport"

    def __init__(
        self, is_there: Callable[[Upstream], bool], router_index: Callable[[], int], on_steered: Callable[[int], None]
    ) -> None:
        self._is_there = is_there
        self._router_index = router_index
        self._on_steered = on_steered
        self._listeners: dict[tuple[str, int], socket.socket] = {}
        self._steered: Upstream | None = None

    def listen(self, sock: socket.socket) -> None:
        """The first one of an address is the router's own, and stays; further ones are its spares."""
        self._listeners.setdefault(sock.getsockname()[:2], sock)

    def unlisten(self, address: tuple[str, int]) -> None:
        listener = self._listeners.pop(address, None)
        if listener:
            let_go(listener, self._router_index())

    def steer(self, upstream: Upstream | None) -> None:
        if upstream is None:
            self._steered = None
            for listener in self._listeners.values():
                let_go(listener, self._router_index())
            self._on_steered(self._router_index())
            return
        index = index_of(upstream.source)
        if index is None:
            raise SteeringError("the daemon listens on a port of its own, and not at the fixed address")
        shared = [listener for listener in self._listeners.values() if is_shared(listener)]
        if len(shared) != 1 or len(self._listeners) != 1:
            raise SteeringError("the fixed address is not shared, or there are several")
        if not self._is_there(upstream):
            raise SteeringError("the daemon has closed its listener, or has opened another one that is not found yet")
        attach(shared[0], index)
        self._steered = upstream
        self._on_steered(index)

    def is_in_effect(self) -> bool:
        return self._steered is not None and self._is_there(self._steered)

    def release(self) -> None:
        """The program stays as it is: the router that leads decides where it points."""
        self._steered = None
        self._listeners.clear()

    def close(self) -> None:
        self._steered = None
        for listener in self._listeners.values():
            with contextlib.suppress(OSError):
                let_go(listener, self._router_index())
