"""The router's admin socket: ask for status, and wait until a revision is applied. Nothing is changed through it."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from turnout.errors import ProtocolError
from turnout.system.control_channel import Channel, Message, number_of
from turnout.system.control_listener import ControlListener, Loop
from turnout.system.home_identity import HomeIdentity

if TYPE_CHECKING:  # the router has it; a verb that only asks is quick without
    import asyncio

MAX_CLIENTS: Final = 256
UNREAD_S: Final = 10.0  # a peer that has not read its answer by then is cut off
UNREAD_MOST: Final = 16  # peers with an unread answer, each of which takes 4 MiB at most
MOST_REVISION: Final = (1 << 63) - 1
SHOWN_CHARS: Final = 80
log = logging.getLogger("turnout.router")
Reply = Callable[[Mapping[str, Any]], None]


class Answers(Protocol):
    """What the router answers from."""

    def status(self) -> Mapping[str, Any]: ...
    def drains(self, service: str) -> Sequence[Mapping[str, Any]]:
        """What drains and why it is still there. Raises KeyError as below."""
        ...

    def open_door(self, service: str, source: str, port: int) -> Callable[[], None]:
        """Let the connection from there reach a daemon of its choice; answers what ends that.

        Raises:
            KeyError: as below.
            OSError: it cannot, and why.
        """
        ...

    def when_applied(self, service: str, revision: int, reply: Callable[[int], None]) -> None:
        """Look at the registry now, and call ``reply`` with the applied revision once it is ``revision`` or more.

        Raises:
            KeyError: the router does not serve ``service``.
        """


class AdminServer:
    """Serves the admin socket on the router's loop. Owns the listening socket and the channels.

    No answer waits for its peer: what the peer has no room for is kept, and the peer asks nothing more until it has
    read it.

    Args:
        sock: what :func:`turnout.system.control_channel.listen` made.
        home: the home directory, which a question may name; None: it could not be looked at.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, sock: socket.socket, home: HomeIdentity | None, answers: Answers
    ) -> None:
        self._loop = loop
        self._answers = answers
        self._channels: set[Channel] = set()
        self._doors: dict[Channel, Callable[[], None]] = {}  # what shuts the door that was opened over a channel
        self._unread: dict[Channel, asyncio.TimerHandle] = {}  # peers that have an answer to read, with their deadlines
        self._home = home
        accepting = Loop(loop.add_reader, loop.remove_reader, loop.call_later)
        self.listener = ControlListener(sock, accepting, self._take, _say)

    def close(self) -> None:
        self.listener.close()
        for channel in list(self._channels):
            self._drop(channel)

    def _take(self, channel: Channel) -> None:
        if len(self._channels) >= MAX_CLIENTS:
            channel.close()
            return
        self._channels.add(channel)
        self._loop.add_reader(channel.fileno(), self._read, channel)

    def _read(self, channel: Channel) -> None:
        """The boundary to the peers: an unusable message, or an answer that is not read, ends that connection alone."""
        try:
            for message, _ in channel.receive():
                if channel in self._channels:
                    self._answer(channel, message)
        except (EOFError, ConnectionError):
            self._drop(channel)
        except Exception as error:  # noqa: BLE001  # an error that a peer causes ends its connection, not the router
            log.warning("admin socket: pid %d was cut off: %.200r", channel.peer_pid, error)
            self._drop(channel)

    def _answer(self, channel: Channel, message: Message) -> None:
        number = number_of(message)

        def reply(answer: Mapping[str, Any]) -> None:
            if channel in self._channels:
                self._send(channel, {**answer, "re": number})

        home = HomeIdentity.loads(message.get("home"))
        if home and home != self._home:
            reply({"ok": False, "message": "this router belongs to another home"})
            return
        if message.get("op") == "door":
            self._open_door(channel, message, reply)
        else:
            answer_question(message, self._answers, reply)

    def _open_door(self, channel: Channel, message: Message, reply: Reply) -> None:
        """For a verb that checks a daemon. The door is shut when the verb closes its channel, which has no other."""
        match message:
            case {"service": str(name), "source": str(source), "port": int(port)} if 0 < port < 65536:
                try:
                    if channel not in self._doors:
                        self._doors[channel] = self._answers.open_door(name, source, port)
                    reply({"ok": True})
                except (KeyError, OSError, ValueError) as error:
                    why = f"this router does not serve {error}" if isinstance(error, KeyError) else ""
                    said = error.strerror if isinstance(error, OSError) else str(error)
                    reply({"ok": False, "message": why or said or str(error)})
            case _:
                reply({"ok": False, "message": "bad request: door"})

    def _send(self, channel: Channel, answer: Message) -> None:
        try:
            if channel.offer(answer) or channel in self._unread:
                return
        except (OSError, ProtocolError) as error:
            self._cut_off(channel, str(error))
            return
        if len(self._unread) >= UNREAD_MOST:
            self._cut_off(channel, "too many others do not either")
            return
        why = f"for {UNREAD_S:g} s"
        self._unread[channel] = self._loop.call_later(UNREAD_S, self._cut_off, channel, why)
        self._loop.remove_reader(channel.fileno())
        self._loop.add_writer(channel.fileno(), self._flush, channel)

    def _flush(self, channel: Channel) -> None:
        try:
            if not channel.flush():
                return
        except OSError:
            self._drop(channel)
            return
        self._stop_flushing(channel)
        self._loop.add_reader(channel.fileno(), self._read, channel)

    def _stop_flushing(self, channel: Channel) -> None:
        deadline = self._unread.pop(channel, None)
        if deadline:
            deadline.cancel()
            self._loop.remove_writer(channel.fileno())

    def _cut_off(self, channel: Channel, why: str) -> None:
        log.warning("admin socket: pid %d does not read its answer: %s", channel.peer_pid, why)
        self._drop(channel)

    def _drop(self, channel: Channel) -> None:
        if channel in self._channels:
            self._stop_flushing(channel)
            self._channels.discard(channel)
            with contextlib.suppress(OSError):  # the next door that opens or shuts corrects the program
                self._doors.pop(channel, lambda: None)()
            self._loop.remove_reader(channel.fileno())
            channel.close()


def answer_question(message: Message, answers: Answers, reply: Reply) -> None:
    """Reply to a question; a message that asks none, or lacks or exceeds something, is refused."""
    try:
        match message:
            case {"op": "status"}:
                reply({"ok": True, "status": answers.status()})
            case {"op": "applied", "service": str(name), "revision": int(revision)} if (
                type(revision) is int and 0 <= revision <= MOST_REVISION  # True is an int, and no revision
            ):
                answers.when_applied(name, revision, lambda applied: reply({"ok": True, "revision": applied}))
            case {"op": "drains", "service": str(name)}:
                reply({"ok": True, "drains": answers.drains(name)})
            case {"op": "applied" | "drains" as op}:
                reply({"ok": False, "message": f"bad request: {op}"})
            case _:
                reply({"ok": False, "message": f"this router does not know {message.get('op')!r:.{SHOWN_CHARS}}"})
    except KeyError as error:
        reply({"ok": False, "message": f"this router does not serve {error}"})


def _say(text: str) -> None:
    log.warning("admin socket: %s", text)
