"""Steering without privileges: router and daemons are one SO_REUSEPORT group, and a program chooses the active daemon.

The keeper makes the group and keeps everybody's place (:mod:`turnout.group`); a daemon takes part by a listener that it
was given, or by setting SO_REUSEPORT itself. To switch is one system call, on any listener of the group
(:mod:`turnout.planes.chooser`). What the program says goes on when the router dies; when the active daemon dies, its
place is the router's.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import ClassVar

from turnout.core.slots import slot_of
from turnout.errors import SteeringError
from turnout.planes.chooser import attach, is_shared, let_go
from turnout.planes.front import IsThere
from turnout.planes.plane import Target


class Reuseport:
    """Steers the group at one fixed address. Owns nothing: the listeners are the router's.

    Args:
        is_there: whether a daemon still listens at the fixed address.
        home: answers the place of the router's own listener.
        told: called with the place to which the kernel was told to direct new connections.
    """

    name: ClassVar[str] = "reuseport"

    def __init__(self, is_there: IsThere, home: Callable[[], int], told: Callable[[int], None]) -> None:
        self._is_there = is_there
        self._home = home
        self._told = told
        self._homes: dict[tuple[str, int], socket.socket] = {}
        self._steered: Target | None = None

    def listen(self, sock: socket.socket) -> None:
        """The first one of an address is the router's own, and stays; further ones are its spares."""
        self._homes.setdefault(sock.getsockname()[:2], sock)

    def unlisten(self, address: tuple[str, int]) -> None:
        home = self._homes.pop(address, None)
        if home:
            let_go(home, self._home())

    def steer(self, target: Target | None) -> None:
        if target is None:
            self._steered = None
            for home in self._homes.values():
                let_go(home, self._home())
            self._told(self._home())
            return
        slot = slot_of(target.source)
        if slot is None:
            raise SteeringError("the daemon listens on a port of its own, and not at the fixed address")
        homes = [home for home in self._homes.values() if is_shared(home)]
        if len(homes) != 1 or len(self._homes) != 1:
            raise SteeringError("the fixed address is not shared, or there are several")
        if not self._is_there(target):
            raise SteeringError("the daemon has closed its listener, or has opened another one that is not found yet")
        attach(homes[0], slot)
        self._steered = target
        self._told(slot)

    def stands(self) -> bool:
        return self._steered is not None and self._is_there(self._steered)

    def leave(self) -> None:
        """The program stays as it is: the router that leads says where it points."""
        self._steered = None
        self._homes.clear()

    def close(self) -> None:
        self._steered = None
        for home in self._homes.values():
            with contextlib.suppress(OSError):
                let_go(home, self._home())
