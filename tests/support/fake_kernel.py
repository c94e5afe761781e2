"""TCP as the pump sees it, in memory: what arrives when is the test's choice.

The rules are Linux': bytes that came before a reset are still read; the error is told once, to whoever asks first, and
after that a read sees an end and a write a broken pipe; a peer that closed with bytes unread, or gets bytes after it
closed, resets.
"""

from __future__ import annotations

import errno
import select
import socket

from turnout.planes.pipe_pool import Pipe, PipePool
from turnout.system.net.tcp import RESET_LINGER


class FakeSocket:
    """The pump's end of a connection, with the peer's end as methods ``peer_*``."""

    def __init__(self, number: int, room: int) -> None:
        self.number = number
        self.room = room  # how much the peer's buffers take
        self.inbox = bytearray()  # from the peer, unread by the pump
        self.outbox = bytearray()  # to the peer, unread by it
        self.peer_sent = bytearray()
        self.peer_got = bytearray()
        self.peer_ended = False  # it has sent its end of stream, in order
        self.peer_closed = False
        self.dead = False  # a reset came
        self.error = False  # and was not told yet
        self.ended = False  # we have sent our end of stream
        self.lingers = True
        self.closed = False
        self.seen_by_peer = ""  # how the connection ended for it: "end", "reset"

    # -- what the pump calls -----------------------------------------------------------------------------------------

    def fileno(self) -> int:
        return self.number

    def _raise(self) -> None:
        if self.error:
            self.error = False
            raise ConnectionResetError(errno.ECONNRESET, "reset")

    def recv_into(self, buffer: bytearray) -> int:
        data = self.take(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def take(self, most: int) -> bytes:
        assert not self.closed
        if self.inbox:
            data = bytes(self.inbox[:most])
            del self.inbox[:most]
            return data
        self._raise()
        if self.dead or self.peer_ended:
            return b""
        raise BlockingIOError

    def send(self, data: bytes | memoryview) -> int:
        assert not self.closed
        assert not self.ended, "bytes after the end of stream"
        self._raise()
        if self.dead:
            raise BrokenPipeError
        if self.peer_closed:  # taken by the kernel, and answered with a reset
            self._die()
            return len(data)
        size = min(len(data), self.room - len(self.outbox))
        if not size:
            raise BlockingIOError
        self.outbox += data[:size]
        return size

    def shutdown(self, how: int) -> None:
        assert how == socket.SHUT_WR
        if self.dead:
            raise OSError(errno.ENOTCONN, "not connected")
        self.ended = True

    def setsockopt(self, level: int, name: int, value: bytes) -> None:
        assert (level, name) == (socket.SOL_SOCKET, socket.SO_LINGER)
        self.lingers = value != RESET_LINGER

    def close(self) -> None:
        assert not self.closed, "closed twice"
        self.closed = True
        if not self.lingers or self.inbox:
            self.seen_by_peer = "reset"
        else:
            self.ended = True

    # -- what the peer does ------------------------------------------------------------------------------------------

    def peer_send(self, data: bytes) -> None:
        if not (self.peer_ended or self.peer_closed or self.dead or self.closed):
            self.peer_sent += data
            self.inbox += data

    def peer_end(self) -> None:
        self.peer_ended = self.peer_ended or not self.peer_closed

    def peer_reset(self) -> None:
        self.peer_closed = True
        self._die()

    def peer_close(self) -> None:
        """As close(2): a reset where bytes are unread."""
        if self.outbox or self.dead:
            self.peer_reset()
        else:
            self.peer_closed = self.peer_ended = True

    def peer_read(self, most: int) -> None:
        if self.peer_closed:
            return
        self.peer_got += self.outbox[:most]
        del self.outbox[:most]
        if not self.outbox and self.ended and not self.seen_by_peer:
            self.seen_by_peer = "end"

    def _die(self) -> None:
        self.outbox.clear()
        if not self.dead and not self.closed:
            self.dead = self.error = True

    def events(self) -> int:
        """As tcp_poll() reports them."""
        found = 0
        if self.inbox or self.peer_ended or self.dead:
            found |= select.EPOLLIN
        if self.dead or len(self.outbox) < self.room:
            found |= select.EPOLLOUT
        if self.error:
            found |= select.EPOLLERR
        if self.dead or (self.peer_ended and self.ended):
            found |= select.EPOLLHUP
        return found


class FakeEpoll:
    """Level-triggered; errors and hang-ups are always reported (epoll_ctl(2))."""

    def __init__(self) -> None:
        self.interest: dict[int, int] = {}
        self.sockets: dict[int, FakeSocket] = {}

    def register(self, fd: int, events: int) -> None:
        assert fd not in self.interest
        self.interest[fd] = events

    def modify(self, fd: int, events: int) -> None:
        if fd not in self.interest:
            raise FileNotFoundError
        self.interest[fd] = events

    def unregister(self, fd: int) -> None:
        del self.interest[fd]

    def ready(self) -> list[tuple[int, int]]:
        always = select.EPOLLERR | select.EPOLLHUP
        found = []
        for fd, interest in self.interest.items():
            sock = self.sockets[fd]
            what = 0 if sock.closed else sock.events() & (interest | always)
            if what:
                found.append((fd, what))
        return found


class FakePipe(Pipe):
    """A pipe whose bytes can be looked at."""

    __slots__ = ("data",)

    def __init__(self, number: int, size: int) -> None:
        super().__init__(number, number + 1, size)
        self.data = bytearray()

    def close(self) -> None:
        self.data.clear()


class FakePipes(PipePool):
    """A pool of such pipes, and splice(2) between them and the sockets."""

    def __init__(self, sockets: dict[int, FakeSocket], *, max_pipes: int, pipe_bytes: int) -> None:
        super().__init__(max_pipes=max_pipes)
        self._sockets = sockets
        self._pipe_bytes = pipe_bytes
        self._number = 1000
        self._by_fd: dict[int, FakePipe] = {}

    def make(self) -> Pipe | None:
        self._number += 2
        pipe = FakePipe(self._number, self._pipe_bytes)
        self._by_fd[pipe.read_fd] = self._by_fd[pipe.write_fd] = pipe
        return pipe

    def splice(self, src: int, dst: int, count: int, *, flags: int) -> int:
        assert flags
        if dst in self._by_fd:
            pipe = self._by_fd[dst]
            assert not pipe.data, "only an empty pipe is filled"
            data = self._sockets[src].take(min(count, pipe.size))
            pipe.data += data
            return len(data)
        pipe = self._by_fd[src]
        assert pipe.data
        sent = self._sockets[dst].send(bytes(pipe.data[:count]))
        del pipe.data[:sent]
        return sent
