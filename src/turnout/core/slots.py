"""The places of a SO_REUSEPORT group, and the loopback addresses by which a connection chooses one; pure.

Router and daemons that share a fixed address are one group, in the order in which they began to listen (socket(7)). A
daemon that takes part has no port of its own: whoever means it, and not the one that is active, connects from
127.47.77.N, and gets the member at place N. Any address in 127.0.0.0/8 is this machine (RFC 1122, 3.2.1.3), and may be
bound by everybody.
"""

from __future__ import annotations

from typing import Final

CHOOSING: Final = "127.47.77."  # what such a source begins with
HOME: Final = 0  # the router's own listener, as long as it was the first
MOST: Final = 255  # the last byte of a source


def source_of(slot: int | None) -> str:
    """The address from which a connection reaches the member at that place; empty: there is none."""
    return "" if slot is None else f"{CHOOSING}{slot}"


def slot_of(source: str) -> int | None:
    """The place that a source chooses; None: it chooses none."""
    place = source.removeprefix(CHOOSING)
    return int(place) if place != source and place.isascii() and place.isdigit() and int(place) <= MOST else None
