"""How long a connection may take to ask and to be answered, and how many there may be without the token.

Every program of the machine may connect to a loopback port, without a token. One that asks by halves, does not take its
answer, or makes many connections would keep the page's own out. uvicorn and h11 bound nothing of this but the number of
all connections, and then refuse the owner too.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Sequence
from typing import ClassVar, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from turnout.system.net.sock_diag import uid_of

MAX_WAITING: Final = 32
MAX_STRANGERS: Final = 64  # connections without the token, whatever they do
RESERVED: Final = 64  # connections with it
ASKING: Final = frozenset({h11.IDLE, h11.SEND_BODY})  # states of the client, by h11's table: its request is not whole
log = logging.getLogger("turnout.dashboard")


class DeadlineProtocol(H11Protocol):
    """One connection of HTTP/1.1. Owns its timer.

    A connection is dropped that has not sent a whole request, body included, ``request_s`` after it connected or began
    with it, or took nothing for ``unread_s`` of what waits for it. An answer may take as long as it takes, a stream for
    ever. Of more than ``MAX_WAITING`` connections that have yet to ask, and of more than ``MAX_STRANGERS`` whose last
    request had no token, the oldest of the user who has most of them is dropped: a request that is meant comes at once,
    and another user of the machine pushes out nothing but their own connections.
    """

    request_s: ClassVar[float] = 10.0
    unread_s: ClassVar[float] = 30.0
    trusted = False  # its last request had the token
    uid: int | None = None  # the user at the other end

    connected_at = 0.0  # on the loop's clock
    asking_since: float | None = None  # on the loop's clock; None: its request is whole, or it has not begun another
    _unread_bytes = 0
    _unread_since = 0.0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        self.asking_since = self._unread_since = self.loop.time()
        self._arm()
        self.connected_at = self.loop.time()
        self.uid = uid_of(transport.get_extra_info("sockname"), transport.get_extra_info("peername"))
        others = [other for other in self.connections if isinstance(other, DeadlineProtocol)]
        strangers = [other for other in others if not other.trusted and not other.transport.is_closing()]
        waiting = [other for other in strangers if other.waits]
        if len(waiting) > MAX_WAITING:
            _oldest_of_most(waiting).drop("too many connections whose request is not whole")
        elif len(strangers) > MAX_STRANGERS:
            _oldest_of_most(strangers).drop("too many connections without the token")

    def has_token(self, _authorization: Sequence[bytes]) -> bool:
        """Whether a request with these values of Authorization has the token; the server's protocol knows it."""
        return False

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
            self.trusted = self.has_token([value for name, value in self.headers or () if name == b"authorization"])

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
        """Abort it with all that waits to be sent. A connection without a byte is no news: browsers connect ahead."""
        if self.conn.trailing_data[0] or self.conn.their_state is not h11.IDLE:
            log.warning("dropped a connection: %s", why)
        self.transport.abort()


def _oldest_of_most(connections: Sequence[DeadlineProtocol]) -> DeadlineProtocol:
    """The oldest connection of the user that has most; of users with as many, of another user than our own."""
    counts = Counter(connection.uid for connection in connections)
    most = max(counts, key=lambda uid: (counts[uid], uid != os.geteuid()))
    theirs = (connection for connection in connections if connection.uid == most)
    return min(theirs, key=lambda connection: connection.connected_at)
