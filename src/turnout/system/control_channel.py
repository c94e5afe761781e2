"""The control sockets: one JSON object a line over a unix stream socket, with file descriptors beside it.

Standard library only, because the keeper speaks it. Both ends are turnout of one user; another uid is refused.
"""

from __future__ import annotations

import array
import errno
import json
import os
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NoReturn, cast

from turnout.errors import NotRunningError, ProtocolError, StateUnwritableError, TimedOutError
from turnout.system.files import opened, undone_on_error

MAX_MESSAGE_BYTES: Final = 4 * 1024 * 1024  # a spawn request carries a whole environment; ARG_MAX is 2 MiB
MAX_FDS: Final = 192  # below SCM_MAX_FD (253, unix(7))
SEND_TIMEOUT_S: Final = 2
READS_A_WAKEUP: Final = 64  # of 64 KiB: a peer that never stops writing must not keep the loop
ACCEPT_PAUSE_S: Final = 0.5  # after accept(2) found no descriptor or memory: the socket stays readable meanwhile
_MAX_SUN_PATH: Final = 108  # with the NUL at its end (unix(7))

Message = dict[str, Any]


class Channel:
    """One end of a control connection. Owns its socket and the descriptors that came in and were not claimed yet.

    Args:
        sock: the connected socket; owned from here on.
        peer_pid: the process at the other end, as the kernel says (unix(7), SO_PEERCRED); 0: not known.
        takes_fds: whether descriptors may come in. Where not, the kernel drops what the peer sends (MSG_CTRUNC).
    """

    def __init__(self, sock: socket.socket, *, peer_pid: int = 0, takes_fds: bool = True) -> None:
        self.sock = sock
        self.peer_pid = peer_pid
        self.takes_fds = takes_fds
        # A peer that does not read must not stop a single-threaded keeper: socket(7), SO_SNDTIMEO
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_TIMEOUT_S, 0))
        self._buffer = bytearray()
        self._unsent = bytearray()  # what :meth:`offer` was given and the peer has no room for yet
        self._fds: deque[int] = deque()
        self._dropped = False  # the kernel found no free descriptor for those that the peer sent
        self._ready: deque[tuple[Message, list[int]]] = deque()

    def fileno(self) -> int:
        return self.sock.fileno()

    def send(self, message: Mapping[str, Any], fds: Sequence[int] = (), *, wait: bool = True) -> None:
        """Send one message, and with it copies of ``fds`` (they stay open here).

        Args:
            message: what to send.
            fds: the descriptors.
            wait: whether to wait for a peer that does not read. Where not, what does not fit ends the connection: the
                caller closes it.

        Raises:
            OSError: the peer is gone, or does not read for two seconds.
        """
        data = _encoded(message, len(fds))
        flags = 0 if wait else socket.MSG_DONTWAIT
        sent = 0
        if fds:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
            sent = self.sock.sendmsg([data], rights, flags)
        if wait:
            self.sock.sendall(data[sent:])
        elif sent < len(data) and self.sock.send(data[sent:], flags) < len(data) - sent:
            raise BlockingIOError(errno.EAGAIN, "the peer does not read")

    def offer(self, message: Mapping[str, Any]) -> bool:
        """Send one message without waiting, after those that are unsent; returns whether nothing is left unsent.

        Raises:
            OSError: the peer is gone.
            ProtocolError: more would be unsent than one message may have.
        """
        data = _encoded(message, 0)
        if len(self._unsent) + len(data) > MAX_MESSAGE_BYTES:
            raise ProtocolError("too many bytes wait for the peer to read")
        self._unsent += data
        return self.flush()

    def flush(self) -> bool:
        """Send what is unsent, as far as the peer has room; returns whether nothing is left.

        Raises OSError: the peer is gone.
        """
        while self._unsent:
            try:
                sent = self.sock.send(self._unsent, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return False
            del self._unsent[:sent]
        return True

    def receive(self) -> list[tuple[Message, list[int]]]:
        """Take what has arrived, without waiting. Each message comes with the descriptors it brought: now the caller's.

        Raises:
            EOFError: the peer has closed and nothing is left.
            ProtocolError: not JSON lines, a line over the bound, or descriptors that no message claims.
            OSError: the connection broke.
        """
        closed = self._fill()
        messages = list(self._ready)
        self._ready.clear()
        if closed and not messages:
            raise EOFError
        return messages

    def request(self, message: Mapping[str, Any], fds: Sequence[int] = (), *, timeout_s: float) -> Message:
        """Ask and wait for the one answer; for clients that ask one thing at a time.

        An answer that names another question (``re``, as this one's ``id``) is late: the client was interrupted
        (Ctrl-C), and goes on with another question on the same connection.

        Raises:
            TimedOutError: no answer within ``timeout_s`` seconds.
            NotRunningError: the peer closed the connection instead.
        """
        deadline = time.monotonic() + timeout_s
        try:
            # else a peer that is busy has two seconds to read the question (SO_SNDTIMEO)
            self.sock.settimeout(max(0.0, timeout_s))
            self.send(message, fds)
            while not self._has_answer(message.get("id")):
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                self.sock.settimeout(left)
                if self._fill(wait=True) and not self._ready:
                    raise NotRunningError(f"the connection closed before {message.get('op')!r} was answered")
        except (TimeoutError, BlockingIOError) as error:  # the latter where there is no time to wait at all
            raise TimedOutError(f"no answer to {message.get('op')!r} within {timeout_s:g} s") from error
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
        room = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize) if self.takes_fds else 0
        for _ in range(READS_A_WAKEUP):
            try:
                flags = 0 if wait else socket.MSG_DONTWAIT
                data, ancillary, came, _ = self.sock.recvmsg(65536, room, flags | socket.MSG_CMSG_CLOEXEC)
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
            self._dropped |= self.takes_fds and bool(came & socket.MSG_CTRUNC)  # recvmsg(2)
            self._buffer += data
            self._split()
            if len(self._fds) > MAX_FDS or (self._fds and not self._buffer):
                raise ProtocolError("descriptors came that no control message claims")
            if wait:
                return False
        return False

    def _split(self) -> None:
        *lines, rest = self._buffer.split(b"\n")
        if len(rest) > MAX_MESSAGE_BYTES:
            raise ProtocolError("a control message has no end")
        for line in lines:
            message = decode(bytes(line))
            count = message.pop("fds", 0)
            if type(count) is not int or not 0 <= count <= (len(self._fds) if self.takes_fds else MAX_FDS):
                why = ": none was free here" if self._dropped else ""
                raise ProtocolError(f"a control message lacks its descriptors{why}")
            count = count if self.takes_fds else 0
            self._ready.append((message, [self._fds.popleft() for _ in range(count)]))
        self._buffer = rest


def _encoded(message: Mapping[str, Any], fds: int) -> bytes:
    data = json.dumps({**message, "fds": fds}, separators=(",", ":")).encode() + b"\n"
    if len(data) > MAX_MESSAGE_BYTES or fds > MAX_FDS:
        raise ProtocolError(f"a control message of {len(data)} bytes and {fds} descriptors is too large")
    return data


def decode(line: bytes) -> Message:
    """The message of one line: strict JSON (RFC 8259), an object.

    Raises ProtocolError: it is something else, or nested so deeply that it cannot be read.
    """
    try:
        message = json.loads(line, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("a control message is not JSON") from error
    if not isinstance(message, dict):
        raise ProtocolError("a control message is not an object")
    return cast("Message", message)


def number_of(message: Message) -> int | str | None:
    """The id by which the peer knows the answer again; None where it gave none, or an odd one."""
    number = message.get("id")
    return number if isinstance(number, str) or type(number) is int else None


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number in JSON")


@contextmanager
def _short(path: Path) -> Generator[str]:
    """A name for ``path`` that fits into sun_path: through an open directory, however deep it lies."""
    if len(os.fsencode(path)) < _MAX_SUN_PATH:
        yield str(path)
        return
    with opened(os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as directory:
        yield f"/proc/self/fd/{directory}/{path.name}"


def listen(path: Path) -> socket.socket:
    """Bind a control socket at ``path``, mode 0600; a stale one of a dead process is replaced.

    The caller must hold the lock without which no process may bind here.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    with undone_on_error(sock.close):
        try:
            path.unlink(missing_ok=True)
            with _short(path) as name:
                mask = os.umask(0o177)
                try:
                    sock.bind(name)
                finally:
                    os.umask(mask)
            sock.listen(64)
        except OSError as error:
            raise StateUnwritableError(f"cannot create the socket {path}: {error.strerror}") from error
        sock.setblocking(False)
    return sock


def accept(
    listener: socket.socket,
    *,
    on_stranger: Callable[[int, int], None] | None = None,
    may_send_fds: Callable[[int], bool] = lambda _pid: False,
) -> Channel | None:
    """Accept one connection of our own user; None when there is none, or it is a stranger's (closed at once).

    Args:
        listener: a control socket.
        on_stranger: called with pid and uid of a stranger that was turned away.
        may_send_fds: whether the process with this pid may send descriptors.

    Raises:
        OSError: no descriptor or no memory is left (accept(2)). The socket stays readable: pause for ACCEPT_PAUSE_S.
    """
    try:
        sock, _ = listener.accept()
    except (BlockingIOError, ConnectionAbortedError):
        return None
    with undone_on_error(sock.close):
        sock.setblocking(True)
        # SO_PEERCRED, unix(7): the credentials at connect(2), which the peer cannot forge
        pid, uid, _ = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid in {os.geteuid(), 0}:
            return Channel(sock, peer_pid=pid, takes_fds=may_send_fds(pid))
    sock.close()
    if on_stranger:
        on_stranger(pid, uid)
    return None


def connect(path: Path, *, timeout_s: float = 2.0) -> Channel:
    """Connect to the control socket at ``path``. Raises NotRunningError: no process listens there."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    sock.settimeout(timeout_s)
    with undone_on_error(sock.close):
        try:
            with _short(path) as name:
                sock.connect(name)
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError, TimeoutError, BlockingIOError) as error:
            raise NotRunningError(f"no process answers at {path}") from error
        except PermissionError as error:
            raise StateUnwritableError(f"no permission to use {path}", hint="it belongs to another user") from error
    sock.settimeout(None)
    return Channel(sock)


def _close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)
