"""Binds the router's admin socket while the router leads and is attached to the keeper."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from turnout.errors import TurnoutError
from turnout.router.admin_server import AdminServer, Answers
from turnout.system import control_channel
from turnout.system.files import name_of
from turnout.system.home_identity import HomeIdentity

AGAIN_S: Final = 1.0
SETTLED_S: Final = 1.0
log: Final = logging.getLogger("turnout.router")


class _Bound(NamedTuple):
    """A listening socket, the device and inode of its name when it was bound, and the home that it lies in."""

    sock: socket.socket
    name: tuple[int, int] | None
    home: HomeIdentity | None


@dataclass(slots=True)
class AdminSocket:
    """Opens the admin socket while the router may answer, and tries again where that failed. Owns the server.

    Args:
        files: where the socket is bound, which blocks as long as the home's file system does.
        may_answer: whether this router may answer; if not, another router has the path.
    """

    loop: asyncio.AbstractEventLoop
    files: Executor
    path: Path
    answers: Answers
    may_answer: Callable[[], bool]
    _server: AdminServer | None = None
    _name: tuple[int, int] | None = None
    _binding: asyncio.Future[_Bound | None] | None = None
    _trouble: str = ""

    def open(self) -> None:
        """Bind the socket, in the thread; where that fails, again in a second."""
        if self._server is None:
            self._bind(None)

    def look(self) -> None:
        """Bind the socket again, in the thread, where its name is gone or names another file."""
        if self._server is not None:
            self._bind(self._name)

    def _bind(self, known: tuple[int, int] | None) -> None:
        if self._binding is None and self.may_answer():
            self._binding = self.loop.run_in_executor(self.files, _bind_unless, self.path, known)
            self._binding.add_done_callback(self._bound)

    def _bound(self, binding: asyncio.Future[_Bound | None]) -> None:
        self._binding = None
        if binding.cancelled():
            return
        error = binding.exception()
        if error:  # a full disk, no thread to be had: clients are served all the same
            if str(error) != self._trouble:  # it is tried again every second
                log.error("no admin socket for now: %s", error)
            self._trouble = str(error)
            if self._server is None:
                self.loop.call_later(AGAIN_S, self.open)
            return
        self._trouble = ""
        bound = binding.result()
        if bound is None:
            return
        if not self.may_answer():
            bound.sock.close()
            return
        if self._server is None:
            self._server = AdminServer(self.loop, bound.sock, bound.home, self.answers)
        else:
            log.warning("made %s again: it was removed", self.path)
            self._server.listener.replace(bound.sock)
        self._name = bound.name

    async def settled(self) -> None:
        """Wait until no bind is in progress; a second at most, since the home may hang."""
        if self._binding:
            with contextlib.suppress(TimeoutError, TurnoutError, OSError):
                async with asyncio.timeout(SETTLED_S):
                    await asyncio.shield(self._binding)

    def close(self) -> None:
        if self._server:
            self._server.close()
            self._server = None


def _bind_unless(path: Path, known: tuple[int, int] | None) -> _Bound | None:
    """Bind ``path`` again; None where it leads to the known socket. Raises StateUnwritableError or OSError."""
    if known is not None and name_of(path) == known:
        return None
    sock = control_channel.listen(path)
    return _Bound(sock, name_of(path), HomeIdentity.of(path.parent))
