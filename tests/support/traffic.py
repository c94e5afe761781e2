"""What clients and daemons do in the tests of planes: send, read, end, reset; payloads that tell where they are."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from bulk_daemon import block
from stage import Daemon, Stage
from turnout.system.net.sockets import descriptors_of, listeners_of

PAYLOADS = {
    name: b"".join(block(first + number) for number in range(10)) for name, first in (("client", 0), ("daemon", 100))
}
STEP = 256 * 1024


class End:
    """One side of a connection. Sends its payload, checks the other's against what was to come, byte for byte."""

    def __init__(self, name: str, sock: socket.socket, other: str) -> None:
        self.name = name
        self.sock = sock
        self._to_send = memoryview(PAYLOADS[name])
        self._to_come = memoryview(PAYLOADS[other])
        self.sent = 0
        self.came = 0

    def send(self, size: int) -> None:
        self.sock.sendall(self._to_send[self.sent : self.sent + size])
        self.sent += size

    def take(self, size: int) -> bool:
        """Take so many bytes; False where the stream ends before. A reset is raised."""
        goal = self.came + size
        while self.came < goal:
            part = self.sock.recv(min(goal - self.came, STEP))
            if not part:
                return False
            assert part == self._to_come[self.came : self.came + len(part)], f"wrong bytes to the {self.name}"
            self.came += len(part)
        return True

    def take_all(self) -> None:
        """Everything up to the end of stream."""
        assert not self.take(len(self._to_come) + 1)

    def push(self, there: End) -> None:
        """Send what is left, and return with as much of it under way as the buffers between the two hold."""
        self.sock.setblocking(False)
        while self.sent < len(self._to_send):
            try:
                self.sent += self.sock.send(self._to_send[self.sent : self.sent + STEP])
            except BlockingIOError:
                there.take(STEP)
        self.sock.settimeout(20)

    def say_all_and_end(self) -> None:
        self.send(len(self._to_send) - self.sent)
        self.sock.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def at_once(*acts: Callable[[], object]) -> Iterator[None]:
    """Each in a thread of its own; all of them are over, without an error, at the end of the block."""
    failed: list[BaseException] = []

    def run(act: Callable[[], object]) -> None:
        try:
            act()
        except BaseException as error:  # noqa: BLE001  # it is raised below
            failed.append(error)

    threads = [threading.Thread(target=run, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()
    yield
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    if failed:
        raise failed[0]


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def read_all(sock: socket.socket) -> bytes:
    """Everything up to the end of stream; a reset is raised."""
    data = b""
    while part := sock.recv(65536):
        data += part
    return data


def read_exactly(sock: socket.socket, size: int) -> bytes:
    """So many bytes. MSG_WAITALL does not wait on a socket with a timeout, which Python keeps non-blocking."""
    data = bytearray()
    while len(data) < size:
        part = sock.recv(size - len(data))
        assert part, "the stream ended early"
        data += part
    return bytes(data)


def is_reset(sock: socket.socket) -> bool:
    """Whether the connection breaks, whatever comes before: by a reset, or ended from outside (sock_diag(7))."""
    try:
        read_all(sock)
    except (ConnectionResetError, ConnectionAbortedError):
        return True
    return False


def is_turned_away(stage: Stage) -> bool:
    """Whether a new client is reset, be it while it connects or right after."""
    try:
        return is_reset(stage.client())
    except ConnectionResetError:
        return True


class Answering(threading.Thread):
    """Accepts and answers each line with the boot's name."""

    def __init__(self, daemon: Daemon) -> None:
        super().__init__(daemon=True)
        self._daemon = daemon

    def run(self) -> None:
        while True:
            try:
                sock = self._daemon.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(sock,), daemon=True).start()

    def _answer(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError), sock, sock.makefile("rb") as lines:
            for line in lines:
                sock.sendall(self._daemon.target.boot_id.encode() + b" " + line)


def resident_bytes() -> int:
    """What this process has in memory now; its peak would hide growth below an earlier peak (proc(5), statm)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def open_fds() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def listening_fds() -> int:
    """How many of these are listeners: a plane whose daemons share the address has some more of them."""
    pid = os.getpid()
    inodes = {listener.inode for listener in listeners_of([pid])}
    return sum(inode in inodes for inode, _ in descriptors_of(pid))
