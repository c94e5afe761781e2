"""The router's line to its keeper: listeners come in over it, requests to stop daemons go out.

A keeper that died is not missed by any client; the line is tried again until the next ``turnout up`` has started one,
and that one is then given the listeners from here.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any, Final, Protocol

from turnout.errors import NotRunningError, ProtocolError, TurnoutError
from turnout.state.home import Home
from turnout.system import control_channel
from turnout.system.control_channel import Channel, Message
from turnout.system.interpreters import Interpreters

RETRY_S: Final = 0.2
ERROR_AGAIN_S: Final = 1.0  # after a message that could not be used: what was lacking may be lacking still
ERROR_LOGGED_S: Final = 60.0  # the same error is logged again after so long
MAX_PENDING: Final = 1024
ATTACH_ID: Final = 0
log = logging.getLogger("turnout.router")


class LinkedRouter(Protocol):
    """The router that the keeper's messages are for."""

    @property
    def phase(self) -> str: ...  # standby, leads or leaving

    def take_listeners(self, service: str, sockets: Sequence[socket.socket], message: Message) -> None: ...
    def release_listeners(self, service: str) -> None: ...
    def listeners(self) -> Sequence[tuple[str, str, int, int]]: ...  # service, host, port and descriptor of each
    def group_homes(self) -> Mapping[str, int]: ...  # by service, the index of the router's own listener in its group
    def group_states(self) -> Mapping[str, Mapping[str, Any]]: ...  # by service, as the keeper described it
    def on_daemon_exit(self, service: str, boot_id: str) -> None: ...
    def on_attached(self, services: Sequence[str]) -> None: ...  # the keeper knows this router, and has these services
    def on_refused(self) -> None: ...  # the keeper did not start this router
    def release_lead(self) -> None: ...  # a successor is ready
    def stand_down(self) -> None: ...  # no verb waits for this successor any more
    def shut_down(self) -> None: ...
    def reload(self) -> None: ...
    def cut(self, service: str, boot_id: str) -> None: ...


class KeeperLink:
    """Keeps the line up. Owns the channel and the futures of unanswered requests.

    Nothing waits for a keeper that does not read: the connection is closed and made again.

    Args:
        files: where the socket's path is looked up, which blocks as long as the file system does.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, files: Executor, home: Home, router: LinkedRouter) -> None:
        self._loop = loop
        self._files = files
        self._home = home
        self._router = router
        self._channel: Channel | None = None
        self._pending: dict[int, asyncio.Future[Message]] = {}
        self._next_id = 1
        self._refusal = ""  # why the keeper did not stop the daemon that it was asked for last
        self._disconnected = asyncio.Event()
        self._pause_s = RETRY_S
        self._error = ""
        self._error_at = 0.0
        self.interpreters = Interpreters()
        # routers that carry what they had accepted before this one led; None: the keeper did not say yet
        self.draining: Sequence[int] | None = None

    @property
    def connected(self) -> bool:
        return self._channel is not None

    async def run(self, on_connected: Callable[[], None]) -> None:
        """Connect and attach, again whenever the keeper went away, until cancelled."""
        while True:
            try:
                channel = await self._loop.run_in_executor(
                    self._files, partial(control_channel.connect, self._home.keeper_sock, timeout_s=1.0)
                )
            except (TurnoutError, OSError):
                await asyncio.sleep(RETRY_S)
                continue
            try:
                self._loop.add_reader(channel.fileno(), self._read)
            except OSError as error:  # epoll_ctl(2): no memory
                channel.close()
                self._log_error_once(error)
                await asyncio.sleep(ERROR_AGAIN_S)
                continue
            self._disconnected.clear()
            self._pause_s = RETRY_S
            self._channel = channel
            self._attach(channel)
            on_connected()
            await self._disconnected.wait()
            await asyncio.sleep(self._pause_s)

    async def stop(self, service: str, boot_id: str, *, stop_signal: str, grace_s: float) -> bool:
        """Have the keeper stop a daemon; True when it is gone, False when there is no keeper to do it."""
        request = {"op": "stop", "service": service, "boot_id": boot_id, "signal": stop_signal, "grace_s": grace_s}
        try:
            async with asyncio.timeout(grace_s + 15.0):
                response = await self._request(request)
        except (NotRunningError, TimeoutError):
            return False
        refusal = "" if response.get("ok") else str(response.get("message", ""))
        if refusal and refusal != self._refusal:  # the drainer asks again every second
            log.warning("%s: the keeper does not stop %s: %s", service, boot_id, refusal)
        self._refusal = refusal
        return bool(response.get("gone"))

    async def replace(self, *, timeout_s: float) -> tuple[bool, str]:
        """Ask for a successor to this router; whether there is one, else why not.

        Raises:
            NotRunningError: there is no keeper.
        """
        try:
            async with asyncio.timeout(timeout_s):
                response = await self._request({"op": "replace_router"})
        except TimeoutError:
            return False, f"no answer from the keeper within {timeout_s:g} s"
        return bool(response.get("ok")), str(response.get("message", ""))

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message that has no response; without a keeper it is dropped."""
        if self._channel:
            try:
                self._channel.send(message, wait=False)
            except (OSError, ProtocolError):
                self.close()

    def _attach(self, channel: Channel) -> None:
        message = {
            "op": "attach",
            "id": ATTACH_ID,
            "pid": os.getpid(),
            "phase": self._router.phase,
            "homes": dict(self._router.group_homes()),  # for a keeper of 0.1
            "groups": dict(self._router.group_states()),
        }
        parts = _in_parts(self._router.listeners())
        try:
            for number, part in enumerate(parts, 1):
                named = [[service, host, port] for service, host, port, _ in part]
                fds = [fd for _, _, _, fd in part]
                channel.send({**message, "listeners": named, "more": number < len(parts)}, fds, wait=False)
        except (OSError, ProtocolError) as error:
            log.warning("cannot attach to the keeper: %s", error)
            self.close()

    async def _request(self, message: Message) -> Message:
        channel = self._channel
        if channel is None or len(self._pending) >= MAX_PENDING:
            raise NotRunningError("no keeper at the moment")
        number = self._next_id
        self._next_id += 1
        future: asyncio.Future[Message] = self._loop.create_future()
        self._pending[number] = future
        try:
            channel.send({**message, "id": number}, wait=False)
            return await future
        except OSError as error:
            self.close()
            raise NotRunningError("the keeper is gone") from error
        finally:
            self._pending.pop(number, None)

    def _read(self) -> None:
        """The boundary to the keeper: what it sends and cannot be used ends this connection, and not the router."""
        if self._channel is None:
            return
        messages: deque[tuple[Message, list[int]]] = deque()
        try:
            messages.extend(self._channel.receive())
            while messages:
                message, fds = messages[0]
                sockets = [socket.socket(fileno=fds.pop(0)) for _ in range(len(fds))]
                messages.popleft()
                self._handle(message, sockets)
        except (EOFError, ConnectionError):
            self.close()
        except (OSError, TurnoutError) as error:  # no descriptor for the listeners that came, no memory
            self._pause_s = ERROR_AGAIN_S
            self._log_error_once(error)
            self.close()
        except Exception:
            self._pause_s = ERROR_AGAIN_S
            log.exception("the keeper sent a message that cannot be used")
            self.close()
        finally:
            for _, fds in messages:
                for fd in fds:
                    os.close(fd)

    def _log_error_once(self, error: Exception) -> None:
        """Log why the connection ends, and is made again: once while it stays the same."""
        text, now = str(error), self._loop.time()
        if text != self._error or now - self._error_at >= ERROR_LOGGED_S:
            self._error, self._error_at = text, now
            log.error("the connection to the keeper is made again: %s", text)

    def _handle(self, message: Message, sockets: list[socket.socket]) -> None:
        match message.get("op"):
            case "listen":
                self._router.take_listeners(str(message["service"]), sockets, message)
            case "unlisten":
                self._router.release_listeners(str(message["service"]))
            case "ended":
                self._router.on_daemon_exit(str(message["service"]), str(message["boot_id"]))
            case "leaving":
                self.draining = [int(pid) for pid in message["pids"]]
            case "leave":
                self.send({"op": "heard"})
                self._router.release_lead()
            case "end":
                self._router.shut_down()
            case "stand_down":
                self._router.stand_down()
            case "reload":
                self._router.reload()
            case "interpreter":
                self._add_interpreter(message)
            case "cut":
                self._router.cut(str(message["service"]), str(message["boot_id"]))
            case None if message.get("re") == ATTACH_ID:
                if message.get("ok"):
                    self._add_interpreter(message)
                    self._router.on_attached([str(name) for name in message.get("services", ())])
                else:
                    self._router.on_refused()
            case _:
                future = self._pending.get(message.get("re", 0))
                if future and not future.done():
                    future.set_result(message)

    def _add_interpreter(self, message: Message) -> None:
        """The interpreter for the verbs that this router starts; an older keeper names none."""
        interpreter = message.get("interpreter")
        if isinstance(interpreter, str) and interpreter.startswith("/"):
            self.interpreters.add(interpreter)

    def close(self) -> None:
        if self._channel:
            self._loop.remove_reader(self._channel.fileno())
            self._channel.close()
            self._channel = None
        for future in self._pending.values():
            if not future.done():
                future.set_exception(NotRunningError("the keeper is gone"))
        self._disconnected.set()


def _in_parts(listeners: Sequence[tuple[str, str, int, int]]) -> list[list[tuple[str, str, int, int]]]:
    """The listeners in as few messages as can be, those of one service in the same; at least one message."""
    by_service: dict[str, list[tuple[str, str, int, int]]] = {}
    for listener in listeners:
        by_service.setdefault(listener[0], []).append(listener)
    parts: list[list[tuple[str, str, int, int]]] = [[]]
    for own in by_service.values():
        if parts[-1] and len(parts[-1]) + len(own) > control_channel.MAX_FDS:
            parts.append([])
        parts[-1] += own
    return parts
