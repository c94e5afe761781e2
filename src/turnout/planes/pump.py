"""The pump: moves the bytes of connections that are established, on one epoll.

Each direction starts by copying through one shared buffer; a read that fills the buffer sends it over to splice(2), and
small transfers bring it back. Where the destination is full the source is paused: at most one buffer or pipe is filled
in between. What a stall, an end or a reset means is not decided here but in :mod:`turnout.planes.flow`.
"""

from __future__ import annotations

import os
import select
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from select import EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT
from typing import Final

from turnout.planes.flow import Do, FlowEvent, FlowState, step, waits_for
from turnout.planes.pipe_pool import NONBLOCK, PIPE_BYTES, Pipe, PipePool
from turnout.planes.plane import ConnectionInfo, Counters
from turnout.system.net.tcp import NO_LINGER, RESET_LINGER, peer_of, reset_on_close

EDEAD: Final = EPOLLERR | EPOLLHUP
BUFFER_BYTES: Final = 65536
SMALL_BYTES: Final = 16384
SMALL_TIMES: Final = 4  # so many small transfers in a row end a burst
AGAIN_AT_ONCE: Final = 64  # flows that are read on in one round without an event
UNWATCHED: Final = -1
FLOWING: Final = FlowState.FLOWING


@dataclass(slots=True, eq=False)
class Flow:
    """One direction of a connection: from ``src`` to ``dst``. Owns the pipe it has leased, nothing else.

    The rest, where its state says that there is one, lies in ``pending`` or in the pipe.
    """

    src: socket.socket
    dst: socket.socket
    src_fd: int
    dst_fd: int
    recv_into: Callable[[bytearray], int]
    send: Callable[[memoryview], int]
    pair: Pair
    pump: Pump
    rev: Flow = field(init=False)  # the other direction
    pending: memoryview | None = None  # what dst did not take
    pipe: Pipe | None = None
    small: int = 0
    count: int = 0
    state: FlowState = FLOWING
    watch: int = EPOLLIN  # what the epoll watches src for; UNWATCHED: it is not in there


class Pair:
    """One connection: client, daemon, and a flow each way. Owns both sockets."""

    __slots__ = ("boot_id", "broken", "closed", "down", "id", "last", "since", "up")

    def __init__(
        self, number: int, client: socket.socket, daemon: socket.socket, boot_id: str, since: float, pump: Pump
    ) -> None:
        self.id = number
        self.boot_id = boot_id
        self.since = since
        self.closed = False
        self.broken = False  # one side was reset: however the rest ends, it ends as a reset
        client_fd, daemon_fd = client.fileno(), daemon.fileno()
        self.up = Flow(client, daemon, client_fd, daemon_fd, client.recv_into, daemon.send, self, pump)
        self.down = Flow(daemon, client, daemon_fd, client_fd, daemon.recv_into, client.send, self, pump)
        self.up.rev = self.down
        self.down.rev = self.up
        self.last = self.down  # the direction in which bytes went last

    def end(self) -> None:
        self.up.pump.end(self)

    def reset(self) -> None:
        self.up.pump.reset(self)

    def moved(self) -> tuple[int, int]:
        """Bytes that the daemon took, and the client."""
        return self.up.count, self.down.count

    def info(self, now: float, *, peers: bool) -> ConnectionInfo:
        return ConnectionInfo(
            self.id,
            peer_of(self.up.src) if peers else "",
            now - self.since,
            self.up.count,
            self.down.count,
            answered=self.last is self.down,
            half_sent=self.up.state.blocked or self.down.state.blocked,
        )


class Pump:
    """Moves bytes for every pair that was added. Owns the pairs, the buffer and the pipes; the epoll is the relay's.

    Args:
        epoll: where the sockets are watched; other pumps may share it and ``flows``.
        flows: each flow by the descriptor that it reads from.
        counters: the relay's.
        on_closed: called with each pair once its sockets are closed.
        on_again: called when a flow is to be read on that no event will call for; :meth:`run_again` does it.
        pool: the pipes that it leases.
        splice: splice(2), or a test's fake of it.
    """

    def __init__(
        self,
        epoll: select.epoll,
        flows: dict[int, Flow],
        counters: Counters,
        on_closed: Callable[[Pair], None],
        on_again: Callable[[], None],
        *,
        pool: PipePool | None = None,
        splice: Callable[..., int] = os.splice,
    ) -> None:
        self._epoll = epoll
        self._counters = counters
        self._on_closed = on_closed
        self._pool = pool or PipePool()
        self._move = splice
        self._made = 0
        self._buffer = bytearray(BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._flows = flows
        self._on_again = on_again
        self.again: deque[Flow] = deque()  # flows of lost sources: no event will call for them

    def add(
        self, client: socket.socket, daemon: socket.socket, boot_id: str, *, since: float = 0.0, fresh: bool = False
    ) -> Pair:
        """Take over two connected sockets; where they cannot be watched, the answer is a pair that is closed.

        ``fresh``: neither is registered in the epoll; else each of them may be.
        """
        self._made += 1
        pair = Pair(self._made, client, daemon, boot_id, since, self)
        watch = self._epoll.register if fresh else self._watch
        try:
            for flow in (pair.up, pair.down):
                self._flows[flow.src_fd] = flow
                watch(flow.src_fd, EPOLLIN)
        except OSError:  # epoll_ctl(2): no memory, or no more watches for this user
            self.reset(pair)
            return pair
        self.read(pair.up)  # what the client has sent meanwhile goes out with the same wakeup
        return pair

    def _watch(self, fd: int, events: int) -> None:
        try:
            self._epoll.modify(fd, events)
        except FileNotFoundError:
            self._epoll.register(fd, events)

    # -- events ------------------------------------------------------------------------------------------------------

    def handle(self, flow: Flow, events: int) -> None:
        """Handle the epoll's events of the descriptor that ``flow`` reads from."""
        rev = flow.rev
        if events & EPOLLOUT and rev.state.blocked:  # the destination takes bytes again: the rest first
            if rev.pending is not None:
                self._flush(rev, rev.pending)
            elif rev.pipe is not None:
                self._empty(rev, rev.pipe)
        if flow.pair.closed:
            return
        if flow.state is FLOWING:
            if events & (EPOLLIN | EDEAD):
                self.read(flow)
        elif events & EDEAD:
            self._met(flow, FlowEvent.SOURCE_DEAD)

    def run_again(self) -> None:
        """Read on from sources that no event will call for, a bounded number of times."""
        for _ in range(min(len(self.again), AGAIN_AT_ONCE)):
            flow = self.again.popleft()
            if not flow.pair.closed and flow.state.readable:
                self.read(flow)
                if flow.state is FlowState.ORPHANED and not flow.pair.closed:
                    self.again.append(flow)

    def _read_later(self, flow: Flow) -> None:
        self.again.append(flow)
        self._on_again()

    def _met(self, flow: Flow, event: FlowEvent) -> None:
        """Decide what the event means, and do it."""
        flow.state, flow.pair.broken, do = step(flow.state, flow.rev.state, flow.pair.broken, event)
        if flow.state is FlowState.ENDED:
            flow.pending = None
            self._give_back(flow)
        for action in do:
            match action:
                case Do.WATCH:
                    self._watch_both(flow)
                case Do.UNWATCH:
                    flow.watch = UNWATCHED
                    self._epoll.unregister(flow.src_fd)
                case Do.SHUT_DOWN:
                    try:
                        flow.dst.shutdown(socket.SHUT_WR)
                    except OSError:
                        self._met(flow, FlowEvent.DESTINATION_LOST)
                        return
                case Do.READ_ON:
                    self._read_later(flow)
                case Do.READ_BACK:
                    self._read_later(flow.rev)
                case Do.CLOSE:
                    self._close(flow.pair)
                case Do.RESET:
                    self.reset(flow.pair)

    def _watch_both(self, flow: Flow) -> None:
        """Have the epoll watch both sockets for what is waited for now."""
        for way in (flow, flow.rev):
            if way.watch != UNWATCHED:
                readable, writable = waits_for(way.state, way.rev.state)
                events = (EPOLLIN if readable else 0) | (EPOLLOUT if writable else 0)
                if events != way.watch:
                    way.watch = events
                    self._epoll.modify(way.src_fd, events)

    # -- moving bytes ------------------------------------------------------------------------------------------------

    def read(self, flow: Flow) -> None:
        """Move once from source to destination; the epoll is level-triggered and calls again for more."""
        if flow.pipe is not None:
            self._splice(flow, flow.pipe)
            return
        try:
            size = flow.recv_into(self._buffer)
        except BlockingIOError:
            self._met(flow, FlowEvent.EMPTY)
            return
        except OSError:
            self._met(flow, FlowEvent.SOURCE_RESET)
            return
        if not size:
            self._met(flow, FlowEvent.END)
            return
        self._counters.copied_bytes += size
        flow.pair.last = flow
        try:
            sent = flow.send(self._view[:size])
        except BlockingIOError:
            sent = 0
        except OSError:
            self._met(flow, FlowEvent.DESTINATION_LOST)
            return
        flow.count += sent
        if sent < size:
            flow.pending = memoryview(bytes(self._view[sent:size]))
            self._met(flow, FlowEvent.STALLED)
        elif size == BUFFER_BYTES:
            flow.pipe = self._pool.lease()
            self._counters.pipes_denied = self._pool.denied
            if flow.pipe is not None:
                # killed now, it must not look to the destination as if that had been all: the kernel's close would
                flow.dst.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_LINGER)

    def _splice(self, flow: Flow, pipe: Pipe) -> None:
        """Source to pipe to destination, without a copy. The pipe is empty here, so EAGAIN means an empty source."""
        try:
            size = self._move(flow.src_fd, pipe.write_fd, PIPE_BYTES, flags=NONBLOCK)
        except BlockingIOError:
            self._give_back(flow)
            self._met(flow, FlowEvent.EMPTY)
            return
        except OSError:
            self._met(flow, FlowEvent.SOURCE_RESET)
            return
        if not size:
            # The end, or urgent data, which splice(2) never moves (tcp_read_sock, net/ipv4/tcp.c): a read tells which.
            self._give_back(flow)
            self.read(flow)
            return
        self._counters.spliced_bytes += size
        flow.pair.last = flow
        pipe.held = size
        flow.small = flow.small + 1 if size < SMALL_BYTES else 0
        self._empty(flow, pipe)
        if flow.small >= SMALL_TIMES and not pipe.held:
            self._give_back(flow)

    def _empty(self, flow: Flow, pipe: Pipe) -> None:
        """Pipe to destination, as much as it takes."""
        try:
            sent = self._move(pipe.read_fd, flow.dst_fd, pipe.held, flags=NONBLOCK)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._met(flow, FlowEvent.DESTINATION_LOST)
            return
        flow.count += sent
        pipe.held -= sent
        if pipe.held:
            self._met(flow, FlowEvent.STALLED)
        elif flow.state.blocked:
            self._met(flow, FlowEvent.DRAINED)

    def _flush(self, flow: Flow, pending: memoryview) -> None:
        """What was copied and not taken yet."""
        try:
            sent = flow.send(pending)
        except BlockingIOError:
            return
        except OSError:
            self._met(flow, FlowEvent.DESTINATION_LOST)
            return
        flow.count += sent
        flow.pending = pending[sent:] if sent < len(pending) else None
        if flow.pending is None:
            self._met(flow, FlowEvent.DRAINED)

    def _give_back(self, flow: Flow) -> None:
        """The burst is over: a close of the destination is an orderly one again."""
        if flow.pipe is not None:
            self._pool.give_back(flow.pipe)
            flow.pipe = None
            flow.small = 0
            flow.dst.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)

    # -- ends --------------------------------------------------------------------------------------------------------

    def end(self, pair: Pair) -> None:
        """End both ways in order where nothing is under way; close(2) sends a reset by itself if bytes came unread."""
        if pair.up.state.blocked or pair.down.state.blocked or pair.broken:
            self.reset(pair)
        elif not pair.closed:
            self._close(pair)

    def reset(self, pair: Pair) -> None:
        """End both ways by a reset: an orderly close would tell that a truncated stream was whole."""
        if pair.closed:
            return
        for flow in (pair.up, pair.down):
            self._give_back(flow)  # which undoes SO_LINGER
        reset_on_close(pair.up.src)
        reset_on_close(pair.down.src)
        self._close(pair)

    def _close(self, pair: Pair) -> None:
        pair.closed = True
        for flow in (pair.up, pair.down):
            self._flows.pop(flow.src_fd, None)
            self._give_back(flow)
            flow.pending = None
        for flow in (pair.up, pair.down):
            flow.src.close()  # close(2) takes it out of the epoll: no other descriptor refers to it
        self._on_closed(pair)

    def close(self) -> None:
        """Reset everything and give every descriptor back."""
        for flow in [flow for flow in self._flows.values() if flow.pump is self]:
            self.reset(flow.pair)
        self._pool.close()
