"""The indices of a SO_REUSEPORT group, and the loopback addresses by which a connection names one; pure.

Router and daemons that share a fixed address are one group, in the order in which they began to listen (socket(7)). A
daemon that takes part has no port of its own: a connection to it, and not to the active one, comes from 127.47.77.N,
and gets the member at index N. Any address in 127.0.0.0/8 is this machine (RFC 1122, 3.2.1.3), and may be bound by
every process: so the router lets each such connection through by its port, too (reuseport/program.py).
"""

from __future__ import annotations

from typing import Final

SOURCE_PREFIX: Final = "127.47.77."
ROUTER_INDEX: Final = 0  # the router's own listener, as long as it was the first
MAX_INDEX: Final = 255  # the last byte of a source


def source_of(index: int | None) -> str:
    """The address from which a connection reaches the member at that index; empty: there is none."""
    return "" if index is None else f"{SOURCE_PREFIX}{index}"


def index_of(source: str) -> int | None:
    """The index that a source names; None: it names none."""
    index = source.removeprefix(SOURCE_PREFIX)
    return int(index) if index != source and index.isascii() and index.isdigit() and int(index) <= MAX_INDEX else None
