"""Reads the settings of new services, between the keeper's offer of their listeners and the first accept."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from turnout.errors import TurnoutError
from turnout.planes.direct.bpf_pins import Pins, pins_of
from turnout.router.follow.settings import OpenedSettings
from turnout.state.home import Home
from turnout.system.control_channel import Message
from turnout.system.daemon_threads import DaemonThreads

AGAIN_S: Final = 1.0  # between two attempts to open a service
Sockets = Sequence[socket.socket]
log: Final = logging.getLogger("turnout.router")


@dataclass(slots=True)
class ServiceOpener:
    """Reads the settings of new services off the loop. Owns the listeners until their service is handed over.

    A service that cannot be opened is tried again: the descriptor or the memory that it lacks may be free by then, and
    a damaged settings.json may have been written again. Its clients wait in the kernel's queue meanwhile.

    Args:
        opened: takes a service over: its settings, the place of its pins, its listeners, and what the keeper says of
            them. Raises TurnoutError, OSError where it cannot be served; the listeners are left to this class then.
    """

    loop: asyncio.AbstractEventLoop
    home: Home
    opened: Callable[[OpenedSettings, Pins | None, Sockets, Message], None]
    _offers: dict[str, tuple[Sockets, Message]] = field(default_factory=dict[str, tuple[Sockets, Message]])
    _tasks: set[asyncio.Task[None]] = field(default_factory=set[asyncio.Task[None]])

    def begin(self, group: asyncio.TaskGroup, service: str, sockets: Sockets, message: Message) -> None:
        """Open a service with these listeners; of several offers the newest counts, since each names all of them."""
        known = self._offers.get(service)
        self._offers[service] = sockets, message
        if known:
            close_all(known[0])
            return
        task = group.create_task(self._open(service))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def offered(self) -> dict[str, Sockets]:
        """The listeners of the services that are not open yet."""
        return {service: sockets for service, (sockets, _) in self._offers.items()}

    def messages(self) -> dict[str, Message]:
        """What the keeper says of those listeners, by service."""
        return {service: message for service, (_, message) in self._offers.items()}

    def release(self, service: str) -> None:
        """The keeper takes its listeners back."""
        sockets, _ = self._offers.pop(service, ((), None))
        close_all(sockets)

    def close(self) -> None:
        for service in list(self._offers):
            self.release(service)
        for task in self._tasks:
            task.cancel()

    async def _open(self, service: str) -> None:
        threads = DaemonThreads(f"open {service}")
        trouble = ""
        try:
            while service in self._offers:
                try:
                    opened, pins = await self.loop.run_in_executor(threads, self._read, service)
                    if service in self._offers:
                        self.opened(opened, pins, *self._offers[service])
                        del self._offers[service]
                except (TurnoutError, OSError) as error:
                    if str(error) != trouble:
                        trouble = str(error)
                        log.error("cannot serve %s yet: %s", service, trouble)  # noqa: TRY400  # the message says it all
                    await asyncio.sleep(AGAIN_S)
        finally:
            threads.shutdown(wait=False)

    def _read(self, service: str) -> tuple[OpenedSettings, Pins | None]:
        return OpenedSettings.read(self.home.service(service)), pins_of(self.home.root, service)


def close_all(sockets: Sockets) -> None:
    for sock in sockets:
        sock.close()
