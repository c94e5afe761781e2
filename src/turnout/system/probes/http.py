"""One GET over a raw socket, with one deadline for all of it. http.client has time-outs for single calls only.

HTTP/1.1 (RFC 9112) as far as a health endpoint speaks it: a status, headers, and a body of a told length, in chunks, or
up to the end of the connection.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Sequence
from typing import Final

import msgspec

MAX_ANSWER_BYTES: Final = 65536
_STATUS: Final = re.compile(rb"HTTP/1\.[01] (\d{3})(?: [^\r\n]*)?\r?\n")
_END_OF_HEAD: Final = re.compile(rb"\r?\n\r?\n")
_LENGTH: Final = re.compile(rb"(?im)^content-length:[ \t]*(\d{1,18})[ \t]*\r?$")
_CHUNKED: Final = re.compile(rb"(?im)^transfer-encoding:.*\bchunked[ \t]*\r?$")
_LAST_CHUNK: Final = re.compile(rb"(?:^|\r\n)0+(?:;[^\r\n]*)?\r\n(?:[^\r\n]+\r\n)*\r\n\Z")

Ranges = Sequence[tuple[int, int]]


class Answer(msgspec.Struct, frozen=True):
    """A whole answer, or the first 64 KiB of it."""

    status: int
    body: bytes


class NotHttpError(Exception):
    """What came is no HTTP answer, or only half of one; the message says what, for people."""


def get(sock: socket.socket, path: str, host: str, deadline: float) -> Answer:
    """Ask for ``path`` and read the whole answer, 64 KiB of it at most.

    Args:
        sock: connected; it stays the caller's.
        path: the request target, from the slash on.
        host: what the Host header says.
        deadline: on the monotonic clock.

    Raises:
        TimeoutError: the answer was not whole by then.
        NotHttpError: it is no HTTP, or ended half way.
        OSError: the connection failed.
    """
    sock.settimeout(left(deadline))
    request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: turnout\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    sock.sendall(request.encode("latin-1"))
    received = b""
    while len(received) < MAX_ANSWER_BYTES:
        sock.settimeout(left(deadline))
        data = sock.recv(MAX_ANSWER_BYTES - len(received))
        received += data
        answer = _whole(received, ended=not data)
        if answer:
            return answer
        if not data:
            raise NotHttpError(f"it closed the connection after {show(received)}")
    answer = _whole(received, ended=True)
    if answer is None:
        raise NotHttpError(f"no HTTP answer in {len(received)} bytes, which begin with {show(received)}")
    return answer


def _whole(received: bytes, *, ended: bool) -> Answer | None:
    """The answer, once all of it is there; one to be continued (RFC 9110, 15.2) is passed over."""
    while True:
        status = _STATUS.match(received)
        if status is None:
            if len(received) >= 8 and not received.startswith(b"HTTP/1."):
                raise NotHttpError(f"no HTTP answer: {show(received)}")
            return None
        end = _END_OF_HEAD.search(received)
        if end is None:
            return None
        code = int(status[1])
        if not 100 <= code < 200 or code == 101:
            break
        received = received[end.end() :]
    head, body = received[: end.start() + 2], received[end.end() :]
    if code in {204, 304, 101}:  # these have no body, whatever their headers say (RFC 9112, 6.3)
        return Answer(code, b"")
    if _CHUNKED.search(head):
        return Answer(code, body) if _LAST_CHUNK.search(body) or _full(received) else None
    length = _LENGTH.search(head)
    if length:
        return Answer(code, body) if len(body) >= int(length[1]) or _full(received) else None
    return Answer(code, body) if ended else None


def _full(received: bytes) -> bool:
    return len(received) >= MAX_ANSWER_BYTES


def parse_statuses(text: str) -> tuple[tuple[int, int], ...]:
    """``"200-399"``, ``"200"`` or ``"200,204,300-399"`` as ranges, both ends included.

    Raises ValueError: it is none of these, or a number lies outside 100..599.
    """
    ranges: list[tuple[int, int]] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{3})\s*(?:-\s*(\d{3})\s*)?", part, re.ASCII)
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 100 <= low <= high <= 599:
            raise ValueError(f"{text!r} is no status or range of statuses")
        ranges.append((low, high))
    return tuple(ranges)


def is_within(status: int, ranges: Ranges) -> bool:
    return any(low <= status <= high for low, high in ranges)


def left(deadline: float) -> float:
    """Seconds until the deadline; a time-out of 0 would mean not to block at all."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError
    return seconds


def show(received: bytes, *, most: int = 60) -> str:
    return repr(received[:most])[1:] if received else "nothing"
