"""A small TCP daemon that answers each line with its version, its pid and the line; and misbehaves on request.

    python -m turnout.demo.daemon --port N --version v1

It is what the demonstration deploys and what tests put behind the fixed address. ``HEALTH`` is answered with ``ok``.
One thread and no event loop but ``selectors``, so that it is there within some 30 ms.
"""

from __future__ import annotations

import argparse
import errno
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

BACKLOG: Final = 4096
READ_BYTES: Final = 65536
HELD_BYTES: Final = 1 << 20  # of one connection, in either direction; beyond it nothing more is read
LEAVE_S: Final = 1.0
TICK_S: Final = 0.02


class LineConnection:
    """One client. Owns its socket."""

    __slots__ = ("answered", "ended", "heard", "sock", "to_send")

    def __init__(self, sock: socket.socket, banner: bytes) -> None:
        self.sock = sock
        self.heard = bytearray()
        self.to_send = bytearray(banner)
        self.ended = False  # the client sends no more; it may well read on
        self.answered = 0

    def next_line(self) -> bytes | None:
        """The next whole line; at the end what is left of one."""
        end = self.heard.find(b"\n")
        if end < 0 and not (self.ended and self.heard):
            return None
        line = bytes(self.heard if end < 0 else self.heard[:end])
        del self.heard[: len(line) + 1]
        return line


class LineDaemon:
    """Serves. Owns the listener, the selector and the connections."""

    def __init__(self, options: argparse.Namespace, listener: socket.socket) -> None:
        self._options = options
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._connections: set[LineConnection] = set()
        self._lines = 0
        self._began = time.monotonic()
        self._leave_by: float | None = None
        self._was_silent = False
        wake_read, wake_write = socket.socketpair()
        wake_read.setblocking(False)
        wake_write.setblocking(False)
        self._wake = (wake_read, wake_write)  # a signal interrupts select no more (PEP 475), so it wakes us by this
        signal.set_wakeup_fd(wake_write.fileno(), warn_on_full_buffer=False)
        self._selector.register(wake_read, selectors.EVENT_READ)
        self._selector.register(listener, selectors.EVENT_READ)

    def leave(self, *_signal: object) -> None:
        """Take no new connections, let those that are open finish for a second, and end."""
        self._leave_by = time.monotonic() + LEAVE_S

    def serve(self) -> None:
        listening = True
        # also when the signal came before the first look: clients in the queue by then have been promised an answer
        while listening or (self._connections and time.monotonic() < (self._leave_by or 0.0)):
            for key, events in self._selector.select(self._patience_s()):
                if key.fileobj is self._listener:
                    self._accept()
                elif isinstance(key.data, LineConnection):
                    self._advance(key.data, readable=bool(events & selectors.EVENT_READ))
                else:
                    self._wake[0].recv(READ_BYTES)
            if listening and self._leave_by is not None:
                listening = False
                self._accept()  # closing a listener resets what is still in its queue
                self._selector.unregister(self._listener)
                self._listener.close()
            self._hear_again()

    def _patience_s(self) -> float | None:
        """None, unless something other than a socket or a signal can change what we do."""
        watches = self._options.sick_file or self._options.hang_after is not None
        return TICK_S if watches or self._leave_by is not None else None

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:  # the queue is empty, the client is gone, or no descriptors are left
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            banner = self._options.banner
            connection = LineConnection(sock, os.fsencode(f"{banner}\n") if banner else b"")
            self._connections.add(connection)
            self._selector.register(sock, selectors.EVENT_READ, connection)
            self._advance(connection, readable=False)

    def _advance(self, connection: LineConnection, *, readable: bool) -> None:
        """Read, answer and send as far as that goes without waiting."""
        try:
            if readable and not connection.ended:
                data = connection.sock.recv(READ_BYTES)
                connection.ended = not data
                connection.heard += data
            self._answer(connection)
            while connection.to_send:
                del connection.to_send[: connection.sock.send(connection.to_send)]
                if not connection.to_send:
                    self._answer(connection)
        except BlockingIOError:
            pass
        except OSError:
            self._drop(connection)
            return
        spent = self._is_spent(connection)
        if not connection.to_send and (spent or (connection.ended and not connection.heard)):
            self._drop(connection)
            return
        self._watch(connection, reads=not connection.ended and not spent)

    def _is_spent(self, connection: LineConnection) -> bool:
        limit: int = self._options.lines_limit
        return 0 < limit <= connection.answered

    def _answer(self, connection: LineConnection) -> None:
        while len(connection.to_send) < HELD_BYTES and not self._is_spent(connection) and not self._is_silent():
            line = connection.next_line()
            if line is None:
                if len(connection.heard) >= HELD_BYTES:
                    raise OSError(errno.EMSGSIZE, "a line that never ends")
                return
            connection.to_send += self._reply(line)
            connection.answered += 1

    def _reply(self, line: bytes) -> bytes:
        options = self._options
        if options.die_on_line is not None and line == os.fsencode(options.die_on_line):
            os._exit(options.exit_code)
        if line == b"HEALTH":
            well = not options.unwell_after_lines or self._lines < options.unwell_after_lines
            return b"ok\n" if well else b"unwell\n"
        self._lines += 1
        if options.answer_delay:
            time.sleep(options.answer_delay)  # all clients wait: that is what a daemon that is too slow does
        return b"%s %d %s\n" % (os.fsencode(options.version), os.getpid(), line)

    def _watch(self, connection: LineConnection, *, reads: bool) -> None:
        """Watch for what can be done next, and no more: an event that is never served makes the loop spin."""
        reads = reads and len(connection.heard) < HELD_BYTES and len(connection.to_send) < HELD_BYTES
        wanted = (selectors.EVENT_READ if reads else 0) | (selectors.EVENT_WRITE if connection.to_send else 0)
        known = connection.sock in self._selector.get_map()
        if not wanted:
            if known:
                self._selector.unregister(connection.sock)
        elif known:
            self._selector.modify(connection.sock, wanted, connection)
        else:
            self._selector.register(connection.sock, wanted, connection)

    def _drop(self, connection: LineConnection) -> None:
        self._connections.discard(connection)
        if connection.sock in self._selector.get_map():
            self._selector.unregister(connection.sock)
        connection.sock.close()

    def _is_silent(self) -> bool:
        options = self._options
        hangs = options.hang_after is not None and time.monotonic() - self._began >= options.hang_after
        return hangs or bool(options.sick_file and Path(options.sick_file).exists())

    def _hear_again(self) -> None:
        """Answer what came in while we were silent."""
        silent = self._is_silent()
        if self._was_silent and not silent:
            for connection in list(self._connections):
                self._advance(connection, readable=False)
        self._was_silent = silent


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="turnout.demo.daemon", description="Answers each line with its version.")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--port", type=int, help="where to listen; 0: anywhere, and it says where")
    where.add_argument("--fd", type=int, help="serve on this inherited listener")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--version", default="v1", help="the first word of each answer")
    parser.add_argument("--banner", default="", metavar="TEXT", help="what it says before it is asked")
    parser.add_argument("--start-delay", type=float, default=0.0, metavar="S", help="wait before listening")
    parser.add_argument(
        "--listen-on", type=int, default=None, metavar="PORT", help="listen there, whatever --port says"
    )
    parser.add_argument("--never-listen", action="store_true")
    parser.add_argument("--exit-after", type=float, default=None, metavar="S", help="seconds after the start")
    parser.add_argument("--exit-code", type=int, default=1, metavar="N", help="for --exit-after and --die-on-line")
    parser.add_argument("--hang-after", type=float, default=None, metavar="S", help="accept, but answer nothing more")
    parser.add_argument("--answer-delay", type=float, default=0.0, metavar="S", help="wait before each answer")
    parser.add_argument("--die-on-line", default=None, metavar="WORD", help="exit at a line that is just this")
    parser.add_argument("--sick-file", default="", metavar="PATH", help="while it exists, nothing is answered")
    parser.add_argument("--unwell-after-lines", type=int, default=0, metavar="N", help="then HEALTH is not ok any more")
    parser.add_argument("--lines-limit", type=int, default=0, metavar="N", help="close a connection after N answers")
    parser.add_argument("--ignore-term", action="store_true")
    parser.add_argument("--fork-twice", action="store_true", help="go to the background, as daemons once did")
    parser.add_argument(
        "--grandchildren", type=int, default=0, metavar="N", help="leave N processes in sessions of their own"
    )
    parser.add_argument("--needs-file", default="", metavar="NAME", help="exit at once unless it is in the directory")
    parser.add_argument("--spew", type=int, default=0, metavar="BYTES", help="log output at the start")
    options = parser.parse_args(argv)
    options.port = options.port if options.listen_on is None else options.listen_on
    return options


def main(argv: Sequence[str]) -> int:
    options = _parse(argv)
    if options.fork_twice:
        if os.fork():
            os._exit(0)
        os.setsid()
        if os.fork():
            os._exit(0)
    if options.needs_file and not Path(options.needs_file).exists():
        print(f"{options.needs_file} is not in {Path.cwd()}", file=sys.stderr)  # noqa: T201  # its log
        return 1
    for _ in range(options.grandchildren):
        _leave_a_grandchild()
    if options.ignore_term:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if options.exit_after is not None:
        exit_code: int = options.exit_code

        def end(_number: int, _frame: object) -> None:
            os._exit(exit_code)

        signal.signal(signal.SIGALRM, end)
        signal.setitimer(signal.ITIMER_REAL, max(options.exit_after, 1e-6))
    line = b"x" * 79 + b"\n"
    for start in range(0, options.spew, READ_BYTES):
        chunk = line * (READ_BYTES // len(line) + 1)
        sys.stdout.buffer.write(chunk[: min(READ_BYTES, options.spew - start)])
    sys.stdout.flush()
    time.sleep(options.start_delay)
    while options.never_listen:
        signal.pause()
    return _serve(options)


def _leave_a_grandchild() -> None:
    """As programs do that start a helper in the background: it has no parent, and TERM does not end it."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        signal.pause()


def _open_listener(options: argparse.Namespace) -> socket.socket:
    """The inherited listener of ``--fd``, else a new one; the caller closes it."""
    if options.fd is not None:
        return socket.socket(fileno=options.fd)
    listener = socket.socket(socket.AF_INET6 if ":" in options.host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((options.host, options.port))
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _serve(options: argparse.Namespace) -> int:
    try:
        listener = _open_listener(options)
    except OSError as error:
        place = f"descriptor {options.fd}" if options.fd is not None else f"{options.host} port {options.port}"
        print(f"cannot listen on {place}: {error.strerror}", file=sys.stderr)  # noqa: T201  # its log
        return 1
    with listener:
        listener.setblocking(False)
        daemon = LineDaemon(options, listener)
        if not options.ignore_term:
            signal.signal(signal.SIGTERM, daemon.leave)
        signal.signal(signal.SIGINT, daemon.leave)
        host, port = listener.getsockname()[:2]
        # PYTHONIOENCODING makes stdout strict, and a version may be any bytes
        sys.stdout.buffer.write(os.fsencode(f"{options.version}, pid {os.getpid()}, listens on {host} port {port}\n"))
        sys.stdout.flush()
        daemon.serve()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
