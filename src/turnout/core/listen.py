"""What listen addresses go together, and what it takes to listen beyond loopback."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Final

# Behind a relay every client comes from 127.0.0.1, and many daemons trust that (redis protected-mode, pg_hba.conf).
CLIENTS_LOOK_LOCAL: Final = "clients-look-local"


def overlap(addresses: Sequence[tuple[str, int]]) -> tuple[tuple[str, int], tuple[str, int]] | None:
    """Two of these that cannot both be bound: the same one twice, or a wildcard and one that it contains."""
    for number, one in enumerate(addresses):
        for other in addresses[:number]:
            if one[1] == other[1] and _covers(one[0], other[0]):
                return other, one
    return None


def _covers(one: str, other: str) -> bool:
    """Wildcards of the two families do not meet: IPv6 listeners take no IPv4 (IPV6_V6ONLY)."""
    ends = ipaddress.ip_address(one), ipaddress.ip_address(other)
    if ends[0].version != ends[1].version:
        return False
    return ends[0] == ends[1] or any(end.is_unspecified for end in ends)


def reachable(host: str) -> str:
    """Where a program on this machine connects to what listens on ``host``: a wildcard is no destination."""
    address = ipaddress.ip_address(host)
    if not address.is_unspecified:
        return host
    return "127.0.0.1" if isinstance(address, ipaddress.IPv4Address) else "::1"


def exposure_problem(hosts: Sequence[str], expose: bool | str, *, proxy_protocol: bool) -> tuple[str, str] | None:
    """What forbids to listen on these numeric hosts, and a hint; None: nothing does.

    Args:
        hosts: the listen addresses.
        expose: False: loopback only. True: beyond it, if the daemon is told its clients' addresses.
            :data:`CLIENTS_LOOK_LOCAL`: beyond it, although every client looks local to the daemon.
        proxy_protocol: the daemon is told.
    """
    beyond = next((host for host in hosts if not ipaddress.ip_address(host).is_loopback), None)
    if beyond is None or isinstance(expose, str):
        return None
    if not expose:
        return f"listen address {beyond} lies beyond loopback", (
            'expose = true with proxy_protocol = "v2" in turnout.toml, if others are to reach it'
        )
    if not proxy_protocol:
        return f"exposed on {beyond}, every client would look local to the daemon, which may trust it", (
            f'proxy_protocol = "v2" if the daemon reads it; else expose = "{CLIENTS_LOOK_LOCAL}", ideally with allow'
        )
    return None
