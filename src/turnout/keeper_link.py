"""The router's line to its keeper: listeners come in over it, requests to stop daemons go out.

A keeper that died is not missed by any client; the line is tried again until the next ``turnout up`` has started one,
and that one is then given the listeners from here.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from turnout.errors import NotRunningError, TurnoutError
from turnout.system import control
from turnout.system.control import Channel, Message
from turnout.system.home import Home

RETRY_S: Final = 0.2
MAX_PENDING: Final = 1024
ATTACH_ID: Final = 0


class Listeners(Protocol):
    """Who takes the listeners in and gives them out again, and leads or leaves as the keeper says."""

    @property
    def phase(self) -> str:
        """``standby``, ``leads`` or ``leaving``."""
        ...

    def take(self, service: str, sockets: Sequence[socket.socket], told: Message) -> None:
        """All that a service accepts from, and what the keeper says of them."""
        ...

    def release(self, service: str) -> None: ...
    def held(self) -> Sequence[tuple[str, str, int, int]]:
        """Service, host, port and descriptor of each listener there is."""
        ...

    def homes(self) -> Mapping[str, int]:
        """By service, the place of the router's own listener in the group at a shared address."""
        ...

    def ended(self, service: str, boot_id: str) -> None: ...

    def attached(self, services: Sequence[str]) -> None:
        """The keeper knows this router, and gives it these services."""
        ...

    def refused(self) -> None:
        """The keeper did not start this router."""
        ...

    def leave(self) -> None:
        """A successor is ready."""
        ...

    def stand_down(self) -> None:
        """Nobody waits for this one to take over any more."""
        ...

    def end(self) -> None:
        """Everything ends."""
        ...

    def reload(self) -> None: ...
    def cut(self, service: str, boot_id: str) -> None: ...


class KeeperLink:
    """Keeps the line up. Owns the channel and the futures of unanswered requests."""

    def __init__(self, loop: asyncio.AbstractEventLoop, home: Home, listeners: Listeners) -> None:
        self._loop = loop
        self._home = home
        self._listeners = listeners
        self._channel: Channel | None = None
        self._pending: dict[int, asyncio.Future[Message]] = {}
        self._next_id = 1
        self._lost = asyncio.Event()
        # routers that carry what they had accepted before this one led; None: the keeper did not say yet
        self.leaving: Sequence[int] | None = None

    @property
    def connected(self) -> bool:
        return self._channel is not None

    async def run(self, on_connected: Callable[[], None]) -> None:
        """Connect, attach, and do so again whenever the keeper went away."""
        while True:
            try:
                channel = control.connect(self._home.keeper_sock, timeout_s=1.0)
            except (TurnoutError, OSError):
                await asyncio.sleep(RETRY_S)
                continue
            self._lost.clear()
            self._channel = channel
            self._loop.add_reader(channel.fileno(), self._read)
            self._attach(channel)
            on_connected()
            await self._lost.wait()
            await asyncio.sleep(RETRY_S)

    def close(self) -> None:
        self._drop()

    async def stop(self, service: str, boot_id: str, *, stop_signal: str, grace_s: float) -> bool:
        """Have the keeper stop a daemon; True when it is gone, False when there is no keeper to do it."""
        request = {"op": "stop", "service": service, "boot_id": boot_id, "signal": stop_signal, "grace_s": grace_s}
        try:
            async with asyncio.timeout(grace_s + 15.0):
                answer = await self._ask(request)
        except (NotRunningError, TimeoutError):
            return False
        return bool(answer.get("gone"))

    async def replace(self, *, timeout_s: float) -> tuple[bool, str]:
        """Ask for a successor to this router; whether there is one, else why not.

        Raises:
            NotRunningError: there is no keeper.
        """
        try:
            async with asyncio.timeout(timeout_s):
                answer = await self._ask({"op": "replace_router"})
        except TimeoutError:
            return False, f"no answer from the keeper within {timeout_s:g} s"
        return bool(answer.get("ok")), str(answer.get("message", ""))

    def tell(self, message: Mapping[str, Any]) -> None:
        """Say something that is not answered; without a keeper it is not said."""
        if self._channel:
            try:
                self._channel.send(message)
            except OSError:
                self._drop()

    def _attach(self, channel: Channel) -> None:
        held = self._listeners.held()
        message = {
            "op": "attach",
            "id": ATTACH_ID,
            "pid": os.getpid(),
            "phase": self._listeners.phase,
            "listeners": [[service, host, port] for service, host, port, _ in held],
            "homes": dict(self._listeners.homes()),
        }
        try:
            channel.send(message, [fd for _, _, _, fd in held])
        except OSError:
            self._drop()

    async def _ask(self, message: Message) -> Message:
        channel = self._channel
        if channel is None or len(self._pending) >= MAX_PENDING:
            raise NotRunningError("no keeper at the moment")
        number = self._next_id
        self._next_id += 1
        future: asyncio.Future[Message] = self._loop.create_future()
        self._pending[number] = future
        try:
            channel.send({**message, "id": number})
            return await future
        except OSError as error:
            self._drop()
            raise NotRunningError("the keeper is gone") from error
        finally:
            self._pending.pop(number, None)

    def _read(self) -> None:
        if self._channel is None:
            return
        try:
            messages = self._channel.receive()
        except (EOFError, OSError, TurnoutError):
            self._drop()
            return
        for message, fds in messages:
            self._handle(message, [socket.socket(fileno=fd) for fd in fds])

    def _handle(self, message: Message, sockets: list[socket.socket]) -> None:
        match message.get("op"):
            case "listen":
                self._listeners.take(str(message["service"]), sockets, message)
            case "unlisten":
                self._listeners.release(str(message["service"]))
            case "ended":
                self._listeners.ended(str(message["service"]), str(message["boot_id"]))
            case "leaving":
                self.leaving = [int(pid) for pid in message["pids"]]
            case "leave":
                self.tell({"op": "heard"})
                self._listeners.leave()
            case "end":
                self._listeners.end()
            case "stand_down":
                self._listeners.stand_down()
            case "reload":
                self._listeners.reload()
            case "cut":
                self._listeners.cut(str(message["service"]), str(message["boot_id"]))
            case None if message.get("re") == ATTACH_ID:
                if message.get("ok"):
                    self._listeners.attached([str(name) for name in message.get("services", ())])
                else:
                    self._listeners.refused()
            case _:
                future = self._pending.get(message.get("re", 0))
                if future and not future.done():
                    future.set_result(message)

    def _drop(self) -> None:
        if self._channel:
            self._loop.remove_reader(self._channel.fileno())
            self._channel.close()
            self._channel = None
        for future in self._pending.values():
            if not future.done():
                future.set_exception(NotRunningError("the keeper is gone"))
        self._lost.set()
