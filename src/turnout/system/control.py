"""The control sockets: one JSON object a line over a unix stream socket, with file descriptors beside it.

Standard library only, because the keeper speaks it. Both ends are turnout of one user; another uid is refused.
"""

from __future__ import annotations

import array
import json
import os
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast

from turnout.errors import NotRunningError, ProtocolError, StateUnwritableError, TimedOutError

MAX_MESSAGE_BYTES: Final = 4 * 1024 * 1024  # a spawn request carries a whole environment; ARG_MAX is 2 MiB
MAX_FDS: Final = 192  # below SCM_MAX_FD (253, unix(7))
SEND_TIMEOUT_S: Final = 2
_MAX_SUN_PATH: Final = 104  # the smallest sun_path among the systems we run on (unix(7): 108 on Linux, 104 on macOS)

Message = dict[str, Any]


class Channel:
    """One end of a control connection. Owns its socket and the descriptors that came in and were not claimed yet."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        # A peer that does not read must not stop a single-threaded keeper: socket(7), SO_SNDTIMEO
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_TIMEOUT_S, 0))
        self._buffer = bytearray()
        self._fds: deque[int] = deque()
        self._ready: deque[tuple[Message, list[int]]] = deque()

    def fileno(self) -> int:
        return self.sock.fileno()

    def send(self, message: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
        """Send one message, and with it copies of ``fds`` (they stay open here).

        Raises:
            OSError: the peer is gone, or does not read for two seconds.
        """
        data = json.dumps({**message, "fds": len(fds)}, separators=(",", ":")).encode() + b"\n"
        if len(data) > MAX_MESSAGE_BYTES or len(fds) > MAX_FDS:
            raise ProtocolError(f"a control message of {len(data)} bytes and {len(fds)} descriptors is too large")
        sent = 0
        if fds:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
            sent = self.sock.sendmsg([data], rights)
        self.sock.sendall(data[sent:])

    def receive(self) -> list[tuple[Message, list[int]]]:
        """Take what has arrived, without waiting. Each message comes with the descriptors it brought: now the caller's.

        Raises:
            EOFError: the peer has closed and nothing is left.
            ProtocolError: not JSON lines, or a line over the bound.
        """
        closed = self._fill()
        messages = list(self._ready)
        self._ready.clear()
        if closed and not messages:
            raise EOFError
        return messages

    def request(self, message: Mapping[str, Any], fds: Sequence[int] = (), *, timeout_s: float) -> Message:
        """Ask and wait for the one answer; for clients that ask one thing at a time.

        An answer that names another question (``re``, as this one's ``id``) is late: whoever asked was interrupted
        (Ctrl-C), and goes on with another question on the same connection.

        Raises:
            TimedOutError: no answer within ``timeout_s`` seconds.
            NotRunningError: the peer closed the connection instead.
        """
        deadline = time.monotonic() + timeout_s
        try:
            self.send(message, fds)
            while not self._has_answer(message.get("id")):
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimedOutError(f"no answer to {message.get('op')!r} within {timeout_s:g} s")
                self.sock.settimeout(left)
                try:
                    if self._fill(wait=True) and not self._ready:
                        raise NotRunningError(f"the connection closed before {message.get('op')!r} was answered")
                except TimeoutError:
                    continue
        except (BrokenPipeError, ConnectionResetError) as error:
            raise NotRunningError(f"the connection broke at {message.get('op')!r}") from error
        finally:
            self.sock.settimeout(None)
        answer, got = self._ready.popleft()
        _close_all(got)
        return answer

    def _has_answer(self, number: object) -> bool:
        """Whether the next message is the answer to that question; those to earlier ones are dropped."""
        while self._ready:
            answer, got = self._ready[0]
            if answer.get("re") in {number, None}:
                return True
            self._ready.popleft()
            _close_all(got)
        return False

    def close(self) -> None:
        for _, fds in self._ready:
            _close_all(fds)
        _close_all(self._fds)
        self._fds.clear()
        self._ready.clear()
        self.sock.close()

    def _fill(self, *, wait: bool = False) -> bool:
        """Read until nothing is there (or, waiting, until something is); True when the peer has closed."""
        while True:
            try:
                flags = 0 if wait else socket.MSG_DONTWAIT
                room = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)
                data, ancillary, _, _ = self.sock.recvmsg(65536, room, flags | socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return False
            except ConnectionResetError:
                return True
            for level, kind, payload in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    got = array.array("i")
                    got.frombytes(payload[: len(payload) - len(payload) % got.itemsize])
                    self._fds.extend(got)
            if not data:
                return True
            self._buffer += data
            self._split()
            if wait:
                return False

    def _split(self) -> None:
        *lines, rest = self._buffer.split(b"\n")
        if len(rest) > MAX_MESSAGE_BYTES:
            raise ProtocolError("a control message has no end")
        for line in lines:
            try:
                message = json.loads(line)
            except ValueError as error:
                raise ProtocolError("a control message is not JSON") from error
            if not isinstance(message, dict):
                raise ProtocolError("a control message is not an object")
            told = cast("Message", message)
            count = told.pop("fds", 0)
            if not isinstance(count, int) or not 0 <= count <= len(self._fds):
                raise ProtocolError("a control message lacks its descriptors")
            self._ready.append((told, [self._fds.popleft() for _ in range(count)]))
        self._buffer = rest


@contextmanager
def _short(path: Path) -> Generator[str]:
    """A name for ``path`` that fits into sun_path: on Linux through an open directory, however deep it lies."""
    if len(os.fsencode(path)) < _MAX_SUN_PATH:
        yield str(path)
        return
    if not Path("/proc/self/fd").is_dir():
        raise StateUnwritableError(
            f"the socket path is too long for this system: {path}", hint="set TURNOUT_HOME to a shorter path"
        )
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def listen(path: Path) -> socket.socket:
    """Bind a control socket at ``path``, mode 0600; a stale one of a dead process is replaced.

    The caller must hold the lock that makes it the only one who may bind here.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        path.unlink(missing_ok=True)
        with _short(path) as name:
            mask = os.umask(0o177)
            try:
                sock.bind(name)
            finally:
                os.umask(mask)
        sock.listen(64)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise StateUnwritableError(f"cannot create the socket {path}: {error.strerror}") from error
    except BaseException:
        sock.close()
        raise
    return sock


def accept(listener: socket.socket, *, on_stranger: Callable[[int, int], None] | None = None) -> Channel | None:
    """Accept one connection of our own user; None when there is none, or it is a stranger's (closed at once).

    Args:
        listener: a control socket.
        on_stranger: called with pid and uid of a stranger that was turned away.
    """
    try:
        sock, _ = listener.accept()
    except (BlockingIOError, ConnectionAbortedError):
        return None
    sock.setblocking(True)
    # SO_PEERCRED, unix(7): the credentials at connect(2), which the peer cannot forge
    pid, uid, _ = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if uid not in {os.geteuid(), 0}:
        sock.close()
        if on_stranger:
            on_stranger(pid, uid)
        return None
    return Channel(sock)


def connect(path: Path, *, timeout_s: float = 2.0) -> Channel:
    """Connect to the control socket at ``path``.

    Raises:
        NotRunningError: nobody listens there.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    sock.settimeout(timeout_s)
    try:
        with _short(path) as name:
            sock.connect(name)
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError, TimeoutError, BlockingIOError) as error:
        sock.close()
        raise NotRunningError(f"nobody answers at {path}") from error
    except PermissionError as error:
        sock.close()
        raise StateUnwritableError(f"no permission to use {path}", hint="it belongs to another user") from error
    except BaseException:
        sock.close()
        raise
    sock.settimeout(None)
    return Channel(sock)


def _close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)
