"""A decoder of the PROXY protocol, version 2, written from its text alone: what a daemon would have."""

from __future__ import annotations

import socket
from dataclasses import dataclass


@dataclass(frozen=True)
class Told:
    """What a header says. ``source`` and ``destination`` are None for LOCAL."""

    command: str
    source: tuple[str, int] | None
    destination: tuple[str, int] | None


def decode(data: bytes) -> tuple[Told, bytes]:
    """The header at the beginning of ``data``, and what follows it."""
    assert data[:12] == bytes.fromhex("0D0A0D0A000D0A515549540A"), data[:12]
    version, command = data[12] >> 4, data[12] & 15
    assert version == 2
    family, transport = data[13] >> 4, data[13] & 15
    size = data[14] << 8 | data[15]
    body, rest = data[16 : 16 + size], data[16 + size :]
    assert len(body) == size
    if command == 0:
        return Told("LOCAL", None, None), rest
    assert command == 1
    assert transport == 1, "STREAM"
    address_size, kind = {1: (4, socket.AF_INET), 2: (16, socket.AF_INET6)}[family]
    hosts = [socket.inet_ntop(kind, body[at : at + address_size]) for at in (0, address_size)]
    ports = [body[at] << 8 | body[at + 1] for at in (2 * address_size, 2 * address_size + 2)]
    assert size == 2 * address_size + 4
    return Told("PROXY", (hosts[0], ports[0]), (hosts[1], ports[1])), rest


def read_header(sock: socket.socket) -> Told:
    """Take exactly one header from a connection."""
    data = b""
    while len(data) < 16 or len(data) < 16 + (data[14] << 8 | data[15]):
        want = 16 if len(data) < 16 else 16 + (data[14] << 8 | data[15])
        part = sock.recv(want - len(data))
        assert part, "the stream ended inside the header"
        data += part
    told, rest = decode(data)
    assert not rest
    return told
