"""Steering without privileges: router and daemons are one SO_REUSEPORT group, and a program selects the active daemon.

The keeper makes the group and keeps the index of each member (:mod:`turnout.reuseport.group`). To switch is one system
call, on any listener of the group (:mod:`turnout.reuseport.program`). The program stays when the router dies; what
would come to a daemon that left the group comes to the router.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol

from turnout.errors import SteeringError
from turnout.planes.direct.doors import Doors
from turnout.planes.plane import Upstream
from turnout.reuseport.program import attach, is_shared, let_go
from turnout.system.net.tcp import listens


class Members(Protocol):
    """The group at the fixed address, as the keeper has it."""

    on_change: Callable[[], None]  # called when an index has changed

    def home(self) -> int:
        """The index at which the router gets connections that go to no daemon."""
        ...

    def indexes_of(self, boot_id: str) -> Sequence[int]:
        """The indexes of a daemon's listeners; empty: it has none."""
        ...

    def set_selected(self, indexes: Sequence[int]) -> None:
        """The kernel directs new connections to these indexes from now on."""
        ...


class Reuseport:
    """Steers the group at one fixed address. Owns nothing: the listeners are the router's.

    Args:
        is_there: whether a daemon still listens at the fixed address.
        members: the group.
        doors: connections that the kernel lets name a member.
    """

    name: ClassVar[str] = "reuseport"

    def __init__(self, is_there: Callable[[Upstream], bool], members: Members, doors: Doors) -> None:
        self._is_there = is_there
        self._members = members
        self._doors = doors
        self._listeners: list[socket.socket] = []
        self._steered: Upstream | None = None
        members.on_change = self._renew

    def listen(self, sock: socket.socket) -> None:
        self._listeners = [*self._living(), sock]

    def unlisten(self, address: tuple[str, int]) -> None:
        there = [sock for sock in self._living() if sock.getsockname()[:2] == address]
        self._listeners = [sock for sock in self._living() if sock not in there]
        self._let_go(there)

    def steer(self, upstream: Upstream | None) -> None:
        self._doors.renew = self._attach
        living = self._living()
        if upstream is None:
            self._steered = None
            self._let_go(living)
            self._members.set_selected([self._members.home()])
            return
        indexes = self._members.indexes_of(upstream.boot_id)
        if not indexes:
            raise SteeringError("the daemon listens on a port of its own, and not at the fixed address")
        if not living or not is_shared(living[0]) or len({sock.getsockname() for sock in living}) != 1:
            raise SteeringError("the fixed address is not shared, or there are several")
        if not self._is_there(upstream):
            raise SteeringError("the daemon has closed its listener, or has opened another one that is not found yet")
        attach(living[0], indexes, self._doors.all)
        self._steered = upstream
        self._members.set_selected(indexes)

    def is_in_effect(self) -> bool:
        return self._steered is not None and self._is_there(self._steered)

    def release(self) -> None:
        """The program stays as it is: the router that leads decides where it points."""
        self._steered, self._doors.renew = None, None
        self._doors.have_moved = True
        self._listeners.clear()

    def close(self) -> None:
        self._steered, self._doors.renew = None, None
        with contextlib.suppress(OSError):
            self._let_go(self._living())

    def _renew(self) -> None:
        """An index has changed: what was selected has the same listeners, at other indexes or with others beside it."""
        if self._doors.renew:
            try:
                self.steer(self._steered)
            except (OSError, SteeringError):
                with contextlib.suppress(OSError):
                    self.steer(None)  # its plane looks again in a moment

    def _attach(self) -> None:
        """Have the kernel know the doors. Raises OSError."""
        living = self._living()
        indexes = self._members.indexes_of(self._steered.boot_id) if self._steered else ()
        if indexes and living:
            attach(living[0], indexes, self._doors.all)
        else:
            self._let_go(living)

    def _let_go(self, listeners: Sequence[socket.socket]) -> None:
        for sock in listeners:
            if is_shared(sock):
                let_go(sock, self._members.home(), self._doors.all)
                return

    def _living(self) -> list[socket.socket]:
        """The router's listeners that the keeper has not shut down; any of them will do to attach a program."""
        return [sock for sock in self._listeners if sock.fileno() >= 0 and listens(sock)]
