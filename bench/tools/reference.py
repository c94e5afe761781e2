"""The least a relay in Python can do, for the guard to measure against: it moves with the machine and with Python.

    python reference.py PORT TARGET_PORT

It makes the system calls that a relay cannot do without, in the same language, so a faster machine, kernel or
interpreter moves both and leaves their ratio alone. A reference in C would not: on two machines the ratio of a Python
relay to HAProxy at 50 connections was 0.90 and 0.79. It is never tuned: a change here is a new baseline.
SIGUSR1 makes it connect to the next of several targets, for the time of a switch.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import select
import signal
import socket
import sys

SIZE = 65536
PIPE = 1 << 20
buffer = bytearray(SIZE)
view = memoryview(buffer)


class Way:
    """One direction: where its bytes go, and what did not fit."""

    def __init__(self, src: socket.socket, dst: socket.socket) -> None:
        self.src, self.dst = src, dst
        self.recv_into, self.send = src.recv_into, dst.send
        self.rev: Way = self
        self.pending = b""
        self.pipe: tuple[int, int] | None = None
        self.held = 0
        self.ended = False

    def read(self) -> bool:
        """Move once; false: it is over."""
        if self.pipe:
            try:
                self.held = os.splice(self.src.fileno(), self.pipe[1], PIPE, flags=NONBLOCK)
            except BlockingIOError:
                return True
            if not self.held:
                return self.end()
            return self.write()
        try:
            size = self.recv_into(buffer)
        except BlockingIOError:
            return True
        if not size:
            return self.end()
        try:
            sent = self.send(view[:size])
        except BlockingIOError:
            sent = 0
        if sent < size:
            self.pending = bytes(view[sent:size])
            self.interest()
        elif size == SIZE:
            self.pipe = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            fcntl.fcntl(self.pipe[1], fcntl.F_SETPIPE_SZ, PIPE)
        return True

    def write(self) -> bool:
        try:
            if self.pending:
                self.pending = self.pending[self.send(self.pending) :]
            elif self.held and self.pipe:
                self.held -= os.splice(self.pipe[0], self.dst.fileno(), self.held, flags=NONBLOCK)
        except BlockingIOError:
            pass
        self.interest()
        return True

    def end(self) -> bool:
        self.ended = True
        self.dst.shutdown(socket.SHUT_WR)
        self.interest()
        return not self.rev.ended

    def interest(self) -> None:
        for one in (self, self.rev):
            events = 0 if one.ended or one.pending or one.held else select.EPOLLIN
            if one.rev.pending or one.rev.held:
                events |= select.EPOLLOUT
            epoll.modify(one.src.fileno(), events)

    def close(self) -> None:
        for one in (self, self.rev):
            ways.pop(one.src.fileno(), None)
            one.src.close()
            if one.pipe:
                os.close(one.pipe[0])
                os.close(one.pipe[1])


NONBLOCK = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE
targets = itertools.cycle([("127.0.0.1", int(port)) for port in sys.argv[2:]])
target = next(targets)
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=4096)
listener.setblocking(False)
epoll = select.epoll()
epoll.register(listener.fileno(), select.EPOLLIN)
ways: dict[int, Way] = {}


def accept() -> None:
    for _ in range(64):
        try:
            client, _peer = listener.accept()
        except BlockingIOError:
            return
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        daemon = socket.create_connection(target, 5)
        daemon.setblocking(False)
        daemon.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        up, down = Way(client, daemon), Way(daemon, client)
        up.rev, down.rev = down, up
        for way in (up, down):
            ways[way.src.fileno()] = way
            epoll.register(way.src.fileno(), select.EPOLLIN)


def move_on(_number: int, _frame: object) -> None:
    global target  # noqa: PLW0603  # a script of one loop
    target = next(targets)


signal.signal(signal.SIGUSR1, move_on)
while True:
    knocking = False
    for fd, what in epoll.poll(-1, 256):
        way = ways.get(fd)
        if way is None:
            knocking = knocking or fd == listener.fileno()
            continue
        try:
            going = way.rev.write() if what & select.EPOLLOUT else True
            if going and what & ~select.EPOLLOUT:
                going = way.read()
        except OSError:
            going = False
        if not going:
            way.close()
    if knocking:
        accept()
