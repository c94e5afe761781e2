"""How long a connection may take to ask and to be answered, which neither uvicorn nor h11 bounds.

Every program of the machine may connect to a loopback port, without a token. One that asks by halves, or does not take
its answer, would keep the page's connections to itself.
"""

from __future__ import annotations

import asyncio
import logging
from typing import ClassVar, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_WAITING: Final = 32
ASKING: Final = frozenset({h11.IDLE, h11.SEND_BODY})  # states of the client, by h11's table: its request is not whole
log = logging.getLogger("turnout.dashboard")


class DeadlineProtocol(H11Protocol):
    """One connection of HTTP/1.1. Owns its timer.

    Dropped is who has not sent a whole request, body included, ``request_s`` after it connected or began with it; who
    took nothing for ``unread_s`` of what waits for it; and of more than ``MAX_WAITING`` that have yet to ask, the one
    that has been there longest: who means it asks at once. An answer may take as long as it takes, a stream for ever.
    """

    request_s: ClassVar[float] = 10.0
    unread_s: ClassVar[float] = 30.0

    asking_since: float | None = None  # on the loop's clock; None: its request is whole, or it has not begun another
    _unread_bytes = 0
    _unread_since = 0.0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        self.asking_since = self._unread_since = self.loop.time()
        self._arm()
        waiting = [one for one in self.connections if isinstance(one, DeadlineProtocol) and one.waits]
        if len(waiting) > MAX_WAITING:
            min(waiting, key=lambda one: one.asking_since or 0.0).drop("others wait to ask")

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer:
            self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.asking_since is None:
            self.asking_since = self.loop.time()
        super().data_received(data)
        if self.conn.their_state not in ASKING:
            self.asking_since = None

    @property
    def waits(self) -> bool:
        """Whether it has yet to send a whole request. Between two requests it does not: uvicorn ends that after 5 s."""
        return self.asking_since is not None and not self.transport.is_closing()

    def _arm(self) -> None:
        self._timer = self.loop.call_later(min(self.request_s, self.unread_s) / 4, self._look)

    def _look(self) -> None:
        now, unread = self.loop.time(), self.transport.get_write_buffer_size()
        if not unread or unread != self._unread_bytes:
            self._unread_bytes, self._unread_since = unread, now
        if now - self._unread_since >= self.unread_s:
            self.drop(f"nothing was taken of its answer for {self.unread_s:g} s")
        elif self.waits and now - (self.asking_since or now) >= self.request_s:
            self.drop(f"no whole request within {self.request_s:g} s")
        else:
            self._arm()

    def drop(self, why: str) -> None:
        """At once, with whatever waits to be sent. One that never said anything is no news: browsers connect ahead."""
        if self.conn.trailing_data[0] or self.conn.their_state is not h11.IDLE:
            log.warning("dropped a connection: %s", why)
        self.transport.abort()
