"""The keeper's control socket and its peers. Standard library only."""

from __future__ import annotations

import os
import selectors
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from turnout.errors import ProtocolError
from turnout.system import control_channel
from turnout.system.control_channel import Channel, Message
from turnout.system.control_listener import ControlListener, Loop
from turnout.system.files import name_of, remove
from turnout.system.own_log import log_line

MAX_CLIENTS: Final = 64


class KeeperSocket:
    """Owns the socket and the channels; the selector is the keeper's.

    The boundary to the peers: what one of them sends, or does not take, ends its own connection and nothing else.

    Args:
        selector: where they are registered, each with what is to be called.
    """

    def __init__(
        self,
        path: Path,
        selector: selectors.BaseSelector,
        after: Callable[[float, Callable[[], None]], None],
    ) -> None:
        self._path = path
        self._selector = selector
        self._channels: set[Channel] = set()
        self._on_message: Callable[[Channel, Message, list[int]], None]
        self._on_closed: Callable[[Channel], None]
        self._is_router: Callable[[int], bool]
        loop = Loop(lambda fd, act: selector.register(fd, selectors.EVENT_READ, act), selector.unregister, after)
        self._listener = ControlListener(
            control_channel.listen(path), loop, self._take_channel, _say, self._may_send_fds
        )
        self._name = name_of(path)

    def serve(
        self,
        on_message: Callable[[Channel, Message, list[int]], None],
        on_closed: Callable[[Channel], None],
        is_router: Callable[[int], bool],
    ) -> None:
        """Set what is called; to be done before the selector is first waited for.

        Args:
            on_message: gets each message, with the descriptors that came along; those are its from there on.
            on_closed: called with a channel that was closed, by either side.
            is_router: whether the process with this pid is a router of this keeper; no other peer may send any.
        """
        self._on_message, self._on_closed, self._is_router = on_message, on_closed, is_router

    def send(self, channel: Channel, message: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
        """Send, unless the channel is closed already; one that does not take it is dropped."""
        if channel not in self._channels:
            return
        try:
            channel.send(message, fds)
        except (OSError, ProtocolError) as error:
            _say(f"pid {channel.peer_pid} does not read its answer: {error}")
            self.drop(channel)

    def drop(self, channel: Channel) -> None:
        if channel in self._channels:
            self._channels.discard(channel)
            self._selector.unregister(channel.fileno())
            channel.close()
            self._on_closed(channel)

    def restore(self) -> bool:
        """Bind the socket again where its name is gone or names another file; whether that was needed and done.

        Raises:
            StateUnwritableError: the name is gone and cannot be made.
        """
        if name_of(self._path) == self._name:
            return False
        self._listener.replace(control_channel.listen(self._path))
        self._name = name_of(self._path)
        return True

    def close(self) -> None:
        for channel in list(self._channels):
            self.drop(channel)
        self._listener.close()
        if name_of(self._path) == self._name:
            remove(self._path)

    def _may_send_fds(self, pid: int) -> bool:
        return self._is_router(pid)

    def _take_channel(self, channel: Channel) -> None:
        if len(self._channels) >= MAX_CLIENTS and not self._is_router(channel.peer_pid):
            channel.close()
            return
        try:
            self._selector.register(channel.fileno(), selectors.EVENT_READ, lambda: self._read(channel))
        except OSError as error:
            _say(f"cannot watch a connection: {error.strerror}")
            channel.close()
            return
        self._channels.add(channel)

    def _read(self, channel: Channel) -> None:
        if channel not in self._channels:  # dropped in the same round of the loop
            return
        messages: deque[tuple[Message, list[int]]] = deque()
        try:
            messages.extend(channel.receive())
            while messages:
                self._on_message(channel, *messages.popleft())
        except (EOFError, ConnectionError):
            self.drop(channel)
        except Exception as error:  # noqa: BLE001  # whatever a peer brings about ends its connection, not the keeper
            _say(f"pid {channel.peer_pid} was cut off: {type(error).__name__}: {error}"[:500])
            self.drop(channel)
        finally:
            for _, fds in messages:
                for fd in fds:
                    os.close(fd)


def _say(text: str) -> None:
    log_line(f"keeper socket: {text}")
