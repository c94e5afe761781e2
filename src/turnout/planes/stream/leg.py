"""One connection of the stream plane: a leg to the client and one to the daemon, each a protocol on its transport."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Final, cast

from turnout.planes.plane import ConnectionInfo, Counters
from turnout.system.net.tcp import NO_LINGER, RESET_LINGER, peer_of, reset_on_close

BURST_BYTES: Final = 65536  # one read of so much begins a burst, one of less than SMALL_BYTES ends it
SMALL_BYTES: Final = 16384
REST_BYTES: Final = 65536
REST_TIMES: Final = 1024  # more than a receive buffer holds
SALVAGE_TIMES: Final = 16  # so much of what came before a reset is still read when a write met it first


class Leg(asyncio.Protocol):
    """One side. Owns its socket until the transport is made, which then does."""

    def __init__(self, sock: socket.socket, pair: LegPair, counters: Counters) -> None:
        self.sock = sock
        self.pair = pair
        self.other: Leg = self
        self.transport: asyncio.Transport | None = None
        self.received = 0
        self.unsent = 0  # what its transport still had when it was lost
        self.ended = False  # it has sent its end of stream
        self.gone = False
        self.in_burst = False
        self._dying = False  # to be reset as soon as it has taken what it is owed
        self._early: list[bytes] = []  # before the other one was there; one read at most, then it is paused
        self._counters = counters

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # a stream transport, by how it is made
        if self.pair.broken:
            self.reset()
        elif self.other.transport is not None:
            self.other.deliver_early()
            if self.pair.ending:
                self.pair.end()

    def data_received(self, data: bytes) -> None:
        assert self.transport is not None
        size = len(data)
        self.received += size
        self._counters.copied_bytes += size
        if (size >= BURST_BYTES) != self.in_burst and (size >= BURST_BYTES or size < SMALL_BYTES):
            self.burst(begins=not self.in_burst)
        self.pair.last = self
        other = self.other
        if other.transport is None:
            self._early.append(data)
            self.transport.pause_reading()
        elif not other.gone:
            other.transport.write(data)

    def eof_received(self) -> bool:
        """True: the transport stays open, for the other direction."""
        # libuv takes a read that stops early, as before urgent data, for the last one once both sides have ended
        if self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or not self._read_rest(REST_TIMES):
            self.pair.lost(self)
            return True
        self.ended = True
        if self.other.transport is not None:
            self.pair.pass_end(self)
        return True

    def pause_writing(self) -> None:
        if self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self._dying:
            self.reset()
        elif self.other.transport is not None and not self.other.ended and not self.other.gone:
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None and not self.ended and not self._dying:
            self._read_rest(SALVAGE_TIMES)  # a write met the reset first: what came before it is still there
        assert self.transport is not None
        self.unsent = self.transport.get_write_buffer_size()
        self.gone = True
        self.pair.leg_gone(self, broken=exc is not None)

    def burst(self, *, begins: bool) -> None:
        """Killed in the middle of one, it must not look as if that had been all, as the kernel's own close would."""
        self.in_burst = begins
        if not self.other.gone:
            with contextlib.suppress(OSError):
                linger = RESET_LINGER if begins else NO_LINGER
                self.other.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    def deliver_early(self) -> None:
        """The other one is there now: give it what came before."""
        assert self.transport is not None
        assert self.other.transport is not None
        early, self._early = self._early, []
        for data in early:
            self.other.transport.write(data)
        if self.ended:
            self.pair.pass_end(self)
        elif early:
            self.transport.resume_reading()

    def waiting_bytes(self) -> int:
        """What was received for this side and has not left for it yet."""
        early = sum(len(data) for data in self.other._early)  # noqa: SLF001  # of one class
        if self.gone or self.transport is None:
            return self.unsent + early
        return self.transport.get_write_buffer_size() + early

    def reset(self) -> None:
        """End it by a reset, whatever it is owed."""
        if self.gone or self.transport is None:
            return
        reset_on_close(self.sock)
        self.transport.abort()

    def reset_when_empty(self) -> None:
        """Give it what it is owed, and then the reset."""
        if self.gone or self.transport is None:
            return
        if not self.transport.get_write_buffer_size():
            self.reset()
            return
        self._dying = True
        self.transport.set_write_buffer_limits(0)  # then resume_writing says that all of it has left

    def never_made(self) -> None:
        """There will be no transport for it."""
        if not self.gone:
            reset_on_close(self.sock)
            self.sock.close()
            self.gone = True
            self.pair.leg_gone(self, broken=True)

    def _read_rest(self, times: int) -> bool:
        """Take what still lies in the kernel, so many reads at most; False: no end of stream comes after it."""
        with contextlib.suppress(OSError):
            for _ in range(times):
                data = self.sock.recv(REST_BYTES)
                if not data:
                    return True
                self.data_received(data)
        return False


class LegPair:
    """One connection. Its transports own the sockets.

    It is in ``half_closed`` while one side has ended and the other goes on; ``on_ended`` is called once both are gone.
    """

    def __init__(
        self,
        number: int,
        client: socket.socket,
        daemon: socket.socket,
        boot_id: str,
        since: float,
        counters: Counters,
        half_closed: set[LegPair],
        on_ended: Callable[[LegPair], None],
    ) -> None:
        self.id = number
        self.boot_id = boot_id
        self.since = since
        self.closed = False
        self.broken = False  # one side was reset: however the rest ends, it ends as a reset
        self.ending = False  # in order, as soon as both transports are made
        self.client = Leg(client, self, counters)
        self.daemon = Leg(daemon, self, counters)
        self.client.other = self.daemon
        self.daemon.other = self.client
        self.last = self.daemon  # the leg that sent bytes last
        self._half_closed = half_closed
        self._on_ended = on_ended

    def moved(self) -> tuple[int, int]:
        return (
            self.client.received - self.daemon.waiting_bytes(),
            self.daemon.received - self.client.waiting_bytes(),
        )

    def info(self, now: float, *, peers: bool) -> ConnectionInfo:
        bytes_in, bytes_out = self.moved()
        return ConnectionInfo(
            self.id,
            peer_of(self.client.sock) if peers else "",
            now - self.since,
            bytes_in,
            bytes_out,
            answered=self.last is self.daemon,
            half_sent=bytes_in < self.client.received or bytes_out < self.daemon.received,
        )

    def pass_end(self, leg: Leg) -> None:
        """End of stream from one side: it follows what came before it; the other direction goes on."""
        other = leg.other
        assert other.transport is not None
        if other.gone or self.broken:
            return
        if leg.in_burst:
            leg.burst(begins=False)
        if not other.ended:
            other.transport.write_eof()
            self._half_closed.add(self)
            return
        assert leg.transport is not None
        leg.transport.close()  # it writes what it still has first
        other.transport.close()

    def lost(self, leg: Leg) -> None:
        """One side was reset, and everything that came before is read."""
        self.broken = True
        leg.reset()
        leg.other.reset_when_empty()

    def leg_gone(self, leg: Leg, *, broken: bool) -> None:
        self.broken = self.broken or broken
        if leg.other.gone:
            if not self.closed:
                self.closed = True
                self._half_closed.discard(self)
                self._on_ended(self)
        elif self.broken:
            leg.other.reset_when_empty()

    def end(self) -> None:  # close(2) sends a reset by itself if bytes came unread
        self.ending = True
        if self.broken or self.client.waiting_bytes() or self.daemon.waiting_bytes():
            self.reset()
        elif self.client.transport is not None and self.daemon.transport is not None:  # else once they are made
            self.client.burst(begins=False)
            self.daemon.burst(begins=False)
            self.client.transport.close()
            self.daemon.transport.close()

    def reset(self) -> None:
        self.broken = True
        self.client.reset()
        self.daemon.reset()
