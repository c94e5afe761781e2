"""Accepts control connections, for the keeper's selector and the router's event loop. Standard library only."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass

from turnout.system import control_channel
from turnout.system.control_channel import ACCEPT_PAUSE_S, Channel


@dataclass(frozen=True, slots=True)
class Loop:
    """What a loop does for the listener.

    Args:
        watch: calls an action whenever a descriptor is readable.
        unwatch: ends that.
        after: calls an action once, after so many seconds.
    """

    watch: Callable[[int, Callable[[], None]], object]
    unwatch: Callable[[int], object]
    after: Callable[[float, Callable[[], None]], object]


class ControlListener:
    """Accepts on a control socket, and pauses where the system lacks a descriptor or memory. Owns the socket.

    Args:
        sock: what :func:`turnout.system.control_channel.listen` made.
        loop: the process' loop.
        take: gets each channel, which is its from there on.
        say: takes a line for the log.
        may_send_fds: whether the process with this pid may send descriptors.
    """

    def __init__(
        self,
        sock: socket.socket,
        loop: Loop,
        take: Callable[[Channel], None],
        say: Callable[[str], None],
        may_send_fds: Callable[[int], bool] = lambda _pid: False,
    ) -> None:
        self._sock = sock
        self._loop = loop
        self._take = take
        self._say = say
        self._may_send_fds = may_send_fds
        self._accepts = False
        self._resume()

    def replace(self, sock: socket.socket) -> None:
        """Accept on this socket from now on, since the name of the previous socket was removed."""
        self.close()
        self._sock = sock
        self._resume()

    def close(self) -> None:
        self._pause()
        self._sock.close()

    def _accept(self) -> None:
        try:
            channel = control_channel.accept(self._sock, on_stranger=self._turned_away, may_send_fds=self._may_send_fds)
        except OSError as error:  # no descriptor, no memory: the socket stays readable, and must not be asked again now
            self._say(f"cannot accept: {error.strerror}")
            self._pause()
            self._loop.after(ACCEPT_PAUSE_S, self._resume)
            return
        if channel is not None:
            self._take(channel)

    def _pause(self) -> None:
        if self._accepts:
            self._loop.unwatch(self._sock.fileno())
            self._accepts = False

    def _resume(self) -> None:
        if not self._accepts and self._sock.fileno() >= 0:
            try:
                self._loop.watch(self._sock.fileno(), self._accept)
            except OSError as error:  # epoll_ctl(2): ENOMEM, ENOSPC. Left unwatched it would never be asked again
                self._say(f"cannot watch the socket: {error.strerror}")
                self._loop.after(ACCEPT_PAUSE_S, self._resume)
                return
            self._accepts = True

    def _turned_away(self, pid: int, uid: int) -> None:
        self._say(f"pid {pid} of uid {uid} was turned away: it is another user's")
