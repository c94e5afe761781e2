"""The PROXY protocol, version 2: how a daemon behind a relay learns who its client is.

Source: https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt, section 2.2.
"""

from __future__ import annotations

import ipaddress
import struct
from typing import Final

from turnout.core.model import Daemon

SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
_LOCAL: Final = 0x20  # version 2, command LOCAL: the sender speaks for itself, as a health check does
_PROXY: Final = 0x21  # version 2, command PROXY
_UNSPEC: Final = 0x00
_TCP4: Final = 0x11  # AF_INET, STREAM
_TCP6: Final = 0x21  # AF_INET6, STREAM

LOCAL_HEADER: Final = SIGNATURE + struct.pack("!BBH", _LOCAL, _UNSPEC, 0)


def header(source: tuple[str, int], destination: tuple[str, int]) -> bytes:
    """What goes before the first byte of a connection.

    Args:
        source: the client's numeric address and port.
        destination: the address and port that it connected to, of the same family.

    Raises:
        ValueError: an address is none, or the two are of different families.
    """
    ends = ipaddress.ip_address(source[0]), ipaddress.ip_address(destination[0])
    if ends[0].version != ends[1].version:
        raise ValueError(f"{source[0]} and {destination[0]} are not of one family")
    family = _TCP4 if ends[0].version == 4 else _TCP6
    payload = ends[0].packed + ends[1].packed + struct.pack("!HH", source[1], destination[1])
    return SIGNATURE + struct.pack("!BBH", _PROXY, family, len(payload)) + payload


def expects_header(daemon: Daemon | None, configured: str) -> bool:
    """Whether a daemon expects a header before each connection: as it was started, whatever the settings say now.

    Args:
        daemon: the daemon; None: it is about to be started.
        configured: ``proxy_protocol`` of the settings, for a daemon whose entry in the registry does not say.
    """
    return ((daemon.proxy_protocol if daemon else "") or configured) == "v2"
