"""The pump: moves the bytes of connections that are established, on one epoll.

Each direction starts by copying through one shared buffer; a read that fills the buffer sends it over to splice(2), and
small transfers bring it back. Where the destination is full the source is paused: at most one buffer or pipe is filled
in between.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Final

from turnout.planes.plane import Carried, Counters
from turnout.planes.splice import NONBLOCK, PIPE_BYTES, Pipe, PipePool

EIN: Final = select.EPOLLIN
EOUT: Final = select.EPOLLOUT
EDEAD: Final = select.EPOLLERR | select.EPOLLHUP
BUFFER_BYTES: Final = 65536
SMALL_BYTES: Final = 16384
SMALL_TIMES: Final = 4  # so many small transfers in a row end a burst
RESET_LINGER: Final = struct.pack("ii", 1, 0)  # socket(7): close() then sends a reset


class Flow:
    """One direction of a connection: from ``src`` to ``dst``. Owns the pipe it has leased, nothing else."""

    __slots__ = (
        "count",
        "dst",
        "dst_fd",
        "ended",
        "lost",
        "pair",
        "pending",
        "pipe",
        "recv_into",
        "rev",
        "send",
        "small",
        "src",
        "src_fd",
    )

    def __init__(self, src: socket.socket, dst: socket.socket, pair: Pair) -> None:
        self.src = src
        self.dst = dst
        self.src_fd = src.fileno()
        self.dst_fd = dst.fileno()
        self.recv_into = src.recv_into
        self.send = dst.send
        self.pair = pair
        self.rev: Flow = self
        self.pending: memoryview | None = None  # what dst did not take
        self.pipe: Pipe | None = None
        self.small = 0
        self.count = 0
        self.ended = False  # src has sent its end of stream
        self.lost = False  # src is dead and out of the epoll: it is read to its end without being told

    @property
    def blocked(self) -> bool:
        """Whether bytes wait for ``dst``; then ``src`` is not read."""
        return self.pending is not None or (self.pipe is not None and self.pipe.held > 0)


class Pair:
    """One connection: client, daemon, and a flow each way. Owns both sockets."""

    __slots__ = ("boot_id", "broken", "closed", "down", "id", "last", "since", "up")

    def __init__(self, number: int, client: socket.socket, daemon: socket.socket, boot_id: str, since: float) -> None:
        self.id = number
        self.boot_id = boot_id
        self.since = since
        self.closed = False
        self.broken = False  # one side was reset: however the rest ends, it ends as a reset
        self.up = Flow(client, daemon, self)
        self.down = Flow(daemon, client, self)
        self.up.rev = self.down
        self.down.rev = self.up
        self.last = self.down  # the direction in which bytes went last

    def carried(self, now: float, *, peers: bool) -> Carried:
        peer = ""
        if peers:
            with contextlib.suppress(OSError):
                host, port = self.up.src.getpeername()[:2]
                peer = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        return Carried(
            self.id,
            peer,
            now - self.since,
            self.up.count,
            self.down.count,
            answered=self.last is self.down,
            half_sent=self.up.blocked or self.down.blocked,
        )


def _readable(flow: Flow) -> bool:
    """Whether there may be more to read, and room for it."""
    return not (flow.pair.closed or flow.ended or flow.blocked)


class Pump:
    """Moves bytes for every pair that was added. Owns the pairs, the buffer and the pipes; the epoll is the relay's."""

    def __init__(self, epoll: select.epoll, counters: Counters, on_closed: Callable[[Pair], None]) -> None:
        self._epoll = epoll
        self._counters = counters
        self._on_closed = on_closed
        self._pool = PipePool()
        self._made = 0
        self._buffer = bytearray(BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self.flows: dict[int, Flow] = {}  # by the descriptor that the flow reads from
        self.again: deque[Flow] = deque()  # flows of lost sources: no event will call for them

    def add(self, client: socket.socket, daemon: socket.socket, boot_id: str, *, since: float = 0.0) -> Pair:
        """Take over two connected sockets. The client's is registered in the epoll already, the daemon's may be."""
        self._made += 1
        pair = Pair(self._made, client, daemon, boot_id, since)
        for flow in (pair.up, pair.down):
            self.flows[flow.src_fd] = flow
            self._watch(flow.src_fd, EIN)
        self.read(pair.up)  # what the client has sent meanwhile goes out with the same wakeup
        return pair

    def _watch(self, fd: int, events: int) -> None:
        try:
            self._epoll.modify(fd, events)
        except FileNotFoundError:
            self._epoll.register(fd, events)

    # -- events ------------------------------------------------------------------------------------------------------

    def handle(self, flow: Flow, events: int) -> None:
        """What the epoll says of the descriptor that ``flow`` reads from."""
        if events & EOUT:
            back = flow.rev
            if back.pending is not None:
                self._flush(back)
            elif back.pipe is not None and back.pipe.held:
                self._empty(back)
        if flow.pair.closed:
            return
        if events & EDEAD and (flow.ended or flow.blocked):
            self._source_is_lost(flow)
        elif events & (EIN | EDEAD) and not flow.ended and not flow.blocked:
            self.read(flow)

    def _source_is_lost(self, flow: Flow) -> None:
        """Reset, or closed both ways, while it is not read: it would be reported for ever, so it leaves the epoll."""
        if flow.ended:
            # it had said its end before; being dead now means that what we send cannot arrive
            self.reset(flow.pair)
            return
        flow.lost = True
        self._epoll.unregister(flow.src_fd)

    def run_again(self) -> None:
        """Read on from sources that are lost, a bounded number of times."""
        for _ in range(min(len(self.again), 64)):
            flow = self.again.popleft()
            if _readable(flow):
                self.read(flow)
            if _readable(flow):
                self.again.append(flow)

    # -- moving bytes ------------------------------------------------------------------------------------------------

    def read(self, flow: Flow) -> None:
        """Move once from source to destination; the epoll is level-triggered and calls again for more."""
        if flow.pipe is not None:
            self._splice(flow, flow.pipe)
            return
        try:
            size = flow.recv_into(self._buffer)
        except BlockingIOError:
            if flow.lost or flow.pair.broken:  # a dead socket has no more to come
                self.reset(flow.pair)
            return
        except OSError:
            self.reset(flow.pair)
            return
        if not size:
            self._end(flow)
            return
        self._counters.copied_bytes += size
        flow.pair.last = flow
        try:
            sent = flow.send(self._view[:size])
        except BlockingIOError:
            sent = 0
        except OSError:
            self._destination_is_lost(flow)
            return
        flow.count += sent
        if sent < size:
            flow.pending = memoryview(bytes(self._view[sent:size]))
            self._interest(flow)
        elif size == BUFFER_BYTES:
            flow.pipe = self._pool.lease()
            self._counters.pipes_denied = self._pool.denied

    def _splice(self, flow: Flow, pipe: Pipe) -> None:
        """Source to pipe to destination, without a copy. The pipe is empty here, so EAGAIN means an empty source."""
        try:
            size = os.splice(flow.src_fd, pipe.write_fd, PIPE_BYTES, flags=NONBLOCK)
        except BlockingIOError:
            self._give_back(flow)
            if flow.lost or flow.pair.broken:
                self.reset(flow.pair)
            return
        except OSError:
            self.reset(flow.pair)
            return
        if not size:
            self._end(flow)
            return
        self._counters.spliced_bytes += size
        flow.pair.last = flow
        pipe.held = size
        flow.small = flow.small + 1 if size < SMALL_BYTES else 0
        self._empty(flow)
        if flow.small >= SMALL_TIMES and not flow.pair.closed and not pipe.held:
            self._give_back(flow)

    def _empty(self, flow: Flow) -> None:
        """Pipe to destination, as much as it takes."""
        pipe = flow.pipe
        assert pipe is not None
        try:
            sent = os.splice(pipe.read_fd, flow.dst_fd, pipe.held, flags=NONBLOCK)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._destination_is_lost(flow)
            return
        flow.count += sent
        pipe.held -= sent
        self._unblocked_or_wait(flow)

    def _flush(self, flow: Flow) -> None:
        """What was copied and not taken yet."""
        assert flow.pending is not None
        try:
            sent = flow.send(flow.pending)
        except BlockingIOError:
            return
        except OSError:
            self._destination_is_lost(flow)
            return
        flow.count += sent
        flow.pending = flow.pending[sent:] if sent < len(flow.pending) else None
        self._unblocked_or_wait(flow)

    def _unblocked_or_wait(self, flow: Flow) -> None:
        if flow.lost and not flow.blocked:
            self.again.append(flow)
        self._interest(flow)

    def _interest(self, flow: Flow) -> None:
        """Tell the epoll what both ends are waited for now."""
        for one in (flow, flow.rev):
            if not one.lost:
                events = 0 if one.ended or one.blocked else EIN
                if one.rev.blocked:
                    events |= EOUT
                self._watch(one.src_fd, events)

    def _give_back(self, flow: Flow) -> None:
        if flow.pipe is not None:
            self._pool.give_back(flow.pipe)
            flow.pipe = None
            flow.small = 0

    # -- ends --------------------------------------------------------------------------------------------------------

    def _end(self, flow: Flow) -> None:
        """End of stream from the source, everything before it is through: pass it on, the other way goes on."""
        if flow.pair.broken:  # the error was taken by the send that met it; what follows it looks like an end
            self.reset(flow.pair)
            return
        flow.ended = True
        self._give_back(flow)
        try:
            flow.dst.shutdown(socket.SHUT_WR)
        except OSError:
            self._destination_is_lost(flow)
            return
        if flow.rev.ended:
            self._close(flow.pair)
        else:
            self._interest(flow)

    def _destination_is_lost(self, flow: Flow) -> None:
        """``dst`` takes nothing more; what it had said before that is still read, and then the reset passed on."""
        flow.pair.broken = True
        flow.ended = True
        flow.pending = None
        self._give_back(flow)
        back = flow.rev
        if back.ended:
            self.reset(flow.pair)
            return
        self._interest(flow)
        if not back.blocked:
            self.again.append(back)

    def end(self, pair: Pair) -> None:
        """End both ways in order where nothing is under way; close(2) sends a reset by itself if bytes came unread."""
        if pair.up.blocked or pair.down.blocked or pair.broken:
            self.reset(pair)
        elif not pair.closed:
            self._close(pair)

    def reset(self, pair: Pair) -> None:
        """End both ways by a reset: an orderly close would tell that a truncated stream was whole."""
        if pair.closed:
            return
        for sock in (pair.up.src, pair.down.src):
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_LINGER)
            except OSError:
                continue
        self._close(pair)

    def _close(self, pair: Pair) -> None:
        pair.closed = True
        for flow in (pair.up, pair.down):
            self.flows.pop(flow.src_fd, None)
            self._give_back(flow)
            flow.pending = None
        for flow in (pair.up, pair.down):
            flow.src.close()  # close(2) takes it out of the epoll: no other descriptor refers to it
        self._on_closed(pair)

    def close(self) -> None:
        """Reset everything and give every descriptor back."""
        for flow in list(self.flows.values()):
            self.reset(flow.pair)
        self._pool.close()
