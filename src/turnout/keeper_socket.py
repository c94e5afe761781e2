"""The keeper's control socket and everybody who is connected to it. Standard library only."""

from __future__ import annotations

import selectors
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from turnout.errors import ProtocolError
from turnout.logfile import log_line
from turnout.system import control
from turnout.system.control import Channel, Message

MAX_CLIENTS: Final = 64


class KeeperSocket:
    """Owns the socket and the channels; the selector is the keeper's.

    Args:
        path: of the socket.
        selector: where they are registered, each with what is to be called.
        take: gets each message, with the descriptors that came along; those are its from there on.
        lost: told of a channel that was closed, by whichever side.
    """

    def __init__(
        self,
        path: Path,
        selector: selectors.BaseSelector,
        take: Callable[[Channel, Message, list[int]], None],
        lost: Callable[[Channel], None],
    ) -> None:
        self._path = path
        self._selector = selector
        self._take = take
        self._lost = lost
        self._channels: set[Channel] = set()
        self._socket = control.listen(path)
        selector.register(self._socket, selectors.EVENT_READ, self._accept)

    def send(self, channel: Channel, message: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
        """Send, unless the channel is closed already; one that does not take it is dropped."""
        if channel not in self._channels:
            return
        try:
            channel.send(message, fds)
        except OSError:
            self.drop(channel)

    def drop(self, channel: Channel) -> None:
        if channel in self._channels:
            self._channels.discard(channel)
            self._selector.unregister(channel.fileno())
            channel.close()
            self._lost(channel)

    def close(self) -> None:
        for channel in list(self._channels):
            self.drop(channel)
        self._selector.unregister(self._socket)
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        channel = control.accept(self._socket, on_stranger=_turned_away)
        if channel is None:
            return
        if len(self._channels) >= MAX_CLIENTS:
            channel.close()
            return
        self._channels.add(channel)
        self._selector.register(channel.fileno(), selectors.EVENT_READ, lambda: self._read(channel))

    def _read(self, channel: Channel) -> None:
        try:
            messages = channel.receive()
        except (EOFError, OSError, ProtocolError):
            self.drop(channel)
            return
        for message, fds in messages:
            self._take(channel, message, fds)


def _turned_away(pid: int, uid: int) -> None:
    log_line(f"keeper socket: pid {pid} of uid {uid} was turned away: it is another user's")
