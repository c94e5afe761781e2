"""The router's admin socket: ask for status, and wait until a revision is applied. Nothing is changed through it."""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from turnout.errors import NotRunningError, ProtocolError, TimedOutError
from turnout.system import control
from turnout.system.control import Channel, Message
from turnout.system.home import Home

if TYPE_CHECKING:  # the router has it; a verb that only asks is quick without
    import asyncio

MAX_CLIENTS: Final = 256
METRICS_POLL_S: Final = 0.05
log = logging.getLogger("turnout.router")
Reply = Callable[[Mapping[str, Any]], None]


class Answers(Protocol):
    """What the router answers from."""

    def status(self) -> Mapping[str, Any]: ...

    def drains(self, service: str) -> Sequence[Mapping[str, Any]]:
        """What drains and why it is still there. Raises KeyError as below."""
        ...

    def when_applied(self, service: str, revision: int, reply: Callable[[int], None]) -> None:
        """Look at the registry now, and call ``reply`` with the applied revision once it is ``revision`` or more.

        Raises:
            KeyError: the router does not serve ``service``.
        """
        ...


class AdminServer:
    """Serves the admin socket on the router's loop. Owns the listening socket and the channels."""

    def __init__(self, loop: asyncio.AbstractEventLoop, path: Path, answers: Answers) -> None:
        self._loop = loop
        self._answers = answers
        self._channels: set[Channel] = set()
        self._path = path
        self._socket: socket.socket = control.listen(path)
        loop.add_reader(self._socket.fileno(), self._accept)

    def close(self) -> None:
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        for channel in list(self._channels):
            self._drop(channel)

    def _accept(self) -> None:
        channel = control.accept(self._socket, on_stranger=_turned_away)
        if channel is None:
            return
        if len(self._channels) >= MAX_CLIENTS:
            channel.close()
            return
        self._channels.add(channel)
        self._loop.add_reader(channel.fileno(), self._read, channel)

    def _read(self, channel: Channel) -> None:
        try:
            for message, _ in channel.receive():
                self._answer(channel, message)
        except (EOFError, OSError, ProtocolError):
            self._drop(channel)

    def _answer(self, channel: Channel, message: Message) -> None:
        def reply(answer: Mapping[str, Any]) -> None:
            if channel in self._channels:
                with contextlib.suppress(OSError):
                    channel.send({**answer, "re": message.get("id")})

        try:
            match message.get("op"):
                case "status":
                    reply({"ok": True, "status": self._answers.status()})
                case "applied":
                    name, revision = str(message["service"]), int(message["revision"])
                    self._answers.when_applied(name, revision, lambda now: reply({"ok": True, "revision": now}))
                case "drains":
                    reply({"ok": True, "drains": self._answers.drains(str(message["service"]))})
                case other:
                    reply({"ok": False, "message": f"this router does not know {other!r}"})
        except (KeyError, TypeError, ValueError) as error:
            reply({"ok": False, "message": f"bad request: {error!r}"})

    def _drop(self, channel: Channel) -> None:
        if channel in self._channels:
            self._channels.discard(channel)
            self._loop.remove_reader(channel.fileno())
            channel.close()


def _turned_away(pid: int, uid: int) -> None:
    log.warning("admin socket: pid %d of uid %d was turned away: it is another user's", pid, uid)


class RouterClient:
    """A verb's line to the router; each question is a connection of its own, since the router may be replaced."""

    def __init__(self, home: Home) -> None:
        self._path = home.router_sock

    def status(self, *, timeout_s: float = 2.0) -> dict[str, Any]:
        """What the router knows of itself and its services.

        Raises:
            NotRunningError: no router answers.
            TimedOutError: it is there but silent for ``timeout_s`` seconds.
        """
        return dict(self._ask({"op": "status"}, timeout_s)["status"])

    def metrics_address(self) -> str | None:
        """Where it serves its metrics now; None: nowhere, or no router answers."""
        return self._metrics().get("listen")

    def _metrics(self) -> Mapping[str, str | None]:
        try:
            found: Mapping[str, str | None] = self.status().get("metrics", {})
        except (NotRunningError, TimedOutError, OSError):
            return {}
        return found

    def wait_metrics(self, address: str | None, *, timeout_s: float) -> str:
        """Wait until the router serves its metrics at ``address`` (None: nowhere).

        Returns:
            Why it does not, within so many seconds; empty: it does.
        """
        deadline = time.monotonic() + timeout_s
        while self.metrics_address() != address:
            if time.monotonic() >= deadline:
                return self._metrics().get("error") or "the router has not come to it yet"
            time.sleep(METRICS_POLL_S)
        return ""

    def wait_applied(self, service: str, revision: int, *, timeout_s: float) -> int:
        """Have the router look at the registry at once, and wait until it applied ``revision`` or a later one.

        Raises:
            NotRunningError: no router answers, or it does not serve ``service`` yet.
            TimedOutError: not within ``timeout_s`` seconds.
        """
        return int(self._ask({"op": "applied", "service": service, "revision": revision}, timeout_s)["revision"])

    def drains(self, service: str, *, timeout_s: float = 5.0) -> list[dict[str, Any]]:
        """Each daemon that drains, with its connections. Raises as :meth:`status`; NotRunningError: not served."""
        return list(self._ask({"op": "drains", "service": service}, timeout_s)["drains"])

    def _ask(self, message: Message, timeout_s: float) -> Message:
        channel = control.connect(self._path, timeout_s=timeout_s)
        try:
            answer = channel.request({**message, "id": 1}, timeout_s=timeout_s)
        finally:
            channel.close()
        if not answer.get("ok"):
            raise NotRunningError(str(answer.get("message")))
        return answer
